"""A place at one of a VM's sockets behind PVE, for the time between our freeze and our thaw.

At the agent's: qemu-ga sleeps 100 ms each time it finds nobody connected (qga/main.c, channel_event_cb: "virtio
causes us to spin here when no process is attached to host-side chardev"). PVE sends each of its commands on a
connection of its own, so between two of them, and again before our thaw, the frozen guest would wait for that time.
Measured on 7.2 and 10.0 (tests/bench/freeze_window.py): a write in the guest waited 130 to 250 ms, of which the freeze
itself was 30.

At the monitor's: who is served after PVE knows that PVE has sent its command, without a poll that PVE waits behind.

So we are always connected, and say nothing; as soon as somebody waits behind us, we go to the end of the queue.

    PVE: guest-ping       we wait behind it        -> PVE closes, we are served; the agent never finds nobody
    PVE: ...-status       waits behind us          -> we go and wait behind it again, within one poll
    PVE: backup (QMP)     nobody waits             -> the thaw is sent on a connection that is served already

Only while the guest is frozen by us: PVE's own thaw would wait one poll for us. And only where the kernel shows who
waits (sock_diag): else PVE could not be told apart from us, and PVE would wait for us while we wait for it.
"""

from __future__ import annotations

from pvehook.errors import GuestError, NodeError
from pvehook.guest.sockets import Connection, connect
from pvehook.host.waiters import WaiterWatch


class SocketQueue:
    """One silent connection at the end of the queue. Nothing here waits or raises: without a place, whoever needs a
    connection makes a new one, 100 ms later where it is the agent's."""

    def __init__(self, path: str, watch: WaiterWatch | None) -> None:
        self._path = path
        self._watch = watch
        self._connection: Connection | None = None

    @property
    def has_place(self) -> bool:
        return self._connection is not None

    @property
    def is_greeted(self) -> bool:
        """Whether the other side has sent something: the monitor does when it serves us."""
        return self._connection is not None and self._connection.is_readable

    def go_to_end(self) -> None:
        """Connects behind everybody who waits now."""
        before, self._connection = self._connection, None
        try:
            if self._watch is not None and self._watch.waiting_sockets() is not None:
                self._connection = connect(self._path)
        except (GuestError, NodeError):
            pass
        if before is not None:
            before.close()

    def yield_to_pve(self) -> bool:
        """To be called every few milliseconds: whoever waits behind us is let to the front. Whether somebody was."""
        if self._connection is None or self._watch is None:
            return False
        try:
            waiting = self._watch.waiting_sockets()
        except NodeError:
            self.close()
            return False
        # While we wait ourselves, nobody waits for us.
        if not waiting or self._connection.inode in waiting:
            return False
        self.go_to_end()
        return True

    def take(self) -> Connection | None:
        """The connection, for the caller to use and to close."""
        taken, self._connection = self._connection, None
        return taken

    def close(self) -> None:
        """Gives up the place."""
        if (connection := self.take()) is not None:
            connection.close()
