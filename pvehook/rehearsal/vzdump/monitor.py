"""How vzdump itself talks to a VM's QMP socket: connect, ask one thing, close; again each second.

It is another client than `pvehook.guest.qmp` on purpose: this is PVE's part in the play, and QMP serves one
client at a time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from pvehook.guest.sockets import fitting_address
from pvehook.host.node import Node

_ANSWER_S = 5.0
_RETRY_S = 0.1


class MonitorError(Exception):
    """The VM refused, or did not answer. The text is for the task log."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        """QMP's class of the refusal, `CommandNotFound` for one; "" where QMP did not refuse."""


class _RefusalError(ValueError):
    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(error.get("desc", "unknown error"))
        self.kind = error.get("class", "")


def qmp_socket(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.qmp")


def is_there(node: Node, vmid: int) -> bool:
    """Whether this VM has a QMP socket. A rehearsal may play VMs without one."""
    return os.path.exists(qmp_socket(node, vmid))


def ask(node: Node, vmid: int, command: str, *, patience_s: float = _ANSWER_S, **arguments: Any) -> Any:
    """The `return` of one command. Raises MonitorError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience_s)
            _connect(connection, qmp_socket(node, vmid), time.monotonic() + patience_s)
            with connection.makefile("rwb") as stream:
                stream.readline()  # the greeting
                _exchange(stream, "qmp_capabilities", {})
                return _exchange(stream, command, arguments)
    except (OSError, ValueError) as error:
        kind = error.kind if isinstance(error, _RefusalError) else ""
        raise MonitorError(f"VM {vmid} qmp command '{command}' failed - {error}", kind) from error


def _connect(connection: socket.socket, path: str, until_s: float) -> None:
    """As PVE::QMPClient: while two others wait at the socket already, again and again."""
    while True:
        try:
            with fitting_address(path) as address:
                return connection.connect(address)
        except BlockingIOError:  # unix(7): the queue is full
            if time.monotonic() >= until_s:
                raise
            time.sleep(_RETRY_S)


def _exchange(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while True:
        line = stream.readline()
        if not line:
            raise ValueError("got closed connection")
        reply = json.loads(line)
        if "error" in reply:
            raise _RefusalError(reply["error"])
        if "return" in reply:  # anything else is an event
            return reply["return"]
