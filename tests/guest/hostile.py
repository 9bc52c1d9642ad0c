"""A peer that does what no agent and no QEMU would do: a real unix socket with a script behind it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

Script = Callable[[socket.socket], None]

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
NASTY = "a\nb\r\x1b[2J\u202e\u2028\x00\ud800\U000e0001"
"""Newlines, an escape sequence, a change of writing direction, a zero, half a character, an invisible tag."""


@contextlib.contextmanager
def peer(directory: str, script: Script) -> Iterator[str]:
    """The path of a socket that serves one client with `script` and then keeps silent, but connected."""
    path = os.path.join(directory, "101.sock")
    ended = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):  # the test has ended, or its client has had enough
            client, _ = listener.accept()
            with client:
                clients.append(client)
                script(client)
                ended.wait()

    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            ended.set()
            for end in (listener, *clients):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive(), "the peer did not end"


def read_line(client: socket.socket) -> dict[str, object]:
    """The next request, without the byte 0xFF that may stand before it."""
    received = b""
    while not received.endswith(b"\n"):
        byte = client.recv(1)
        if not byte:
            raise ConnectionAbortedError
        received += byte
    request = json.loads(received.lstrip(b"\xff"))
    assert isinstance(request, dict)
    return request


def sync(client: socket.socket) -> None:
    """What an agent answers to `guest-sync-delimited`."""
    arguments = read_line(client)["arguments"]
    assert isinstance(arguments, dict)
    client.sendall(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")


def agent_that_sends(data: bytes) -> Script:
    """An agent that is well-behaved until it answers the first command."""

    def script(client: socket.socket) -> None:
        sync(client)
        read_line(client)
        client.sendall(data)

    return script


def agent_that_returns(value: object) -> Script:
    return agent_that_sends(json.dumps({"return": value}).encode() + b"\n")


def qmp_that_sends(data: bytes) -> Script:
    """A QEMU that is well-behaved until it answers the first command; ID in `data` becomes the right id."""

    def script(client: socket.socket) -> None:
        client.sendall(GREETING)
        client.sendall(json.dumps({"return": {}, "id": read_line(client)["id"]}).encode() + b"\r\n")
        asked = read_line(client)["id"]
        client.sendall(data.replace(b"ID", str(asked).encode()))

    return script


def qmp_that_returns(value: object) -> Script:
    return qmp_that_sends(b'{"return": %b, "id": ID}\r\n' % json.dumps(value).encode())


def agent_that_answers(*answers: object) -> Script:
    """An agent that gives these as the `return` of one command after the other; bytes are sent as they are."""

    def script(client: socket.socket) -> None:
        sync(client)
        for answer in answers:
            read_line(client)
            client.sendall(answer if isinstance(answer, bytes) else json.dumps({"return": answer}).encode() + b"\n")

    return script
