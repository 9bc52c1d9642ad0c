"""The rendezvous with PVE: freeze when it is about to, thaw when its backup has begun, or keep it from freezing.

    arm        post-restart: connect to the agent, synchronise, HOLD the socket; only then the hook returns
    arrive     3 to 7 ms later PVE connects and waits behind us: guest-ping, 3 s patience
    freeze     on the held connection; released, we go to the end of the queue (socket_queue.py);
               PVE pings, sees "frozen", skips its own freeze, starts its backup
    thaw       as soon as the backup has begun (pve_watch.py), or the limit is reached; until the guest says "thawed"
    (slow      an agent that answers late gives PVE its ping first: freeze between PVE's ping and its next command)
    veto       hold until PVE has given up, or its backup has begun; it backs up without a freeze

From `arm` on there is no file I/O: everything is open, the record is mapped memory (rescue/freeze_record.py), waits are
on sockets. Nobody may connect to the agent between PVE's ping and its backup unless they own the freeze: PVE's thaw
would wait behind them (facts/vzdump.md). That is why a thaw waits for the start of the backup, and a veto for PVE to
give up.

A veto must not depend on anything but the connection: not on QMP, not on the agent's answers, not on /run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from pvehook.contract.text import counted
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError, TimedOut
from pvehook.freeze.failed_freeze import SEND_S, thaw_behind_freeze, thaw_failed
from pvehook.freeze.limits import ARM_ANSWERS_S, PVE_NEXT_S, PVE_PING_S, VETO_ARM_S, Limits, Outcome
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.freeze.pve_watch import OnBegun, PveWatch
from pvehook.freeze.watchdog import lock_memory
from pvehook.guest.agent import open_agent, synchronise, thaw_at_once
from pvehook.guest.sockets import connect
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.rescue.freeze_record import FrozenRecord, record_path
from pvehook.rescue.thaw import Thawed, Waiting, thawing

POLL_EVERY_S = 0.002


class Rendezvous:
    """One guest's meeting with PVE, in a thread of its own."""

    def __init__(
        self,
        node: Node,
        vmid: int,
        worker: ProcessId,
        freezes: OpenFreezes,
        *,
        veto: bool,
        mountpoints: tuple[str, ...] | None,
        limits: Limits,
        on_begun: OnBegun,
        on_end: Callable[[Outcome], None],
    ) -> None:
        self.vmid = vmid
        self._node = node
        self._worker = worker
        self._veto = "vetoed" if veto else ""
        self._mountpoints = mountpoints
        self._limits = limits
        self._freezes = freezes
        self._watchdog = freezes.watchdog
        self._at_step = freezes.at_step
        self._on_begun = on_begun
        self._on_end = on_end
        self._agent_path = node.path(f"/var/run/qemu-server/{vmid}.qga")
        self._qmp_path = node.path(f"/var/run/qemu-server/{vmid}.qmp")
        self.alert: str | None = None  # what needs attention, found while arming
        self.abandoned = threading.Event()
        """To be set when the backup is over, one way or another: the agent is released, and thawed if need be."""
        self.not_frozen = threading.Event()
        self.not_frozen.set()
        self.ended = threading.Event()
        self._open = contextlib.ExitStack()
        self._recorded = contextlib.ExitStack()
        self._hold = self._open.enter_context(contextlib.ExitStack())
        self._pinged = False
        self._arrived_s: float | None = None
        self._frozen_from_s = 0.0

    def arm(self, now_s: float) -> None:
        """Holds the agent's socket, opens everything and starts the thread. Raises GuestError when the socket cannot be
        held; then PVE meets the agent as if we were not there. Whatever else fails makes the freeze a veto."""
        try:
            paths = self._agent_path, self._qmp_path
            self._pve = PveWatch(self._open, self._node, self._worker, *paths, self._on_begun)
            if self._veto:
                with contextlib.suppress(GuestError):  # a veto holds without it, until PVE has given up
                    self._pve.arm(VETO_ARM_S)
            else:
                self._veto = self._prepare_freeze(now_s)
            if self._veto:
                self._hold.close()
                # Whoever is served before us, PVE comes after us.
                self._hold.enter_context(connect(self._agent_path))
            self._at_step("held")
            lock_memory()
            self._armed_s = time.monotonic()
            run, name = self._run(), f"freeze-{self.vmid}"
            threading.Thread(target=self._freezes.run, args=(run,), name=name, daemon=True).start()
        except BaseException:
            self._open.close()
            self._recorded.close()
            raise
        self._at_step("armed")

    def _prepare_freeze(self, now_s: float) -> str:
        """All that a freeze needs and a veto does not. Why there can be no freeze; "" when there can."""
        if not self._pve.can_see:
            return "it cannot be seen who waits for the agent"
        try:
            self._pve.arm()
            path = record_path(self._node, self.vmid)
            self._record = FrozenRecord(path, self.vmid, self._worker.pid, self._agent_path, now_s)
            self._recorded.callback(self._record.remove)
            self._at_step("recorded")
            began_s = time.monotonic()
            deadline = Deadline.after(ARM_ANSWERS_S)
            self._agent = self._hold.enter_context(open_agent(self._agent_path, deadline))
            synchronised_s = time.monotonic()
            # From here on nobody else reaches the agent: what is frozen now was frozen by somebody else.
            status = self._agent.fsfreeze_status(deadline)
            # The quicker of two: the first may find the agent in its sleep of 100 ms (socket_queue.py), and either may
            # meet a moment in which the machine was busy. Neither makes an agent slow.
            latency_s = min(synchronised_s - began_s, time.monotonic() - synchronised_s)
            self._limits = self._limits._replace(latency_s=latency_s)
        except (GuestError, OSError) as error:
            return f"when PVE was about to freeze it: {error}"
        if status == "frozen":
            self.alert = "it was frozen by somebody else after pre-stop; pvehook does not thaw that"
            return "frozen by somebody else since pre-stop"
        return ""

    # The meeting, in its own thread. It yields where only the thaw is left, and the guest does not answer it.

    def _run(self) -> Waiting[None]:
        outcome = Outcome("crash-consistent", "fault in the rendezvous")
        try:
            outcome = yield from self._meet()
        except Exception as fault:  # whatever happened: nothing may stay frozen
            outcome = Outcome("crash-consistent", f"fault in the rendezvous: {fault!r}")
            if not self.not_frozen.is_set():
                yield from self._thaw()
        finally:
            self._at_step("settled")
            self._open.close()
            if self._arrived_s is not None:
                waited_s = self._arrived_s - self._armed_s
                outcome = outcome._replace(waited_for_pve_ms=round(waited_s * 1000))
            self._on_end(outcome)
            self._recorded.close()  # now that the outcome is written down
            self.ended.set()

    def _meet(self) -> Waiting[Outcome]:
        if self._veto:
            return self._keep_pve_from_freezing(self._veto)
        try:
            not_met = self._wait_for_pve()
        except NodeError:
            not_met = "the VM ended"
        finally:
            self._pve.leave_monitor()
        if not_met:
            self._hold.close()
            return Outcome("left-to-pve", not_met)
        self._at_step("pve-arrived")
        not_met = self._let_ping_pass() if self._limits.is_slow and self._mountpoints is None else ""
        return Outcome("left-to-pve", not_met) if not_met else (yield from self._freeze())

    def _wait_for_pve(self) -> str:
        """Until PVE waits behind us: "", or why it did not come. Our own connection is accepted, so no waiter."""
        until_s = self._armed_s + self._limits.config.wait_for_pve_s
        not_begun = False
        while not self._pve.waits():
            now_s = time.monotonic()
            if self.abandoned.wait(POLL_EVERY_S):
                return "the backup ended before PVE came to the agent"
            # Fleecing images may take long: while QEMU reports no backup, PVE will come. And what a list leaves out
            # must not be frozen after all.
            if now_s >= until_s and not not_begun and self._mountpoints is None:
                return f"PVE did not come to the agent within {self._limits.config.wait_for_pve_s:g} s"
            begun = self._pve.backup_has_begun()
            if begun:
                return "PVE began its backup without the agent"
            not_begun |= begun is False
        self._arrived_s = time.monotonic()
        return ""

    def _let_ping_pass(self) -> str:
        """A slow agent's answer to PVE's ping is not waited for frozen: we are served after it, before PVE's next
        command. "", or why there is no freeze of ours. From here on PVE cannot be kept from freezing."""
        try:
            behind = connect(self._agent_path)
        except GuestError:
            return ""  # two others wait already: frozen before the ping, as with a fast agent
        self._hold.close()
        self._hold.enter_context(behind)
        self._pinged = True
        try:
            self._agent = synchronise(behind, Deadline.after(PVE_PING_S + self._limits.answers_s))
            until_s = time.monotonic() + PVE_NEXT_S
            while not self._pve.waits():
                if time.monotonic() >= until_s or self.abandoned.wait(POLL_EVERY_S):
                    raise TimedOut("PVE has not come again after its ping")
        except (GuestError, NodeError) as error:
            self._hold.close()
            return f"its agent is slow: {error}"
        self._arrived_s = time.monotonic()
        return ""

    def _freeze(self) -> Waiting[Outcome]:
        self._record.say("freezing")
        self.not_frozen.clear()
        self._watchdog.freezes(self.vmid, self._limits.frozen_at_most_s)
        self._frozen_from_s = time.monotonic()
        self._at_step("freezing")
        assert self._arrived_s is not None  # noqa: S101  (that is why we freeze)
        try:
            pending = self._agent.send_freeze(self._mountpoints, Deadline.after(SEND_S))
            patience_s = self._arrived_s + self._limits.freeze_within_s(pinged=self._pinged) - time.monotonic()
            frozen = self._agent.receive_count(pending, Deadline.after(max(patience_s, 0.001)))
        except TimedOut as error:
            return (yield from self._freeze_hangs(error))
        except GuestError as error:
            return (yield from self._freeze_failed(error))
        if frozen == 0:
            self._thaw_is_over()
            return self._keep_pve_from_freezing("the freeze reached no filesystem")
        if self._pve.waits_or_unknown() is False:
            thawed = yield from self._thaw()
            why = "PVE had given up and gone on before the guest was frozen"
            frozen_ms = self._frozen_ms(thawed.at_s)
            return Outcome("crash-consistent", why, frozen_ms, frozen, thawed.filesystems)
        self._record.say("frozen")
        self._at_step("frozen")
        self._pve.agent_queue.go_to_end()
        self._hold.close()
        self._at_step("released")
        has_begun = self._wait_for_start()
        if has_begun:
            self._at_step("backup-begun")
        thawed = yield from self._thaw()
        why = f"{counted(frozen, 'filesystem')} {'was' if frozen == 1 else 'were'} frozen when the backup began"
        if not has_begun:
            at_most = f"{self._limits.frozen_at_most_s:g} s"
            why = f"PVE's backup had not begun after {at_most}; the guest was thawed without it"
            if self.abandoned.is_set():
                why = "the backup ended before its job began"
        return Outcome(
            "filesystem-consistent" if has_begun else "crash-consistent",
            why,
            frozen_ms=self._frozen_ms(thawed.at_s),
            filesystems_frozen=frozen,
            filesystems_thawed=thawed.filesystems,
        )

    def _wait_for_start(self) -> bool:
        until_s = self._frozen_from_s + self._limits.thaw_after_s
        self._pve.expect_start(self._limits.latency_s)
        while (left_s := until_s - time.monotonic()) > 0:
            self._watchdog.still_freezes()
            self._pve.agent_queue.yield_to_pve()
            if self._pve.start_seen(left_s):
                return True
            if self.abandoned.wait(POLL_EVERY_S):
                return False
        return False

    def _keep_pve_from_freezing(self, why: str) -> Outcome:
        """Holds until PVE's ping has given up, or its backup has begun or is over: who else comes proves nothing."""
        if self._pinged:
            self._hold.close()
            return Outcome("left-to-pve", why)
        gives_up_s = None if self._arrived_s is None else time.monotonic() + self._limits.config.veto_hold_at_most_s
        while not self.abandoned.wait(POLL_EVERY_S):
            waits = self._pve.waits_or_unknown()
            now_s = time.monotonic()
            if waits and gives_up_s is None:
                self._arrived_s, gives_up_s = now_s, now_s + self._limits.config.veto_hold_at_most_s
            if gives_up_s is not None and (waits is False or now_s >= gives_up_s):
                break
            if self._pve.backup_has_begun():
                break
        self._pve.leave_monitor()
        self._hold.close()
        return Outcome("crash-consistent", why)

    # A freeze that goes wrong

    def _freeze_hangs(self, error: TimedOut) -> Waiting[Outcome]:
        """PVE is kept from freezing too, until it has given up; from then on somebody else may come."""
        self._record.say("thawing")
        self._at_step("thawing")
        gives_up_s = time.monotonic() + self._limits.config.veto_hold_at_most_s

        def pve_waits() -> bool:
            waits = self._pve.waits_or_unknown() is not False
            return time.monotonic() < gives_up_s and not self.abandoned.is_set() and waits

        thawed = thaw_behind_freeze(self._agent, pve_waits, on_sent=lambda: self._watchdog.thaw_sent(self.vmid))
        while thawed is not None and pve_waits():
            self.abandoned.wait(POLL_EVERY_S)
        self._hold.close()
        thawed = thawed or (yield from thawing(self._agent_path))
        self._thaw_is_over()
        return Outcome(
            "left-to-pve" if self._pinged else "crash-consistent",
            f"the freeze was not answered within {self._limits.config.reply_within_s:g} s ({error})",
            frozen_ms=self._frozen_ms(thawed.at_s),
            filesystems_thawed=thawed.filesystems,
            hung=True,
        )

    def _freeze_failed(self, error: GuestError) -> Waiting[Outcome]:
        """Refused, or no sensible answer. It was thawed when we armed, and nobody else reaches the agent: what is
        frozen now is ours."""
        was_frozen = thaw_failed(self._agent, self._limits.answers_s)
        self._watchdog.thaw_sent(self.vmid)
        frozen_ms = self._frozen_ms(time.monotonic()) if was_frozen else None
        if was_frozen is not None:
            self._thaw_is_over()
        outcome = self._keep_pve_from_freezing(f"the freeze failed: {error}")
        if was_frozen is None:
            thawed = yield from self._thaw()
            frozen_ms = self._frozen_ms(thawed.at_s)
        return outcome._replace(frozen_ms=frozen_ms)

    # Thawing

    def _thaw(self) -> Waiting[Thawed]:
        """What we froze ourselves, so the thaw is sent without asking first."""
        self._record.say("thawing")
        self._at_step("thawing")
        self._hold.close()
        thawed: Thawed | None = None
        was_sent = False

        def sent() -> None:
            nonlocal was_sent
            was_sent = True
            self._watchdog.thaw_sent(self.vmid)

        with contextlib.suppress(GuestError, OSError):
            deadline = Deadline.after(self._limits.answers_s)
            with self._pve.agent_queue.take() or connect(self._agent_path) as connection:
                filesystems, at_s = thaw_at_once(connection, deadline, sent)
            thawed = Thawed("thawed", filesystems, "thawed", at_s)
        self._watchdog.thaw_sent(self.vmid)  # or it cannot be sent: from here on that is tried for as long as it takes
        thawed = thawed or (yield from thawing(self._agent_path, was_sent=was_sent))
        self._thaw_is_over()
        return thawed

    def _thaw_is_over(self) -> None:
        self._record.say("thawed")
        self._watchdog.thaw_sent(self.vmid)
        self.not_frozen.set()
        self._at_step("thawed")

    def _frozen_ms(self, thawed_s: float) -> int:
        return round((thawed_s - self._frozen_from_s) * 1000)
