"""A place at the agent's socket behind PVE, for the time between our freeze and our thaw.

qemu-ga sleeps 100 ms each time it finds nobody connected (qga/main.c, channel_event_cb: "virtio causes us to spin here
when no process is attached to host-side chardev"). PVE asks each of its questions on a connection of its own, so
between two of them, and again before our thaw, the frozen guest stands still for that time. Measured on 7.2 and 10.0
(tests/bench/freeze_window.py): a write in the guest waited 130 to 250 ms, of which the freeze itself was 30.

So somebody is always connected. We stand in line behind PVE, are served the moment it closes, and say nothing; as soon
as somebody stands behind us, we go to the end of the line.

    PVE: guest-ping       we wait behind it        -> PVE closes, we are served; the agent never finds nobody
    PVE: ...-status       waits behind us          -> we go and stand behind it again, within one look
    PVE: backup (QMP)     nobody waits             -> the thaw goes out on a connection that is served already

Only for one who owns the freeze: PVE's own thaw would wait one look for us. And only where the kernel tells who waits
(sock_diag): else we could not tell PVE from ourselves, and PVE would wait for us while we wait for it.
"""

from __future__ import annotations

from pvehook.errors import GuestError, NodeError
from pvehook.guest.sockets import Connection, connect
from pvehook.host.waiters import WaiterWatch


class AgentQueue:
    """One connection at a time, silent, at the end of the line. Nothing here waits, and nothing here raises: without
    a place the thaw makes a connection of its own, and comes 100 ms later."""

    def __init__(self, path: str, watch: WaiterWatch) -> None:
        self._path = path
        self._watch = watch
        self._standing: Connection | None = None

    def stand(self) -> None:
        """Goes to the end of the line, out of everybody's way."""
        left, self._standing = self._standing, None
        try:
            if self._watch.waiting_sockets() is not None:
                self._standing = connect(self._path)
        except (GuestError, NodeError):
            pass
        if left is not None:
            left.close()

    def yield_to_pve(self) -> None:
        """To be called every few milliseconds: whoever stands behind us is let to the front."""
        if self._standing is None:
            return
        try:
            waiting = self._watch.waiting_sockets()
        except NodeError:
            self.leave()
            return
        # While we wait ourselves, nobody waits for us.
        if waiting and self._standing.inode not in waiting:
            self.stand()

    def give(self) -> Connection | None:
        """The connection, for who has something to say on it; from now on it is theirs."""
        given, self._standing = self._standing, None
        return given

    def leave(self) -> None:
        """Closes it."""
        if self._standing is not None:
            self._standing.close()
            self._standing = None
