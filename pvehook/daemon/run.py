"""The story of one vzdump run: one method per phase, in vzdump's order.

    job_init      may this run start?                     before the node's lock: another run may be under way
    job_start     may it start now?                       it may have waited hours for the lock
    backup_start  may this guest be backed up now?        a night can run over
    guest_phase   pre-stop to log-end: the guest's turn   guest_turn.py
    job_end       the table of all guests                 or job_abort
    worker_died   none of the above will come any more

Each method answers with the lines that vzdump shows. Only the first three may refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

from pvehook.admission.gate import Gate
from pvehook.config.in_force import Configuration, InForce
from pvehook.contract.call import HookCall, Reply
from pvehook.contract.phases import GUEST_PHASES
from pvehook.contract.text import counted, printable
from pvehook.daemon.after_refusal import report_ignored, went_on
from pvehook.daemon.guest_turn import Event, GuestTurn, Phase, RunParts
from pvehook.deadline import Deadline
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.host.clock import at
from pvehook.host.node import Node
from pvehook.night.notices import run_notices
from pvehook.night.overdue_now import overdue_guests
from pvehook.night.refused_runs import keep_refused_run
from pvehook.night.run_plan import RunPlan
from pvehook.night.stock import take_stock
from pvehook.night.turns_taken import trigger_of
from pvehook.priority.idle_priority import restore_strays, set_worker_idle
from pvehook.records import run_state
from pvehook.records.beside_record import BesideRecord
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.job_table import job_table
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import StallRecord
from pvehook.rules.admission import WINDOW_OPEN, Admission, admits_whole_run
from pvehook.watch.node_watch import NodeWatch
from pvehook.watch.run_records import RunRecords

PHASE_LOCK_S = 2.0
"""A `backup-abort` can overlap the hook that a SIGTERM interrupted (facts/vzdump.md). It waits this long for the
other one's answer, then goes on without the lock: a late summary is better than a hook that misses its deadline."""

UNANNOUNCED_S = 5.0
"""For what no hook waits for: a worker that died, a daemon that resumes."""


