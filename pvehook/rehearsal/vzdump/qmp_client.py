"""How vzdump itself talks to a VM's sockets (PVE::QMPClient): a connection for each command.

Other clients than `pvehook.guest` has, on purpose: this is PVE's part in the play. To the monitor: connect, ask one
thing, close; again each second. To the guest agent, unlike ours: sync and command leave in one write, no 0xFF goes
before them, and a signal ends the wait.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from pvehook.guest.sockets import fitting_address
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import CommandError, InterruptError
from pvehook.rehearsal.vzdump.session import Session

_ANSWER_S = 5.0
_RETRY_S = 0.1
"""Between two attempts to connect, when two others wait at the socket already."""

_numbers = count(1)


class AgentError(Exception):
    """No answer, or one that PVE dies of. The text is for the task log."""


class TimeUpError(AgentError):
    """No answer in time."""


class Answer(NamedTuple):
    """The agent's answer. In PVE a refusal is a value too, which the caller may check or not."""

    value: object
    refusal: str | None = None


def has_monitor(node: Node, vmid: int) -> bool:
    """Whether this VM has a QMP socket. A rehearsal may play VMs without one."""
    return os.path.exists(_qmp_socket(node, vmid))


def ask_monitor(node: Node, vmid: int, command: str, *, patience_s: float = _ANSWER_S, **arguments: Any) -> Any:
    """The `return` of one command. Raises CommandError."""
    try:
        with _connected(_qmp_socket(node, vmid), time.monotonic() + patience_s, time.sleep) as connection:
            connection.settimeout(patience_s)
            with connection.makefile("rwb") as stream:
                stream.readline()  # the greeting
                _exchange(stream, "qmp_capabilities", {})
                return _exchange(stream, command, arguments)
    except (OSError, ValueError) as error:
        raise CommandError(f"VM {vmid} qmp command '{command}' failed - {error}") from error


def ask_agent(session: Session, vmid: int, command: str, patience_s: float) -> Answer:
    """One exchange. Raises AgentError; whatever was sent may still be carried out later."""
    until_s = time.monotonic() + patience_s
    # As PVE's: the pid, a 0, a number that counts.
    number = int(f"{os.getpid()}0{next(_numbers)}")
    requests = (
        {"execute": "guest-sync-delimited", "arguments": {"id": number}},
        {"execute": command, "arguments": {}},
    )
    data = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    try:
        with _connected(session.node.path(f"/var/run/qemu-server/{vmid}.qga"), until_s, session.wait) as connection:
            connection.sendall(data)  # at once: a few hundred bytes, and nothing is in flight before them
            reply = _reply(connection, number, until_s, session)
    except InterruptError as interrupted:
        raise AgentError(str(interrupted)) from interrupted
    except TimeoutError as error:
        raise TimeUpError(f"VM {vmid} qga command '{command}' failed - got timeout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AgentError(f"VM {vmid} qga command '{command}' failed - {error}") from error
    if "return" in reply:
        return Answer(reply["return"])
    refusal = reply.get("error")
    return Answer(None, str(refusal.get("desc", "unknown") if isinstance(refusal, dict) else "unknown"))


def _qmp_socket(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.qmp")


def _connected(path: str, until_s: float, wait: Callable[[float], object]) -> socket.socket:
    """Does not block; while two others wait at the socket already, tries again and again."""
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


def _reply(connection: socket.socket, number: int, until_s: float, session: Session) -> dict[str, object]:
    """What follows our own sync. Answers to others, and to our own earlier questions, come before it."""
    received = bytearray()
    while True:
        if not session.wait(until_s - time.monotonic(), connection.fileno()):
            raise TimeoutError
        data = connection.recv(65536)
        if not data:
            raise ValueError("client closed connection")
        received += data
        _, mark, rest = received.rpartition(b"\xff")
        lines = rest.split(b"\n")
        if not mark or len(lines) < 3:  # the sync's line, the answer's, and what is after its line feed
            continue
        answered = _document(lines[0]).get("return")
        if type(answered) is not int:
            raise ValueError("received response without command id")
        if answered > number:
            raise ValueError(f"got wrong command id '{answered}' (expected {number})")
        if answered == number:
            return _document(lines[1])


def _document(line: bytes | bytearray) -> dict[str, object]:
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("response is not an object")
    return document
