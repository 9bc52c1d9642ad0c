"""The rendezvous with PVE: freeze when it is about to, thaw when its backup job has begun, or keep it from freezing.

    arm        post-restart: connect to the agent, synchronise, HOLD the socket; only then the hook returns
    arrive     3 to 7 ms later PVE connects and waits behind us: guest-ping, 3 s patience
    freeze     on the held connection; let go, to the end of the line (place_in_line.py);
               PVE pings, sees "frozen", skips its own freeze, starts its job
    thaw       as soon as the job is visible, or the bound is reached; until the guest says "thawed"
    veto       hold until PVE has given up, or its job is there; it backs up without a freeze

From `arm` on there is no file I/O: everything is open, the record is mapped memory (frozen_record.py), waits are on
sockets. Nobody may connect to the agent between PVE's ping and its job unless they own the freeze: PVE's thaw would
wait behind them (facts/vzdump.md). That is why a thaw waits for the visible job, and a veto for PVE to give up.

Others wait at that socket too: a GUI that shows a guest's addresses, a chained script. PVE is known by its socket: the
kernel tells which sockets wait, and /proc which of them vzdump's worker holds (procfs is memory, not a disk).

A veto must not depend on anything but the connection: not on QMP, not on the agent's answers, not on /run.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError, TimedOut
from pvehook.freeze.agent_queue import AgentQueue
from pvehook.guest.agent import AgentConnection, Pending, open_agent
from pvehook.guest.backup_tracker import BackupTracker, Over, Running
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import connect
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, sockets_of
from pvehook.host.waiters import WaiterWatch
from pvehook.rescue.freeze_record import FrozenRecord, record_path
from pvehook.rescue.thaw import Thawed, thaw_until_thawed

Step = Literal[
    "recorded",
    "held",
    "armed",
    "pve-arrived",
    "freezing",
    "frozen",
    "let-go",
    "job-seen",
    "thawing",
    "thawed",
    "settled",
]
STEPS: tuple[Step, ...] = get_args(Step)
"""Every step that a freeze passes, in order. The kill matrix of the tests is made from this list."""

LOOK_EVERY_S = 0.002
JOB_LOOK_EVERY_S = 0.25
"""While nobody has arrived: a backup that began without asking the agent ends the wait."""

JOB_LOOK_S = 0.1
"""One such look: a QMP that is slow must not hide PVE's arrival."""

SYNC_S = 1.0
SEND_S = 0.5
QMP_S = 1.0
SLICE_S = 0.05
"""How long one wait for a late answer lasts before it is asked again whether anything else has happened."""

ASK_AGAIN_S, ASK_AGAIN_AT_MOST_S = 0.5, 5.0
"""Between two thaws that wait behind a freeze that hangs."""

THAW_RESERVE_S = 0.3
"""A thaw takes 4 to 20 ms; it begins this long before the bound."""


class Limits(NamedTuple):
    """The budgets of design/freeze.md, in seconds."""

    reply_within_s: float
    frozen_at_most_s: float
    wait_for_pve_s: float
    veto_hold_at_most_s: float


class Outcome(NamedTuple):
    """What became of one rendezvous."""

    consistency: Literal["filesystem-consistent", "crash-consistent", "left-to-pve"]
    why: str
    frozen_ms: int | None = None
    """Freeze sent to thaw confirmed; None when nothing was frozen."""
    filesystems_frozen: int | None = None
    filesystems_thawed: int | None = None
    waited_for_pve_ms: int | None = None
    hung: bool = False
    """The freeze was not answered in its time."""


