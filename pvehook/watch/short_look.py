"""One short connection to the monitor of a VM that nobody backs up now. It makes nobody wait.

    connect, greeting     within GREET_S, or it is given up
    each answer           within the caller's deadline
    all the while         whoever waits behind us, PVE above all, has our place as soon as it is seen

QEMU keeps a connection that was given up in its queue of three until it comes to accept it. So a monitor that did not
answer is connected to again only when that place is free: it never holds two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pvehook.deadline import Deadline
from pvehook.errors import Busy, GuestError, NodeError, TimedOut, Unreachable
from pvehook.guest.block_stats import disarm_histograms, read_disks
from pvehook.guest.qmp import QmpConnection, greet
from pvehook.guest.sockets import Connection, connect
from pvehook.host.node import Node
from pvehook.host.waiters import WaiterWatch, watch_waiters

GREET_S = 0.1
REMOVE_S = 0.5

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Doubled each time."""
BUSY_PART = 0.25
GONE_S = 2.0


def monitor_of(node: Node, vmid: int) -> str:
    """The path of a VM's monitor."""
    return node.path(f"/var/run/qemu-server/{vmid}.qmp")


@contextlib.contextmanager
def short_look(node: Node, vmid: int, *, hung: bool) -> Iterator[QmpConnection]:
    """A connection in command mode. `hung`: the last one was given up. Raises GuestError: Busy where somebody else
    waits, or our last place is still taken."""
    path = monitor_of(node, vmid)
    if hung and _place_is_taken(node, path):
        raise Busy(f"{path}: it has not come to the connection that was given up")
    with connect(path) as connection, contextlib.closing(_Yielding(node, connection)) as yielding:
        connection.while_waiting = yielding.check
        yield greet(connection, Deadline.after(GREET_S))


def _place_is_taken(node: Node, path: str) -> bool:
    try:
        with watch_waiters(node, path) as watch:
            return watch.places_left() > 0
    except NodeError:
        return False  # it listens no more, which connecting will tell


class _Yielding:
    """Who waits is looked up only when an answer takes long: finding the listener costs more than a quick answer."""

    def __init__(self, node: Node, connection: Connection) -> None:
        self._node = node
        self._connection = connection
        self._watch: WaiterWatch | None = None
        self._is_blind = False

    def check(self) -> None:
        """Raises Busy: somebody waits."""
        if self._is_blind:
            return
        try:
            if self._watch is None:
                self._watch = watch_waiters(self._node, self._connection.path)
            waiting = self._watch.waiting_sockets()
        except NodeError:
            self._is_blind = True  # the deadline ends it
            return
        if waiting is None:  # somebody else cannot be told apart from us
            self._is_blind = True
        elif waiting - {self._connection.inode}:
            raise Busy(f"{self._connection.path}: given up for somebody who waits behind us")

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


class LookBudget:
    """How many looks of one kind there may be, all guests together."""

    def __init__(self, at_once: float) -> None:
        self._at_once = self._left = at_once
        self._at_s: float | None = None

    def take(self, now_s: float, per_s: float) -> float:
        """0: one is taken. Else in how many seconds there will be one."""
        gained = (now_s - self._at_s) * per_s if self._at_s is not None else 0.0
        self._left, self._at_s = min(self._left + gained, self._at_once), now_s
        if self._left < 1.0:
            return (1.0 - self._left) / per_s
        self._left -= 1.0
        return 0.0


def pause_after(error: GuestError, misses: int) -> float:
    """For how long a monitor is left alone after `misses` looks without an answer, in seconds. Somebody who is served
    first is no fault of the monitor's."""
    pause_s = PAUSE_S * float(1 << min(misses - 1, 10))
    if isinstance(error, Busy):
        pause_s *= BUSY_PART
    return min(max(pause_s, GONE_S if isinstance(error, Unreachable) else 0.0), LONGEST_PAUSE_S)


def remove_histograms(node: Node, vmid: int) -> bool:
    """Those with our boundaries, if the VM still has some. False: it does not answer now."""
    try:
        with short_look(node, vmid, hung=False) as qmp:
            deadline = Deadline.after(REMOVE_S)
            disarm_histograms(qmp, [disk.qdev for disk in read_disks(qmp, deadline)], deadline)
    except GuestError as error:
        return not isinstance(error, (Busy, TimedOut))
    return True
