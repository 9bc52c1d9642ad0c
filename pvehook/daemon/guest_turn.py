"""One guest's turn in a vzdump run: it has one state and one setter, and it owns all that is done for this guest.

    new         nothing is done yet. vzdump may name a guest for the first time in any phase: pvehook was installed in
                the middle of the run, or the phases before were answered without the daemon
    admitted    backup-start, the window is open: idle I/O class, sampler, governor and pacer run
    refused     backup-start, the window is closed: vzdump goes on with backup-abort and log-end
    prepared    pre-stop: the verdict on the freeze is known, the guest's own counters are read
    armed       post-restart: PVE comes within milliseconds. Agent and monitor belong to PVE and to the freeze
    archiving   the freeze is over, or there is none. In mode stop, and for a VM in suspend, the archive follows
                pre-stop without another phase
    over        backup-end or backup-abort: nothing stays frozen, the last samples are taken
    accounted   log-end: the summary is written, and nothing runs for this guest any more

TABLE has a row for each event and a column for each state, so a phase that comes twice, late or never is a cell of it.
The order of the phases in each mode stands in facts/vzdump.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

from pvehook.admission.gate import Gate
from pvehook.admission.window_end import check_window_end
from pvehook.config.in_force import InForce
from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.freeze.guest_freeze import GuestFreeze
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.guest.qmp import QmpConnection
from pvehook.night.run_plan import RunPlan
from pvehook.night.turns_taken import attempt_of
from pvehook.priority.idle_priority import IdlePriority
from pvehook.priority.io_priority_effect import effect_of_idle
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord, Result, TurnState
from pvehook.records.guest_summary import guest_done_fields, is_good, summary_lines, summary_message
from pvehook.records.journal import Log
from pvehook.records.run_state import RunState
from pvehook.watch.guest_monitor import GuestMonitor
from pvehook.watch.node_watch import NodeWatch
from pvehook.watch.run_records import RunRecords

PREPARE_S, BESIDE_FACTS_S = 2.9, 0.9
"""For pre-stop without a pre-flush: facts, verdict and the guest's counters; with the hook's own time 3 s. vzdump waits
for it, guest after guest. An administrator's longer `facts_within` counts, with some time for what is beside it."""

FIRST_WAIT_S = 0.1
"""For the check after a phase: vzdump goes on and forks when it has our answer."""

Event = Literal[
    "admit",  # backup-start, answered with yes
    "refuse",  # backup-start, answered with no
    "pre-stop",
    "pre-restart",
    "post-restart",
    "freeze-over",  # of the freeze: PVE has come, or will not come any more
    "backup-end",
    "backup-abort",
    "log-end",
    "lost",  # another guest's phase or the run's end came instead: the last phases were answered without us
    "worker-died",
    "resumed",  # a new daemon took the turn over
]
Action = Literal["begin", "prepare", "arm", "archive", "end", "thaw", "settle", "account"]


class Move(NamedTuple):
    """What one event does in one state. `to` None: the state stays."""

    to: TurnState | None = None
    do: tuple[Action, ...] = ()
    result: Result | None = None


stay = Move()
admit = Move("admitted", ("begin",))
refuse = Move("refused", (), "refused")
ready = Move("prepared", ("prepare",))
arm = Move("armed", ("arm",))
archive = Move("archiving", ("archive",))  # without a verdict too: then the freeze is left to PVE
done = Move("over", ("end",), "ok")
failed = Move("over", ("end",), "failed")
spoilt = Move(None, (), "failed")  # a chained script fails in backup-end: the archive is kept, the guest has failed
close = Move("accounted", ("settle", "account"))
lose = Move("accounted", ("end", "settle", "account"), "unknown")
died = Move("accounted", ("thaw", "end", "settle", "account"), "worker-died")
gone = Move("accounted", ("thaw", "settle", "account"))  # the worker died when the result was known
resume = Move(None, ("begin",))
# As above, for a guest that nothing is done for yet.
ready_ = Move("prepared", ("begin", "prepare"))
archive_ = Move("archiving", ("begin", "archive"))
over_ = Move(None, ("begin", "end"))


def _by_state(*moves: Move) -> dict[TurnState, Move]:
    return dict(zip(get_args(TurnState), moves, strict=True))


