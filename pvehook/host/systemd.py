"""Socket activation and notification of systemd (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import os
import socket

FIRST_FD = 3


def listening_socket() -> socket.socket | None:
    """The socket that systemd bound for us, or None when we were not started by socket activation."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they are for us, not for what we start
    os.set_inheritable(FIRST_FD, False)
    return socket.socket(fileno=FIRST_FD)


def notify(state: str) -> None:
    """Notifies systemd, for instance `READY=1` or `WATCHDOG=1`. Outside of systemd it does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)
    except OSError:
        pass  # a systemd that does not listen must not end the daemon that its guests depend on
