"""The socket at which the hooks call: made here where systemd has not, and how a call is read and its caller known."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from typing import Final

from pvehook.contract.call import REQUEST_LIMIT_BYTES, BadCall

REQUEST_DEADLINE_S: Final = 2.0
"""A hook sends its line at once; whoever does not is no hook."""


def listen(path: str) -> socket.socket:
    """The hook's socket, made by ourselves: outside of systemd, in rehearsals and tests."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.chmod(os.path.dirname(path), 0o700)  # an exception may have made it before us, with the umask of a shell
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old_umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old_umask)
    listener.listen(128)
    return listener


def checked_caller(connection: socket.socket) -> int:
    """The process that calls, which is root's. Raises BadCall."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise BadCall(f"process {pid} belongs to user {uid}, only root may call")
    return int(pid)


def read_line(connection: socket.socket) -> bytes:
    """The request, within one deadline for all of it: whoever drips bytes must not hold a place for long."""
    data = bytearray()
    until_s = time.monotonic() + REQUEST_DEADLINE_S
    while not data.endswith(b"\n"):
        connection.settimeout(max(until_s - time.monotonic(), 0.001))
        chunk = connection.recv(REQUEST_LIMIT_BYTES + 1 - len(data))
        if not chunk:
            raise BadCall("it broke off")
        data += chunk
        if len(data) > REQUEST_LIMIT_BYTES:
            raise BadCall(f"it is over {REQUEST_LIMIT_BYTES} bytes long")
    connection.settimeout(REQUEST_DEADLINE_S)
    return bytes(data)