class Run:
    """One vzdump worker's run, from `job-init` to its end."""

    def __init__(
        self,
        context: Context,
        configuration: Configuration,
        freezes: OpenFreezes,
        state: RunState,
        waiting_runs: Callable[[], list[RunState]],
    ) -> None:
        """`waiting_runs`: see RunPlan."""
        self._log = context.log.bind(job=state.upid or None, worker=state.worker.pid)
        self._context = context = context._replace(log=self._log)
        self._configuration = configuration
        self._state = state
        records = RunRecords(context, state)
        self._parts = RunParts(
            context,
            state,
            Gate(context, overdue_guests(context)),
            RunPlan(context, state, waiting_runs),
            freezes,
            records,
            NodeWatch(context, state, records.past_baseline, self._keep),
            keep=self._keep,
        )
        self._turn: GuestTurn | None = None
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        self._problems: tuple[str, ...] = ()
        self._refused = False
        self.ended = False

    @property
    def waiting(self) -> RunState | None:
        """The run's state while it waits for the node's lock, between job-init and job-start."""
        return None if self._state.began or self.ended or self._refused else self._state

    def phase(self, call: HookCall, deadline: Deadline, more_time: Callable[[float], None]) -> Reply:
        """Answers one hook call. `more_time` asks the hook to wait that many seconds longer."""
        locked = self._lock.acquire(timeout=deadline.within(PHASE_LOCK_S).left_s())
        try:
            phase = Phase(self._configuration.now(), deadline, more_time)
            chain = chain_of(self._context.node, phase.in_force) if not call.chain_ran else None
            if chain is not None and _holds_agent(call):
                return Reply(chain=chain, chain_first=True)
            try:
                reply = self._answer(call, phase)
            finally:
                self._close_what_ended()
        finally:
            if locked:
                self._lock.release()
        return reply._replace(chain=chain if reply.exit_code == 0 else None)

    def _answer(self, call: HookCall, phase: Phase) -> Reply:
        self._state.storeid = call.storeid or self._state.storeid
        self._state.dumpdir = call.dumpdir or self._state.dumpdir
        run_phases: dict[str, Callable[[HookCall, Phase], Reply]] = {
            "job-init": self.job_init,
            "job-start": self.job_start,
            "backup-start": self.backup_start,
            "job-end": self.job_end,
            "job-abort": self.job_abort,
        }
        answer = run_phases.get(call.phase, self.guest_phase if call.phase in GUEST_PHASES else None)
        if answer is None:
            # A phase of a newer Proxmox VE is no reason to fail.
            self._log.info("phase-unknown", message=f"vzdump announced {call.phase!r}, which pvehook does not know")
            return Reply()
        problems = self._report_problems(phase.in_force)
        reply = answer(call, phase)
        return reply._replace(lines=(*problems, *reply.lines))

    # Phases of the run

    def job_init(self, call: HookCall, phase: Phase) -> Reply:
        """Before the node's lock. What is set here on the worker is overwritten by PVE's own ionice before
        `job-start`, so the idle class waits until then."""
        decision = self._ask_gate(call, phase.in_force)
        self.ended = not decision.allowed
        self._state.trigger = trigger_of(self._context.node, self._state, phase.in_force.zone)
        if not decision.allowed:
            self._keep_refused_run(decision, phase)
        return _reply(decision)

    def job_start(self, call: HookCall, phase: Phase) -> Reply:
        """Asked again: the run may have waited up to `lockwait` (3 h) since `job-init`."""
        decision = self._ask_gate(call, phase.in_force)
        self._refused = not decision.allowed
        self._state.trigger = trigger_of(self._context.node, self._state, phase.in_force.zone)
        if not decision.allowed:
            self._keep_refused_run(decision, phase)
            return _reply(decision)  # PVE calls job-abort next; the run ends there
        self._state.admitted = admits_whole_run(decision)
        self._state.began = True
        if phase.in_force.config.metrics.mode == "on":
            self._parts.watch.begin()
        _, trouble = set_worker_idle(self._context, self._state, phase.in_force.config.io_priority)
        return _reply(decision, *trouble, *self._parts.plan.make(phase.in_force, phase.deadline))

    def job_end(self, _call: HookCall, phase: Phase) -> Reply:
        """All guests had their turn; what is printed here is mailed."""
        reply = self._end(phase)
        results = [guest.result for guest in self._state.done]
        ok, refused, unknown = (results.count(each) for each in ("ok", "refused", "unknown"))
        not_known = f", {unknown} not known" if unknown else ""
        self._log.info(
            "job-ended",
            message=f"vzdump ended: {counted(len(results), 'guest')}, {ok} backed up, {refused} refused, "
            f"{len(results) - ok - refused - unknown} failed{not_known}",
            guests=len(results),
            guests_ok=ok,
            guests_refused=refused,
            guests_unknown=unknown or None,
        )
        return reply

    def job_abort(self, _call: HookCall, phase: Phase) -> Reply:
        """The run itself failed or was stopped."""
        reply = self._end(phase)
        self._log.warning("job-aborted", message="vzdump aborted the run", guests=len(self._state.done))
        return reply

    # Phases of one guest

    def backup_start(self, call: HookCall, phase: Phase) -> Reply:
        """The window is asked for every guest: a night can run over."""
        ignored = report_ignored(self._log, "this run") if self._refused else ()
        turn = self._new_turn(call, phase)
        decision = self._ask_gate(call, phase.in_force)
        turn.guest.admitted_by, turn.guest.why_refused = decision.reason, decision.why_refused
        self._handle(turn, "admit" if decision.allowed else "refuse", phase)
        return _reply(decision, *ignored)

    def guest_phase(self, call: HookCall, phase: Phase) -> Reply:
        """Of the guest whose turn it is; of another one where pvehook came in the middle of the run, and where
        `backup-abort` comes without `backup-start`."""
        turn = self._turn
        if turn is None or turn.guest.vmid != call.vmid:
            turn = self._new_turn(call, phase)
        lines = self._handle(turn, cast(Event, call.phase), phase)
        if turn.guest.result == "refused":
            lines += went_on(self._context, self._state.worker, call.phase, turn.guest, phase.in_force)
        return Reply(_ours(lines))

    # The end that vzdump does not announce

    def worker_died(self) -> None:
        """The worker is gone (killed, GUI stop, power of root): no phase will come any more."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            guest = self._state.guest
            try:
                if self._turn is not None:
                    self._handle(self._turn, "worker-died", self._unannounced())
                self._tell(self._end_watch(self._unannounced()), self._unannounced())
            finally:
                self._close_what_ended()
        if guest is not None:
            text = f"vzdump's worker ended during the backup of guest {guest.vmid} without a last phase"
            self._log.warning("worker-died", message=text, vmid=guest.vmid)
        elif self._state.began:
            self._log.warning("worker-died", message="vzdump's worker ended without job-end")
        else:
            # A run that waited for the lock and did not get it shows nothing but its job-init.
            self._log.info("worker-ended", message="vzdump's worker ended before its run began")

    # The daemon's own coming and going

    def adopt(self, *, resume: bool) -> None:
        """A new daemon takes over this run's guest. Without `resume` only its end is to come."""
        phase = self._unannounced()
        if self._state.guest is not None:
            self._turn = GuestTurn(self._parts, self._state.guest, phase.in_force)
        if not resume:
            return
        self._log.info("job-picked-up", message="the daemon was restarted; it goes on with the running job")
        if self._state.began:
            set_worker_idle(self._context, self._state, phase.in_force.config.io_priority)
            if phase.in_force.config.metrics.mode == "on":
                self._parts.watch.begin()
        if self._turn is not None:
            self._handle(self._turn, "resumed", phase)

    def leave(self) -> None:
        """The daemon leaves while the run goes on; its recovery note stays for the next one."""
        if self._turn is not None:
            self._turn.leave()
        self._parts.watch.leave()
        self._keep()

    # Helpers

    def _keep_refused_run(self, decision: Admission, phase: Phase) -> None:
        """Its guests go without a backup. Who they are takes longer to find out than vzdump should wait."""
        run = replace(self._state)

        def keep() -> None:
            records = RunRecords(self._context, run)
            try:
                keep_refused_run(self._context, run, decision.why_refused, phase.in_force)
                take_stock(self._context, phase.in_force, records.keep_guests, Deadline.after(UNANNOUNCED_S))
            except Exception as fault:  # the run is over: a fault of ours costs a line
                self._log.error("fault", message=f"a refused run's guests: {fault!r}", exc_type=type(fault).__name__)

        try:
            threading.Thread(target=keep, name="refused-run", daemon=True).start()
        except RuntimeError as error:
            self._log.error("history-not-kept", message=f"no thread could be started: {error}")

    def _handle(self, turn: GuestTurn, event: Event, phase: Phase) -> list[str]:
        try:
            return turn.handle(event, phase)
        finally:
            if turn.state == "accounted" and self._state.guest is turn.guest:
                self._state.done.append(turn.guest)
                self._state.guest = None

    def _new_turn(self, call: HookCall, phase: Phase) -> GuestTurn:
        self._lose_turn(phase)
        guest = self._state.guest = GuestRecord(
            vmid=call.vmid or 0,
            mode=call.mode or "unknown",
            vmtype=call.vmtype,
            name=printable(call.hostname, 64) if call.hostname else None,
            started_s=self._context.clock.now_s(),
            started_steady_s=self._context.clock.steady_s(),
            target=call.target,
        )
        turn = self._turn = GuestTurn(self._parts, guest, phase.in_force)
        return turn

    def _lose_turn(self, phase: Phase) -> None:
        """A guest whose last phases were answered without the daemon: it died, and the hook helped itself."""
        if self._turn is not None:
            self._handle(self._turn, "lost", phase)

    def _unannounced(self) -> Phase:
        return Phase(self._configuration.now(), Deadline.after(UNANNOUNCED_S))

    def _end(self, phase: Phase) -> Reply:
        """With the table of all guests."""
        self._lose_turn(phase)
        self.ended = True
        beside = self._end_watch(phase)
        records = self._tell(beside, phase)
        overdue = take_stock(self._context, phase.in_force, self._parts.records.keep_guests, phase.deadline)
        guests = ((guest, records.get(guest.vmid)) for guest in self._state.done)
        return Reply(tuple(job_table(guests, beside, overdue)))

    def _tell(self, beside: list[BesideRecord], phase: Phase) -> dict[int, StallRecord]:
        """The administrator, beside the phases, of who stalled. Returns the guests' records."""
        records = self._parts.records.of(self._state.done, phase.deadline)
        self._context.tell(partial(run_notices, list(records.values()), beside, phase.in_force.config.freeze))
        return records

    def _end_watch(self, phase: Phase) -> list[BesideRecord]:
        """What guests suffered beside the backups of others, kept."""
        beside = self._parts.watch.end()
        self._parts.records.keep_beside(beside, phase.in_force.config.metrics, phase.deadline)
        return beside

    def _close_what_ended(self) -> None:
        """What a run started ends with it. What a new daemon would go on from is written down."""
        if self.ended:
            restore_strays(self._context, self._state)
            self._parts.watch.end()
        self._keep()

    def _keep(self) -> None:
        """The recovery note, also at a freeze's end, which is no phase. A full /run must not cost the answer, a refusal
        above all."""
        try:
            with self._keeping:
                if self.ended:
                    run_state.remove(self._context.node, self._state)
                else:
                    self._parts.watch.note()
                    run_state.save(self._context.node, self._state)
        except OSError as error:
            self._log.error(
                "record-not-written",
                message=f"the run's recovery note could not be written, a restarted daemon would not know it: {error}",
            )

    def _ask_gate(self, call: HookCall, in_force: InForce) -> Admission:
        gate = self._parts.gate
        decision = gate.ask(call, self._state, in_force)
        if call.vmid is not None and decision.reason == WINDOW_OPEN:
            decision = self._parts.plan.gives_way(call.vmid, gate.bound, in_force) or decision
        write = self._log.info if decision.allowed else self._log.warning
        now = at(self._context.clock, in_force.window.zone)
        name = f"guest {call.vmid}" if call.vmid is not None else "this run"
        write(
            "window-admitted" if decision.allowed else "window-refused",
            message=(decision.lines[0] if decision.lines else f"{call.phase}: {name} may run ({decision.reason})"),
            phase=call.phase,
            vmid=call.vmid,
            reason=decision.reason,
            clock=now.isoformat(timespec="seconds"),
            window=", ".join(in_force.config.window.open) or "never",
        )
        return decision

    def _report_problems(self, in_force: InForce) -> tuple[str, ...]:
        """Once where they begin: the run goes on by other rules than the files say."""
        is_new = in_force.problems != self._problems
        self._problems = in_force.problems
        if not in_force.problems or not is_new:
            return ()
        for problem in in_force.problems:
            self._log.error(
                "configuration-problem",
                message=f"{problem}; in force: {in_force.source}",
                in_force=in_force.source,
            )
        more = f" (and {len(in_force.problems) - 1} more)" if len(in_force.problems) > 1 else ""
        return (
            f"pvehook: CONFIGURATION NOT USED: {printable(in_force.problems[0], 300)}{more}; "
            f"in force: {in_force.source}; see `pvehook config check`",
        )


def _holds_agent(call: HookCall) -> bool:
    """Whether the guest's agent is kept for PVE's freeze from this phase on. The chained script may need it before."""
    return call.phase == "post-restart" and call.mode == "snapshot" and call.vmtype != "lxc"


def chain_of(node: Node, in_force: InForce) -> str | None:
    """The path of the script that vzdump ran before us."""
    return node.path(in_force.config.chain) if in_force.config.chain is not None else None


def _reply(decision: Admission, *more: str) -> Reply:
    return Reply(_ours((*decision.lines, *more)), exit_code=0 if decision.allowed else 1)


def _ours(lines: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return tuple(f"pvehook: {line}" for line in lines)
