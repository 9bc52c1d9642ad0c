"""Where PVE is: does vzdump's worker wait for the agent, has its backup begun?

Others wait at the agent's socket too: a GUI that shows a guest's addresses, a chained script. PVE is known by its
socket: the kernel tells which sockets wait, and /proc which of them the worker holds (procfs is memory, not a disk).

The monitor belongs to PVE until its backup has begun. QEMU serves one client at a time, so while the guest is frozen no
poll of ours may be in front of PVE's `backup`: we wait in the queue behind it, and poll when it has been served.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError
from pvehook.freeze.socket_queue import SocketQueue
from pvehook.guest.backup_tracker import BackupTracker
from pvehook.guest.qmp import QmpConnection, greet
from pvehook.guest.sockets import Connection, connect
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, sockets_of
from pvehook.host.waiters import WaiterWatch, watch_waiters

POLL_S = 1.0
"""One poll of the monitor, for a monitor that answers at once. A slow one has as much longer as it showed."""

ARM_S = 2.5
"""For the first one; it is sent while nothing is frozen."""

POLL_EVERY_S = 0.25
"""While PVE has not come; seldom enough that a slow monitor is mostly free."""

ON_BEGUN_S = 0.1
QUICK_MONITOR_S = 0.02
"""What is done between start and thaw costs the guest two answers of the monitor; from a slower one it is not asked."""

OnBegun = Callable[[QmpConnection, tuple[BlockJob, ...], Deadline], None]
"""What else is done on the monitor's connection when the backup of a frozen guest has begun. It raises nothing but
GuestError."""

SAFETY_POLL_EVERY_S = 1.0
"""While frozen and nobody has come to the monitor: for a backup that began in a way which we do not know. Later where
agent or monitor are slow, or it would be in front of PVE's command."""


class PveWatch:
    """One guest's. Used by one thread. The agent's waiters are watched as soon as it is made, if the kernel tells them:
    `can_see` says so. `stack` closes what is opened."""

    def __init__(
        self, stack: ExitStack, node: Node, worker: ProcessId, agent_path: str, qmp_path: str, on_begun: OnBegun
    ) -> None:
        self._node = node
        self._worker = worker
        self._qmp_path = qmp_path
        self._on_begun = on_begun
        self._tracker = BackupTracker()
        self._agent = _waiters(stack, node, agent_path)
        self.can_see = self._agent is not None
        self.agent_queue = SocketQueue(agent_path, self._agent)
        self._queue = SocketQueue(qmp_path, _waiters(stack, node, qmp_path))
        for close in (self.agent_queue.close, self._queue.close, self.leave_monitor):
            stack.callback(close)
        self._waiting: Connection | None = None
        self._next_poll_s = 0.0
        self.monitor_latency_s = 0.0
        """How long the monitor took for one answer, when it was asked last."""

    # At the agent's socket

    def waits(self) -> bool:
        """Whether the worker waits for the agent. Where that cannot be told, whether anybody does. Raises NodeError
        when the VM has ended."""
        assert self._agent is not None  # noqa: S101  (without it there is no freeze)
        waiting = self._agent.waiting_sockets()
        if waiting is None:
            return self._agent.waiters_alive() > 0
        if not waiting:
            return False
        own = sockets_of(self._node, self._worker.pid)
        return True if own is None else bool(waiting & own)

    def waits_or_unknown(self) -> bool | None:
        """The same for a veto, which needs certainty: None where it cannot be told."""
        try:
            if self._agent is None or self._agent.waiting_sockets() is None:
                return None
            return self.waits()
        except NodeError:
            return None

    # At the monitor

    def arm(self, within_s: float = ARM_S) -> None:
        """Remembers what QEMU shows before the backup begins. Raises GuestError."""
        deadline = Deadline.after(within_s)
        began_s = time.monotonic()
        with connect(self._qmp_path) as connection:
            qmp = greet(connection, deadline)
            self._tracker.arm(qmp, deadline)
            self.monitor_latency_s = (time.monotonic() - began_s) / qmp.answers

    def backup_has_begun(self) -> bool | None:
        """To be called every few milliseconds, and `leave_monitor` when it is not called any more: polls now and then.
        None: no poll was due, or it was not answered.
        A poll waits for its turn in one connection: one that is closed and made anew takes two of the three places in
        QEMU's queue. Only when QEMU serves it something is sent."""
        now_s = time.monotonic()
        if self._waiting is None and now_s >= self._next_poll_s:
            self._next_poll_s = now_s + max(POLL_EVERY_S, 20 * self.monitor_latency_s)
            with contextlib.suppress(GuestError):
                self._waiting = connect(self._qmp_path)
        if self._waiting is None or not self._waiting.is_readable:
            return None
        connection, self._waiting = self._waiting, None
        with contextlib.suppress(GuestError):
            return self._poll(connection, Deadline.after(self._poll_s))
        return None

    def leave_monitor(self) -> None:
        """Gives up the place of a poll that has not had its turn. Once QEMU serves it, everybody else waits for what
        nobody sends: PVE's `backup` too, for as long as a freeze hangs."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def expect_start(self, agent_latency_s: float) -> None:
        """The guest is frozen, and PVE comes to the monitor when the agent has given it four answers."""
        self._queue.go_to_end()
        self._safety_every_s = SAFETY_POLL_EVERY_S + 4 * (agent_latency_s + self.monitor_latency_s)
        self._next_poll_s = time.monotonic() + (self._safety_every_s if self._queue.has_place else 0.0)
        self._has_passed = False

    def start_seen(self, within_s: float) -> bool:
        """To be called every few milliseconds after `expect_start`: whether the backup has begun."""
        # Only once: PVE's next connection (`cont`) follows its backup command at once, and the guest is frozen.
        if not self._has_passed:
            self._has_passed = self._queue.yield_to_pve()
        is_our_turn = self._has_passed and self._queue.is_greeted
        if not is_our_turn and time.monotonic() < self._next_poll_s:
            return False
        with contextlib.suppress(GuestError):
            deadline = Deadline.after(min(self._poll_s, within_s))
            if self._poll(self._queue.take() or connect(self._qmp_path), deadline, is_frozen=True):
                return True
        self._queue.go_to_end()
        self._has_passed = False
        pause_s = self._safety_every_s if self._queue.has_place else self.monitor_latency_s
        self._next_poll_s = time.monotonic() + pause_s
        return False

    @property
    def _poll_s(self) -> float:
        return POLL_S + 8 * self.monitor_latency_s

    def _poll(self, connection: Connection, deadline: Deadline, *, is_frozen: bool = False) -> bool:
        with connection:
            qmp = greet(connection, deadline)
            progress = self._tracker.poll(qmp, deadline, with_jobs=False)
            if is_frozen and progress.state == "running" and self.monitor_latency_s < QUICK_MONITOR_S:
                with contextlib.suppress(GuestError):  # then the sampler does it, after the thaw
                    soon = Deadline.after(ON_BEGUN_S)
                    self._on_begun(qmp, progress.jobs or self._tracker.jobs(qmp, soon), soon)
        return progress.state != "not-yet"


def _waiters(stack: ExitStack, node: Node, path: str) -> WaiterWatch | None:
    with contextlib.suppress(NodeError):
        return stack.enter_context(watch_waiters(node, path))
    return None
