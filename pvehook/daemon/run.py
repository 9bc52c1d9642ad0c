"""The story of one vzdump run: one method per phase, in vzdump's order.

    job_init      may this run start?                     before the node's lock: another job may be running
    job_start     may it start now?                       it may have waited hours for the lock
    backup_start  may this guest be backed up now?        a night can run over
    pre_stop      is it safe to freeze it?
    post_restart  the rendezvous with PVE's freeze is armed
    backup_end    the archive is complete                 or backup_abort, which can come without backup_start
    log_end       the guest's account                     always comes
    job_end       the table of all guests                 or job_abort
    worker_died   none of the above will come any more

Each method answers with the lines that vzdump shows. Only the first three may refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pvehook.admission.gate import Gate
from pvehook.config.in_force import Configuration, InForce
from pvehook.contract.call import HookCall, Reply
from pvehook.contract.text import printable
from pvehook.freeze.guest_freeze import GuestFreeze, OpenFreezes
from pvehook.host.clock import at
from pvehook.host.node import Node
from pvehook.priority.idle_priority import IdlePriority
from pvehook.records import run_state
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.guest_summary import stall_fields, summary_lines, summary_message
from pvehook.records.job_table import job_table
from pvehook.records.run_state import RunState
from pvehook.rules.admission import Admission, admits_whole_run
from pvehook.watch.guest_monitor import GuestMonitor
from pvehook.watch.guest_sampler import BEGIN_S

PHASE_LOCK_S = 2.0
"""A `backup-abort` can overlap the hook that a SIGTERM interrupted (facts/vzdump.md). It waits this long for the
other one's answer, then goes on without the lock: a late account is better than a hook that misses its deadline."""