TABLE: Final[dict[Event, dict[TurnState, Move]]] = {
    #                         new       admitted prepared armed     archiving over    refused accounted
    "admit":        _by_state(admit,    stay,    stay,    stay,     stay,     stay,   stay,   stay),
    "refuse":       _by_state(refuse,   stay,    stay,    stay,     stay,     stay,   stay,   stay),
    "pre-stop":     _by_state(ready_,   ready,   stay,    stay,     stay,     stay,   stay,   stay),
    "pre-restart":  _by_state(admit,    stay,    stay,    stay,     stay,     stay,   stay,   stay),
    "post-restart": _by_state(archive_, archive, arm,     stay,     stay,     stay,   stay,   stay),
    "freeze-over":  _by_state(stay,     stay,    archive, archive,  stay,     stay,   stay,   stay),
    "backup-end":   _by_state(done,     done,    done,    done,     done,     stay,   stay,   stay),
    "backup-abort": _by_state(failed,   failed,  failed,  failed,   failed,   spoilt, stay,   stay),
    "log-end":      _by_state(lose,     lose,    lose,    lose,     lose,     close,  close,  stay),
    "lost":         _by_state(lose,     lose,    lose,    lose,     lose,     close,  close,  stay),
    "worker-died":  _by_state(died,     died,    died,    died,     died,     gone,   close,  stay),
    "resumed":      _by_state(stay,     resume,  resume,  archive_, archive_, over_,  stay,   stay),
}  # fmt: skip


class Phase(NamedTuple):
    """What an action goes by: the configuration in force, how long it may take, and how to ask for more time."""

    in_force: InForce
    deadline: Deadline
    more_time: Callable[[float], None] = lambda seconds: None


class RunParts(NamedTuple):
    """What the turns of one run share."""

    context: Context
    run: RunState
    gate: Gate
    plan: RunPlan
    freezes: OpenFreezes
    records: RunRecords
    watch: NodeWatch
    keep: Callable[[], None]
    """Writes down what the next daemon would go on from."""


