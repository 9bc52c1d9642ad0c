"""How vzdump itself talks to a VM's guest agent: each command on a connection of its own, with a sync in front.

It is another client than `pvehook.guest.agent` on purpose: this is PVE's part in the play. What PVE::QMPClient does and
ours does not: sync and command leave in one write, no 0xFF goes before them, and a signal ends the wait.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from itertools import count
from typing import NamedTuple

from pvehook.guest.sockets import fitting_address
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import InterruptError, Signals

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


def ask(node: Node, vmid: int, command: str, patience_s: float, signals: Signals) -> Answer:
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
        with _connect(node.path(f"/var/run/qemu-server/{vmid}.qga"), until_s, signals) as connection:
            connection.sendall(data)  # at once: a few hundred bytes, and nothing is on its way before them
            reply = _reply(connection, number, until_s, signals)
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


def _connect(path: str, until_s: float, signals: Signals) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        while True:
            try:
                with fitting_address(path) as address:
                    connection.connect(address)
            except BlockingIOError:  # unix(7): the queue is full
                _wait(None, min(until_s, time.monotonic() + _RETRY_S), signals)
                if time.monotonic() >= until_s:
                    raise TimeoutError from None
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _reply(connection: socket.socket, number: int, until_s: float, signals: Signals) -> dict[str, object]:
    """What follows our own sync. Answers to others, and to our own earlier questions, come before it."""
    received = bytearray()
    while True:
        if not _wait(connection, until_s, signals):
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


def _wait(connection: socket.socket | None, until_s: float, signals: Signals) -> bool:
    """Whether there is something to read before `until_s`. Raises InterruptError on a signal."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        if connection is not None:
            selector.register(connection, selectors.EVENT_READ)
        ready = [key.fileobj for key, _ in selector.select(max(0.0, until_s - time.monotonic()))]
    signals.check()
    return connection in ready