class Job:
    """One vzdump worker's run, from `job-init` to its end."""

    def __init__(self, context: Context, configuration: Configuration, freezes: OpenFreezes, job: RunState) -> None:
        self._context = context
        self._configuration = configuration
        self._job = job
        self._log = context.log.bind(job=job.upid or None, worker=job.worker.pid)
        self._gate = Gate(context.node, context.clock, context.reader)
        self._idle_priority = IdlePriority(context, self._gate.may_still_run, job, self._log)
        self._monitor = GuestMonitor(context, job, self._log)
        self._freezes = freezes
        self._freeze: GuestFreeze | None = None if job.guest is None else self._freeze_of(job.guest)
        self._lock = threading.Lock()
        self._doubted: tuple[str, ...] = ()
        self.ended = False

    def phase(self, call: HookCall, more_time: Callable[[float], None]) -> Reply:
        """Answers one ring. `more_time` asks the hook to wait that many seconds longer."""
        locked = self._lock.acquire(timeout=PHASE_LOCK_S)
        try:
            reply, in_force = self._tell(call, more_time)
        finally:
            if locked:
                self._lock.release()
        return reply._replace(chain=chain_of(self._context.node, in_force)) if reply.exit_code == 0 else reply

    def _tell(self, call: HookCall, more_time: Callable[[float], None]) -> tuple[Reply, InForce]:
        in_force = self._configuration.now()
        self._job.storeid = call.storeid or self._job.storeid
        self._job.dumpdir = call.dumpdir or self._job.dumpdir
        story: dict[str, Callable[[HookCall, InForce], Reply]] = {
            "job-init": self.job_init,
            "job-start": self.job_start,
            "backup-start": self.backup_start,
            "pre-stop": lambda call, in_force: self.pre_stop(call, in_force, more_time),
            "pre-restart": self.pre_restart,
            "post-restart": self.post_restart,
            "backup-end": self.backup_end,
            "backup-abort": self.backup_abort,
            "log-end": self.log_end,
            "job-end": self.job_end,
            "job-abort": self.job_abort,
        }
        tell = story.get(call.phase)
        if tell is None:
            # A phase of a newer Proxmox VE is no reason to fail.
            self._log.info("phase-unknown", message=f"vzdump announced {call.phase!r}, which pvehook does not know")
            return Reply(), in_force
        # Once where it begins, and at every job-init: the run goes on by other rules than the files say.
        doubts = self._doubts_about_configuration(in_force) if in_force.problems != self._doubted else ()
        self._doubted = in_force.problems
        reply = tell(call, in_force)
        reply = reply._replace(lines=(*doubts, *reply.lines))
        if self.ended:
            self._idle_priority.job_ends()
            self._monitor.job_ends()
        self._write_down()
        return reply, in_force

    # Phases of the run

    def job_init(self, call: HookCall, in_force: InForce) -> Reply:
        """Asked before the node's lock. What is set here on the worker is overwritten by PVE's own ionice before
        `job-start`, so idle priority waits until then."""
        decision = self._gate.ask(call, self._job, in_force)
        self._report(decision, call, in_force)
        if not decision.allowed:
            self.ended = True
            return Reply(_ours(decision.lines), exit_code=1)
        return Reply(_ours(decision.lines))

    def job_start(self, call: HookCall, in_force: InForce) -> Reply:
        """Asked again: the run may have waited up to `lockwait` (3 h) since `job-init`."""
        decision = self._gate.ask(call, self._job, in_force)
        self._report(decision, call, in_force)
        if not decision.allowed:
            # PVE calls job-abort next; the job ends there.
            return Reply(_ours(decision.lines), exit_code=1)
        self._job.admitted = admits_whole_run(decision)
        self._job.began = True
        self._idle_priority.start(in_force)
        self._monitor.job_started(in_force)
        return Reply(_ours((*decision.lines, *self._idle_priority.set_worker_idle())))

    def job_end(self, _call: HookCall, _in_force: InForce) -> Reply:
        """All guests were gone through; what is printed here is mailed."""
        self._settle_unfinished()
        self.ended = True
        table = self._table()
        results = [guest.result for guest in self._job.done]
        self._log.info(
            "job-ended",
            message=f"vzdump ended: {len(results)} guests, {results.count('ok')} backed up, "
            f"{results.count('refused')} refused, "
            f"{len(results) - results.count('ok') - results.count('refused')} failed",
            guests=len(results),
            guests_ok=results.count("ok"),
            guests_refused=results.count("refused"),
        )
        return Reply(tuple(table))

    def job_abort(self, _call: HookCall, _in_force: InForce) -> Reply:
        """The run itself failed or was stopped."""
        self._settle_unfinished()
        self.ended = True
        self._log.warning("job-aborted", message="vzdump aborted the run", guests=len(self._job.done))
        return Reply(tuple(self._table()))

    # Phases of one guest

    def backup_start(self, call: HookCall, in_force: InForce) -> Reply:
        """The window is asked for every guest: a night can run over."""
        self._settle_unfinished()
        self._job.guest = self._guest_of(call)
        self._freeze = self._freeze_of(self._job.guest)
        decision = self._gate.ask(call, self._job, in_force)
        self._job.guest.admitted_by = decision.reason
        self._report(decision, call, in_force)
        if not decision.allowed:
            self._job.guest.result = "refused"
            return Reply(_ours(decision.lines), exit_code=1)
        self._idle_priority.start(in_force)
        self._idle_priority.set_worker_idle()
        self._idle_priority.guest_started(self._job.guest)
        self._monitor.guest_started(self._job.guest, in_force)
        return Reply(_ours(decision.lines))

    def pre_stop(self, call: HookCall, in_force: InForce, more_time: Callable[[float], None]) -> Reply:
        """Before anything is stopped or frozen: is it safe to freeze this guest?"""
        self._ensure_guest(call, in_force)
        # Time can be asked for once; the look inside comes after the freeze's questions, before its agent is held.
        assert self._freeze is not None  # noqa: S101  (made with the guest)
        lines = self._freeze.prepare(in_force.config.freeze, lambda seconds: more_time(seconds + BEGIN_S))
        self._monitor.read_guest_counters()
        self._idle_priority.wake()
        return Reply(_ours(lines))

    def pre_restart(self, call: HookCall, in_force: InForce) -> Reply:
        """Nothing of ours; vzdump goes on to resume or start the guest."""
        self._ensure_guest(call, in_force)
        self._idle_priority.wake()
        return Reply()

    def post_restart(self, call: HookCall, in_force: InForce) -> Reply:
        """The archive begins when this returns: PVE asks the agent 3 to 7 ms later and must find us there."""
        guest = self._ensure_guest(call, in_force)
        self._monitor.archive_begins()
        lines = []
        if self._freeze is not None and guest.result == "running":
            lines = self._freeze.arm(in_force.config.freeze)
        self._idle_priority.wake()
        return Reply(_ours(lines))

    def backup_end(self, call: HookCall, in_force: InForce) -> Reply:
        """The archive is complete."""
        guest = self._ensure_guest(call, in_force)
        if self._freeze is not None:
            self._freeze.over()
        self._monitor.archive_over()
        if guest.result == "running":
            guest.result = "ok"
        self._idle_priority.wake()
        return Reply()

    def backup_abort(self, call: HookCall, in_force: InForce) -> Reply:
        """This guest's backup failed, perhaps before it began, perhaps because the window refused it."""
        guest = self._ensure_guest(call, in_force)
        if self._freeze is not None:
            self._freeze.over()
        self._monitor.archive_over()
        if guest.result not in ("refused", "cancelled"):
            guest.result = "cancelled" if guest.cancel_sent else "failed"
        self._idle_priority.wake()
        return Reply()

    def log_end(self, call: HookCall, in_force: InForce) -> Reply:
        """The last phase of a guest, which always comes: no guest is left at idle beyond it."""
        guest = self._ensure_guest(call, in_force)
        if guest.result == "running":
            guest.result = "failed"  # neither backup-end nor backup-abort was seen
        return Reply(_ours(self._settle(guest)))

    # The end that vzdump does not announce

    def worker_died(self) -> None:
        """The worker is gone (killed, GUI stop, power of root): no phase will come any more."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            guest = self._job.guest
            if guest is not None:
                if guest.result == "running":
                    guest.result = "worker-died"
                if self._freeze is not None:
                    self._freeze.worker_died()
                self._settle(guest)
            self._idle_priority.job_ends()
            self._monitor.job_ends()
            self._write_down()
            if guest is not None:
                during = f"during the backup of guest {guest.vmid}"
                self._log.warning(
                    "worker-died",
                    message=f"vzdump's worker ended {during} without a last phase",
                    vmid=guest.vmid,
                )
            elif self._job.began:
                self._log.warning("worker-died", message="vzdump's worker ended without job-end")
            else:
                # A job that waited for the lock and did not get it shows nothing but its job-init.
                self._log.info("worker-ended", message="vzdump's worker ended before its job began")

    # The daemon's own coming and going

    def resume(self) -> None:
        """A new daemon picks this running job up."""
        in_force = self._configuration.now()
        self._log.info("job-picked-up", message="the daemon was restarted; it goes on with the running job")
        if self._job.began:
            self._idle_priority.start(in_force)
            self._idle_priority.set_worker_idle()
            if self._job.guest is not None:
                self._idle_priority.guest_started(self._job.guest)
                self._monitor.guest_started(self._job.guest, in_force)

    def put_down(self) -> None:
        """The daemon leaves while the job runs; its record stays for the next one."""
        self._idle_priority.stop()
        self._monitor.put_down()

    # Helpers

    def _table(self) -> list[str]:
        records = self._monitor.records_of(self._job.done)
        return job_table((guest, records.get(guest.vmid)) for guest in self._job.done)

    def _write_down(self) -> None:
        """What a new daemon would go on from. A full /run must not cost the answer: a refusal above all."""
        try:
            if self.ended:
                run_state.remove(self._context.node, self._job)
            else:
                run_state.save(self._context.node, self._job)
        except OSError as error:
            self._log.error(
                "record-not-written",
                message=f"the job's record could not be written, a restarted daemon would not know of it: {error}",
            )

    def _settle_unfinished(self) -> None:
        """A guest whose last phases were answered without the daemon: it died, and the hook helped itself."""
        guest = self._job.guest
        if guest is not None:
            if guest.result == "running":
                guest.result = "unknown"
            self._settle(guest)

    def _settle(self, guest: GuestRecord) -> list[str]:
        """The account of one guest: last look at its processes, then the journal, then the task log."""
        guest.ended_s = self._context.clock.now_s()
        if self._freeze is not None:
            self._freeze.settle()
        self._idle_priority.guest_ends(guest)
        stall = self._monitor.summary(guest)
        self._job.done.append(guest)
        self._job.guest = None
        suffered = stall is not None and stall.verdict.severity in ("stalled", "locked-up")
        write = self._log.info if guest.result == "ok" and not suffered else self._log.warning
        write(
            "guest-done",
            message=summary_message(guest, stall),
            vmid=guest.vmid,
            guest=guest.name,
            vmtype=guest.vmtype,
            mode=guest.mode,
            result=guest.result,
            duration_s=round(guest.ended_s - guest.started_s, 1),
            admitted_by=guest.admitted_by,
            idle_processes=sum(each[0] for each in guest.idle.values()),
            idle_threads=sum(each[1] for each in guest.idle.values()),
            idle_threads_confirmed=sum(each[2] for each in guest.idle.values()),
            idle_commands=", ".join(sorted(guest.idle)) or None,
            idle_failed=guest.not_idle or None,
            idle_effect=guest.effect_in_short,
            idle_effect_detail=guest.effect or None,
            put_back_to_normal=guest.restored or None,
            freeze=guest.freeze.action if guest.freeze else None,
            consistency=guest.freeze.consistency if guest.freeze else None,
            **(stall_fields(stall) if stall is not None else {"frozen_ms": guest.freeze and guest.freeze.frozen_ms}),
        )
        return summary_lines(guest, stall)

    def _ensure_guest(self, call: HookCall, in_force: InForce) -> GuestRecord:
        """The guest in backup. It is unknown after `backup-abort` without `backup-start` (a guest that does not
        exist), or when pvehook came in the middle of a run."""
        guest = self._job.guest
        if guest is None or guest.vmid != call.vmid:
            guest = self._job.guest = self._guest_of(call)
            self._freeze = self._freeze_of(guest)
            if call.phase not in ("backup-abort", "log-end"):
                self._idle_priority.start(in_force)
                self._idle_priority.guest_started(guest)
                self._monitor.guest_started(guest, in_force)
        return guest

    def _freeze_of(self, guest: GuestRecord) -> GuestFreeze:
        return GuestFreeze(self._context, self._freezes, self._job.worker, guest, self._log, lambda: None)

    def _guest_of(self, call: HookCall) -> GuestRecord:
        return GuestRecord(
            vmid=call.vmid or 0,
            mode=call.mode or "unknown",
            vmtype=call.vmtype,
            name=printable(call.hostname, 64) if call.hostname else None,
            started_s=self._context.clock.now_s(),
            target=call.target,
        )

    def _report(self, decision: Admission, call: HookCall, in_force: InForce) -> None:
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

    def _doubts_about_configuration(self, in_force: InForce) -> tuple[str, ...]:
        if not in_force.problems:
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


def chain_of(node: Node, in_force: InForce) -> str | None:
    """The path of the script that vzdump ran before us."""
    return node.path(in_force.config.chain) if in_force.config.chain is not None else None


def _ours(lines: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return tuple(f"pvehook: {line}" for line in lines)