class GuestTurn:
    """One guest. `handle` is called by the phases, one at a time or, after a signal to vzdump, two at once
    (facts/vzdump.md), and by the freeze's thread."""

    def __init__(self, parts: RunParts, guest: GuestRecord, in_force: InForce) -> None:
        self._parts = parts
        self.guest = guest
        self._in_force = in_force
        context = parts.context
        self._log = context.log
        self._setting = threading.Lock()
        self._freeze = GuestFreeze(
            context, parts.freezes, parts.run.worker, guest, self._log, self._freeze_over, self._limit_backup
        )
        self._idle = IdlePriority(context, parts.run, guest)
        self._monitor: GuestMonitor | None = None
        self._beside = Beside(f"turn-{guest.vmid}", self._check_beside, self._log)
        self._effect_asked = False

    @property
    def state(self) -> TurnState:
        return self.guest.state

    def handle(self, event: Event, phase: Phase) -> list[str]:
        """Does what the table says. Lines for the task log. An action that raises does not keep the next one from
        being done; its fault is raised when all are done."""
        self._in_force = phase.in_force
        actions: dict[Action, Callable[[Phase], list[str] | None]] = {
            "begin": self._begin,
            "prepare": self._prepare,
            "arm": self._arm,
            "archive": self._archive,
            "end": self._end,
            "thaw": self._thaw,
            "settle": self._settle,
            "account": self._account,
        }
        lines: list[str] = []
        fault: Exception | None = None
        for action in self._move(event):
            try:
                lines += actions[action](phase) or ()
            except Exception as error:
                fault = fault or error
        self._beside.wake()
        if fault is not None:
            raise fault
        return lines

    def leave(self) -> None:
        """The daemon leaves while vzdump goes on; the next one resumes the turn from its record."""
        self._beside.stop()
        if self._monitor is not None:
            self._monitor.leave()

    def _move(self, event: Event) -> tuple[Action, ...]:
        """The one place that sets a state and a result. Raises ValueError for a state or an event that is none."""
        with self._setting:
            was = self.guest.state
            if event not in TABLE or was not in TABLE[event]:
                raise ValueError(f"guest {self.guest.vmid}: no row for {event!r} in state {was!r}")
            move = TABLE[event][was]
            if move.result is not None:
                by_us = move.result == "failed" and self.guest.cancel_sent
                self.guest.result = "cancelled" if by_us else move.result
            if move.to is not None:
                self.guest.state = move.to
                self._log.debug(
                    "guest-state",
                    message=f"guest {self.guest.vmid}: {was} -> {move.to} ({event})",
                    vmid=self.guest.vmid,
                )
            return move.do

    # Actions: each gives the lines for the task log, if it has any

    def _begin(self, phase: Phase) -> None:
        self._idle.begin(phase.in_force.config.io_priority)
        self._monitor = GuestMonitor(
            self._parts.context,
            self._parts.records,
            self._parts.watch,
            self._parts.context.readers.pacer,
            self.guest,
            phase.in_force,
            lambda: self.state == "armed",
            self._parts.plan.share(self.guest.vmid, phase.deadline),
        )
        self._monitor.begin()
        if self._archive_follows("stop"):
            self._monitor.archive_begins()
        self._beside.start()

    def _prepare(self, phase: Phase) -> list[str]:
        freeze = phase.in_force.config.freeze
        deadline = phase.deadline.within(max(PREPARE_S, freeze.facts_within_s + BESIDE_FACTS_S))
        lines = self._freeze.prepare(freeze, deadline, phase.more_time)
        # The guest's counters come after the freeze's questions, while nobody needs its agent.
        if freeze.pre_flush:  # more time was asked for it
            deadline = Deadline.after(PREPARE_S)
        if self._monitor is not None:
            self._monitor.read_guest_counters(deadline, self._freeze.silent_agent)
        if self._archive_follows("stop", "suspend"):
            self.handle("freeze-over", phase)
        return lines

    def _arm(self, phase: Phase) -> list[str]:
        if self._monitor is not None:
            self._monitor.archive_begins()
        lines = self._freeze.arm(phase.in_force.config.freeze)
        if self.state not in ("armed", "archiving"):  # a backup-abort overlapped this phase
            self._freeze.over(phase.deadline)
        return lines

    def _archive(self, _phase: Phase) -> None:
        if self._monitor is not None:
            self._monitor.archive_begins()

    def _end(self, phase: Phase) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # at once; its last sample is taken while we wait for the thaw
        self._freeze.over(phase.deadline)

    def _thaw(self, _phase: Phase) -> None:
        self._freeze.worker_died()

    def _settle(self, phase: Phase) -> None:
        """Nothing of this guest stays frozen, in the idle class or watched."""
        took_s = self._parts.context.clock.steady_s() - self.guest.started_steady_s
        self.guest.ended_s = self.guest.started_s + max(took_s, 0.0)
        self._beside.stop()
        try:
            self._freeze.settle(phase.deadline)
        finally:
            self._idle.finish(phase.deadline)

    def _account(self, phase: Phase) -> list[str]:
        """Its summary: for the history, the journal and the task log."""
        guest = self.guest
        record = self._monitor.record(phase.deadline) if self._monitor is not None else None
        records = self._parts.records
        why_failed = records.why_failed(guest.vmid, phase.deadline) if guest.result == "failed" else None
        attempt = attempt_of(self._parts.run, guest, record, why_failed)
        records.keep_attempts([attempt], phase.in_force.config.metrics, phase.deadline)
        write = self._log.info if is_good(guest, record) else self._log.warning
        write("guest-done", message=summary_message(guest, record), **guest_done_fields(guest, record))
        return summary_lines(guest, record)

    # Beside the phases

    def _check_beside(self) -> float:
        """Beside the phases, again and again: priorities, the window's end, once the disks. Seconds to the next."""
        settings = self._in_force.config.io_priority
        self._idle.check(settings)
        check_window_end(self._parts.context, self._parts.gate, self._parts.run, self.guest, self._in_force)
        if not self._effect_asked:
            self._effect_asked = True
            try:
                threading.Thread(target=self._find_effect, name=f"effect-{self.guest.vmid}", daemon=True).start()
            except RuntimeError:
                pass  # out of threads: its summary says that it was not found out
        return settings.check_every_s

    def _find_effect(self) -> None:
        """Disks are looked up for up to 20 s where they hang; the check of priorities does not wait for it."""
        backup = self._parts.run.backup_of(self.guest)
        found = effect_of_idle(self._parts.context.node, self._parts.context.readers.priority, backup)
        self.guest.effect_in_short, self.guest.effect = found.in_short, list(found.sentences)

    def _freeze_over(self) -> None:
        self.handle("freeze-over", Phase(self._in_force, Deadline.after(0.0)))
        self._parts.keep()

    def _limit_backup(self, qmp: QmpConnection, jobs: tuple[BlockJob, ...], deadline: Deadline) -> None:
        """The backup has begun and the guest is still frozen: what waits in it is not to queue behind a burst."""
        if self._monitor is not None:
            self._monitor.limit_backup(qmp, jobs, deadline)

    def _archive_follows(self, *modes: str) -> bool:
        """Whether a VM's archive begins without another phase, in one of these modes."""
        return self.guest.vmtype != "lxc" and self.guest.mode in modes


class Beside:
    """A check that is repeated beside the phases, in a thread of its own: vzdump forks the compressor inside *archive*,
    where no phase is announced. So it comes shortly after each phase, then at growing pauses, of which `check` returns
    the longest. `start` it with the turn, `stop` it with the turn."""

    def __init__(self, name: str, check: Callable[[], float], log: Log) -> None:
        self._name = name
        self._check = check
        self._log = log
        self._woken = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Where no thread can be started, the phases make do without the check."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._log.error("fault", message=f"{self._name}: no thread: {error}; the backup goes on")

    def wake(self) -> None:
        """Processes may have come or gone: check soon."""
        self._woken.set()

    def stop(self) -> None:
        """No further check is begun."""
        self._stopped.set()
        self._woken.set()

    def _run(self) -> None:
        wait_s = longest_s = FIRST_WAIT_S
        while not self._stopped.is_set():
            if self._woken.wait(wait_s):
                self._woken.clear()
                wait_s = FIRST_WAIT_S
                continue
            try:
                longest_s = self._check()
            except Exception as fault:  # one check that fails must not be the last
                self._log.error("fault", message=f"{self._name}: {fault!r}; the backup goes on")
            wait_s = min(2 * wait_s, longest_s)