class Rendezvous:
    """One guest's meeting with PVE, in a thread of its own."""

    def __init__(
        self,
        node: Node,
        vmid: int,
        worker: ProcessId,
        *,
        veto: bool,
        mountpoints: tuple[str, ...] | None,
        limits: Limits,
        at_step: Callable[[Step], None],
        on_end: Callable[[Outcome], None],
    ) -> None:
        self.vmid = vmid
        self._node = node
        self._worker = worker
        self._veto = "vetoed" if veto else ""
        self._mountpoints = mountpoints
        self._limits = limits
        self._at_step = at_step
        self._on_end = on_end
        self._agent_path = node.path(f"/var/run/qemu-server/{vmid}.qga")
        self._qmp_path = node.path(f"/var/run/qemu-server/{vmid}.qmp")
        self.alert: str | None = None
        """What an administrator must look at, found while arming."""
        self._open = contextlib.ExitStack()
        self._hold = self._open.enter_context(contextlib.ExitStack())
        self._watch: WaiterWatch | None = None
        self._abandoned = threading.Event()
        self._not_frozen = threading.Event()
        self._not_frozen.set()
        self._ended = threading.Event()
        self._tracker = BackupTracker()
        self._arrived_s: float | None = None
        self._frozen_from_s = 0.0
        self._status_asked: Pending | None = None
        self._ask_at_s, self._ask_pause_s = 0.0, ASK_AGAIN_S
        self.outcome: Outcome | None = None

    # What the phases call

    def arm(self, now_s: float) -> None:
        """Holds the agent's socket, opens everything and starts the thread. Raises GuestError when the socket cannot be
        held; then PVE meets the agent as if we were not there. Whatever else fails makes the freeze a veto."""
        try:
            with contextlib.suppress(NodeError):
                self._watch = self._open.enter_context(WaiterWatch(self._node, self._agent_path))
            if self._veto:
                with contextlib.suppress(GuestError):  # a veto holds without it, until PVE has given up
                    self._arm_tracker(JOB_LOOK_S)
            else:
                self._veto = self._prepare_freeze(now_s)
            if self._veto:
                self._hold.close()
                # Whoever is served before us, PVE comes after us.
                self._hold.enter_context(connect(self._agent_path))
            self._at_step("held")
            _lock_memory()
            self._armed_s = time.monotonic()
            threading.Thread(target=self._run, name=f"freeze-{self.vmid}", daemon=True).start()
        except BaseException:
            self._open.close()
            raise
        self._at_step("armed")

    def _prepare_freeze(self, now_s: float) -> str:
        """All that a freeze needs and a veto does not. Why there can be no freeze; "" when there can."""
        if self._watch is None:
            return "it cannot be seen who waits for the agent"
        try:
            self._arm_tracker(QMP_S)
            self._record = FrozenRecord(
                record_path(self._node, self.vmid),
                self.vmid,
                (self._worker.pid, self._worker.start_ticks),
                self._agent_path,
                now_s,
            )
            self._open.callback(self._record.remove)
            self._line = AgentQueue(self._agent_path, self._watch)
            self._open.callback(self._line.leave)
            self._at_step("recorded")
            deadline = Deadline.after(SYNC_S)
            self._agent: AgentConnection = self._hold.enter_context(open_agent(self._agent_path, deadline))
            # From here on nobody else reaches the agent: what is frozen now was frozen by somebody else.
            if self._agent.fsfreeze_status(deadline) == "frozen":
                self.alert = "it was frozen by somebody else after pre-stop; pvehook does not thaw that"
                return "frozen by somebody else since pre-stop"
        except (GuestError, OSError) as error:
            return f"when PVE was about to freeze it: {error}"
        return ""

    def abandon(self) -> None:
        """The backup is over, one way or another: let go, thaw if need be."""
        self._abandoned.set()

    def wait_until_not_frozen(self, seconds: float) -> bool:
        """Whether nothing of ours is frozen, waiting at most this long."""
        return self._not_frozen.wait(seconds)

    def wait_until_ended(self, seconds: float) -> bool:
        """Whether the rendezvous has come to its end, waiting at most this long."""
        return self._ended.wait(seconds)

    # The thread

    def _run(self) -> None:
        outcome = Outcome("crash-consistent", "fault in the rendezvous")
        try:
            outcome = self._meet()
        except Exception as fault:  # whatever happened: nothing may stay frozen
            outcome = Outcome("crash-consistent", f"fault in the rendezvous: {fault!r}")
            if not self._not_frozen.is_set():
                self._thaw()
        finally:
            self._at_step("settled")
            self._open.close()
            self.outcome = outcome
            self._on_end(outcome)
            self._ended.set()

    def _meet(self) -> Outcome:
        if self._veto:
            return self._keep_pve_from_freezing(self._veto)
        try:
            not_met = self._wait_for_pve()
        except NodeError:
            not_met = "the VM ended"
        if not_met:
            self._hold.close()
            return Outcome("left-to-pve", not_met)
        self._at_step("pve-arrived")
        return self._freeze()

    def _wait_for_pve(self) -> str:
        """Until PVE waits behind us: "", or why it did not come. Our own connection is accepted already: its sync was
        answered, so it is not mistaken for a waiter."""
        until_s = self._armed_s + self._limits.wait_for_pve_s
        next_job_look_s = self._armed_s + JOB_LOOK_EVERY_S
        while not self._pve_waits():
            now_s = time.monotonic()
            if self._abandoned.wait(LOOK_EVERY_S):
                return "the backup ended before PVE asked the agent"
            # What a list leaves out must not be frozen after all, so a list has no such limit.
            if now_s >= until_s and self._mountpoints is None:
                return f"PVE did not ask the agent within {self._limits.wait_for_pve_s:g} s"
            if now_s >= next_job_look_s:
                if self._backup_has_begun(JOB_LOOK_S):
                    return "PVE began its backup without asking the agent"
                next_job_look_s = now_s + JOB_LOOK_EVERY_S
        self._arrived_s = time.monotonic()
        return ""

    def _keep_pve_from_freezing(self, why: str) -> Outcome:
        """Holds until PVE's ping has given up, or its job is there, or the backup is over. There is no other end: who
        else comes and goes proves nothing, and holding on costs PVE nothing once its ping has failed."""
        look_s = 0.0
        gives_up_s = None if self._arrived_s is None else time.monotonic() + self._limits.veto_hold_at_most_s
        while not self._abandoned.wait(LOOK_EVERY_S):
            waits = self._pve_waits_or_unknown()
            now_s = time.monotonic()
            if waits and gives_up_s is None:
                self._arrived_s, gives_up_s = now_s, now_s + self._limits.veto_hold_at_most_s
            if gives_up_s is not None and (waits is False or now_s >= gives_up_s):
                break
            if now_s >= look_s:
                if self._backup_has_begun(JOB_LOOK_S):
                    break
                look_s = now_s + JOB_LOOK_EVERY_S
        self._hold.close()
        return Outcome("crash-consistent", why, waited_for_pve_ms=self._waited_ms())

    def _freeze(self) -> Outcome:
        self._record.say("freezing")
        self._not_frozen.clear()
        self._frozen_from_s = time.monotonic()
        self._at_step("freezing")
        assert self._arrived_s is not None  # noqa: S101  (it arrived, that is why we freeze)
        pending: Pending | None = None
        try:
            pending = self._agent.send_freeze(self._mountpoints, Deadline.after(SEND_S))
            patience_s = self._arrived_s + self._limits.reply_within_s - time.monotonic()
            frozen = self._agent.receive_count(pending, Deadline.after(max(patience_s, 0.001)))
        except TimedOut as error:
            return self._freeze_hangs(error)
        except GuestError as error:
            # Refused, or an answer that is none: whether something is frozen only the status can tell. It said thawed
            # on this connection when we armed, and nobody else could reach the agent since: what is frozen is ours.
            was_frozen = self._thaw_on_hold()
            frozen_ms = self._frozen_ms() if was_frozen else None
            outcome = self._keep_pve_from_freezing(f"the freeze failed: {error}")
            if was_frozen is None:
                frozen_ms = self._frozen_ms(self._thaw())
            return outcome._replace(frozen_ms=frozen_ms)
        if frozen == 0:
            self._nothing_is_frozen()
            return self._keep_pve_from_freezing("the freeze reached no filesystem")
        if self._pve_waits_or_unknown() is False:
            thawed = self._thaw()
            why = "PVE had given up and gone on before the guest was frozen"
            return Outcome("crash-consistent", why, frozen_ms=self._frozen_ms(thawed), filesystems_frozen=frozen)
        self._record.say("frozen")
        self._at_step("frozen")
        self._line.stand()
        self._hold.close()
        self._at_step("let-go")
        job_seen = self._wait_for_job()
        if job_seen:
            self._at_step("job-seen")
        thawed = self._thaw()
        return Outcome(
            "filesystem-consistent" if job_seen else "crash-consistent",
            f"{frozen} filesystems were frozen when the backup job began" if job_seen else self._why_no_job(),
            frozen_ms=self._frozen_ms(thawed),
            filesystems_frozen=frozen,
            filesystems_thawed=thawed.filesystems,
            waited_for_pve_ms=self._waited_ms(),
        )

    def _wait_for_job(self) -> bool:
        until_s = self._frozen_from_s + self._limits.frozen_at_most_s - THAW_RESERVE_S
        while time.monotonic() < until_s:
            self._line.yield_to_pve()
            left_s = until_s - time.monotonic()
            if self._backup_has_begun(min(QMP_S, max(left_s, 0.01))):
                return True
            if self._abandoned.wait(LOOK_EVERY_S):
                return False
        return False

    def _why_no_job(self) -> str:
        if self._abandoned.is_set():
            return "the backup ended before its job began"
        return (
            f"PVE's backup job was not there after {self._limits.frozen_at_most_s:g} s; the guest was thawed without it"
        )

    # A freeze that hangs

    def _freeze_hangs(self, error: TimedOut) -> Outcome:
        """The agent is serial: a thaw sent now runs at the moment the freeze ends. PVE is kept from freezing too."""
        self._record.say("thawing")
        self._at_step("thawing")
        pve_waits_until_s = time.monotonic() + self._limits.veto_hold_at_most_s
        thawed: Thawed | None = None
        while thawed is None:
            thawed = self._thawed_behind_the_freeze()
            if thawed is None and not self._pve_still_waits(pve_waits_until_s):
                # PVE is gone. From here on somebody else may use the agent between two of our attempts.
                break
        self._wait_for_pve_to_give_up(pve_waits_until_s)
        if thawed is None:
            thawed = self._thawed_in_time_or_later()
        self._thaw_is_over()
        return Outcome(
            "crash-consistent",
            f"the freeze was not answered within {self._limits.reply_within_s:g} s ({error})",
            frozen_ms=self._frozen_ms(thawed),
            filesystems_thawed=thawed.filesystems,
            waited_for_pve_ms=self._waited_ms(),
            hung=True,
        )

    def _thawed_behind_the_freeze(self) -> Thawed | None:
        """Has the thaw, and the question whether it worked, wait on the held connection behind the freeze.

        They are sent again after ever longer pauses: an agent that was restarted meanwhile never saw them. Not at every
        look, since a guest that hangs for an hour would have to answer them all when it wakes, to whoever asks next."""
        try:
            now_s = time.monotonic()
            if now_s >= self._ask_at_s:
                self._agent.send_thaw(Deadline.after(SEND_S))
                asked = self._agent.send_status(Deadline.after(SEND_S))
                self._status_asked = self._status_asked or asked
                self._ask_at_s = now_s + self._ask_pause_s
                self._ask_pause_s = min(2 * self._ask_pause_s, ASK_AGAIN_AT_MOST_S)
            if self._status_asked is None:
                time.sleep(SLICE_S)
                return None
            if self._agent.receive_status(self._status_asked, Deadline.after(SLICE_S)) == "thawed":
                return Thawed("thawed", 0, "thawed behind the freeze", time.monotonic())
            self._status_asked = None
        except TimedOut:
            pass
        except GuestError:
            # Nothing sensible comes on this connection any more; kept open it would be in our own way.
            self._hold.close()
            return self._thaw_until_thawed()
        return None

    def _thawed_in_time_or_later(self) -> Thawed:
        """Holds the connection as long as the freeze hangs; the thaw waits in it already."""
        while True:
            thawed = self._thawed_behind_the_freeze()
            if thawed is not None:
                return thawed

    def _pve_still_waits(self, until_s: float) -> bool:
        waits = self._pve_waits_or_unknown() is not False
        return time.monotonic() < until_s and not self._abandoned.is_set() and waits

    def _wait_for_pve_to_give_up(self, until_s: float) -> None:
        while self._pve_still_waits(until_s):
            self._abandoned.wait(LOOK_EVERY_S)

    # Thawing

    def _thaw_on_hold(self) -> bool | None:
        """After a freeze that was answered badly: thaw on the held connection. Whether anything was frozen; None: no
        sensible answer. The thaw is on its way then, and the connection still keeps PVE from an agent like that."""
        try:
            deadline = Deadline.after(SYNC_S)
            if self._agent.fsfreeze_status(deadline) == "thawed":
                self._nothing_is_frozen()
                return False
            self._agent.fsfreeze_thaw(deadline)
            if self._agent.fsfreeze_status(deadline) == "thawed":
                self._thaw_is_over()
                return True
        except GuestError:
            with contextlib.suppress(GuestError):
                self._agent.send_thaw(Deadline.after(SEND_S))
        return None

    def _thaw(self) -> Thawed:
        self._record.say("thawing")
        self._at_step("thawing")
        self._hold.close()
        thawed = self._thaw_until_thawed()
        self._thaw_is_over()
        return thawed

    def _thaw_until_thawed(self) -> Thawed:
        """Never given up while the VM runs: a guest that stays frozen is the worst that can happen."""
        return thaw_until_thawed(self._agent_path, give_up=lambda: False, connected=self._line.give())

    def _thaw_is_over(self) -> None:
        self._nothing_is_frozen()
        self._at_step("thawed")

    def _nothing_is_frozen(self) -> None:
        self._record.say("thawed")
        self._not_frozen.set()

    # What is seen

    def _pve_waits(self) -> bool:
        """Whether vzdump's worker itself waits behind us. Where that cannot be told, whether anybody does. Raises
        NodeError when the VM has ended."""
        assert self._watch is not None  # noqa: S101  (without it there is no freeze)
        waiting = self._watch.waiting_sockets()
        if waiting is None:
            return self._watch.waiters_alive() > 0
        if not waiting:
            return False
        own = sockets_of(self._node, self._worker.pid)
        return True if own is None else bool(waiting & own)

    def _pve_waits_or_unknown(self) -> bool | None:
        """The same for a veto, which needs certainty: None where it cannot be told."""
        try:
            if self._watch is None or self._watch.waiting_sockets() is None:
                return None
            return self._pve_waits()
        except NodeError:
            return None

    def _backup_has_begun(self, within_s: float = QMP_S) -> bool:
        """In a connection as short as possible: PVE itself wants this socket, and serves one client at a time."""
        deadline = Deadline.after(within_s)
        try:
            with open_qmp(self._qmp_path, deadline) as qmp:
                return isinstance(self._tracker.poll(qmp, deadline, with_jobs=False), Running | Over)
        except GuestError:
            return False

    def _arm_tracker(self, within_s: float) -> None:
        deadline = Deadline.after(within_s)
        with open_qmp(self._qmp_path, deadline) as qmp:
            self._tracker.arm(qmp, deadline)

    def _frozen_ms(self, thawed: Thawed | None = None) -> int:
        end_s = thawed.at_s if thawed is not None else time.monotonic()
        return round((end_s - self._frozen_from_s) * 1000)

    def _waited_ms(self) -> int | None:
        return None if self._arrived_s is None else round((self._arrived_s - self._armed_s) * 1000)


_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # Linux include/uapi/asm-generic/mman.h


def _lock_memory() -> None:
    """Keeps what is in memory there: a page that must be read back from a stalled disk would hold up a thaw. Not
    allowed outside of the service (RLIMIT_MEMLOCK), and then no fault."""
    ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
