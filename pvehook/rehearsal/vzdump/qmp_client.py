"""How vzdump itself talks to a VM's monitor (PVE::QMPClient): a connection for each command.

Another client than `pvehook.guest` has, on purpose: this is PVE's part in the play.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from pvehook.guest.sockets import fitting_address
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import CommandError

_ANSWER_S = 5.0
_RETRY_S = 0.1
"""Between two attempts to connect, when two others wait at the socket already."""


def has_monitor(node: Node, vmid: int) -> bool:
    """Whether this VM has a QMP socket. A rehearsal may play VMs without one."""
    return os.path.exists(_qmp_socket(node, vmid))


def ask_monitor(node: Node, vmid: int, command: str, *, patience_s: float = _ANSWER_S, **arguments: Any) -> Any:
    """The `return` of one command. Raises CommandError."""
    try:
        with connected(_qmp_socket(node, vmid), time.monotonic() + patience_s, time.sleep) as connection:
            connection.settimeout(patience_s)
            with connection.makefile("rwb") as stream:
                stream.readline()  # the greeting
                _exchange(stream, "qmp_capabilities", {})
                return _exchange(stream, command, arguments)
    except (OSError, ValueError) as error:
        raise CommandError(f"VM {vmid} qmp command '{command}' failed - {error}") from error


def _qmp_socket(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.qmp")


def connected(path: str, until_s: float, wait: Callable[[float], object]) -> socket.socket:
    """Does not block; while two others wait at the socket already, tries again and again. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        while True:
            try:
                with fitting_address(path) as address:
                    connection.connect(address)
            except BlockingIOError:  # unix(7): the queue is full
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError("timed out") from None
                wait(min(left_s, _RETRY_S))
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _exchange(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while True:
        line = stream.readline()
        if not line:
            raise ValueError("got closed connection")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"].get("desc", "unknown error"))
        if "return" in reply:  # anything else is an event
            return reply["return"]
