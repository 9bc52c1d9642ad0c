"""What the parts of a simulated VM share: QEMU's listening sockets, how it cuts requests, how its replies look; and
whether the VM runs, what hangs in it, and what it has heard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from pvehook.guest.sockets import fitting_address

JOIN_S: Final = 5.0


class DenialError(Exception):
    """A reply that says no."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(description)
        self.error = {"class": kind, "desc": description}


class Peer(NamedTuple):
    """Who is connected: the how-manieth client of this socket, and its process as the kernel knows it (unix(7))."""

    number: int
    pid: int


class Port:
    """A listening socket as QEMU's `-chardev socket,server=on` has it: one client at a time, two wait.

    `served` is called when a client's turn has come, `received` with each piece of its bytes and whose they are.
    """

    def __init__(self, path: str, served: Callable[[], None], received: Callable[[bytes, Peer], None]) -> None:
        self._path = path
        self._served = served
        self._received = received
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._client: socket.socket | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with fitting_address(self._path) as address:
            self._listener.bind(address)
        self._listener.listen(1)  # QEMU's own backlog; the kernel lets one more wait (unix(7))
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            if self._client is not None:
                with contextlib.suppress(OSError):  # it has gone in this moment
                    self._client.shutdown(socket.SHUT_RDWR)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which closing would not
        self._thread.join(JOIN_S)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def reply(self, data: bytes) -> None:
        """Sends to the client being served, if it is still there, as QEMU's monitor does."""
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):  # it has hung up
                client.sendall(data)

    def _serve(self) -> None:
        number = 0
        while client := self._next_client():
            with client:
                number += 1
                peer = Peer(number, _pid(client))
                self._served()
                with contextlib.suppress(ConnectionError):
                    while data := client.recv(65536):
                        self._received(data, peer)
                with self._changed:
                    self._client = None

    def _next_client(self) -> socket.socket | None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return None
        with self._changed:
            if self._ended:
                client.close()
                return None
            self._client = client
            self._changed.notify_all()
        return client


def _pid(client: socket.socket) -> int:
    """Of the process that connected, which need not live any more."""
    size = struct.calcsize("3i")  # struct ucred: pid, uid, gid
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


class Requests:
    """Cuts bytes into JSON values as QEMU does: where the brackets balance, with or without a newline.

    A half value that a client left behind stays and spoils the next one, until a byte 0xFF clears it.
    """

    def __init__(self) -> None:
        self._half = bytearray()
        self._depth = 0
        self._in_string = self._escaped = False

    def cut(self, data: bytes) -> list[bytes]:
        """The values that are complete now, in order; 0xFF is one of its own, and none that JSON knows."""
        complete = []
        for byte in data:
            if byte == 0xFF:
                complete.append(b"\xff")
                self._forget()
                continue
            self._half.append(byte)
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
                continue
            self._in_string = byte == ord('"')
            self._depth += (byte in b"[{") - (byte in b"]}")
            if self._depth <= 0 and byte in b"]}":
                complete.append(bytes(self._half))
                self._forget()
        return complete

    def _forget(self) -> None:
        self._half.clear()
        self._depth = 0
        self._in_string = self._escaped = False


def reply_to(
    request: bytes, answer: Callable[[str, Mapping[str, object]], object]
) -> tuple[dict[str, object], str]:
    """The reply to `request`, and the command in it if it holds one."""
    try:
        asked = json.loads(request)
        command, arguments = asked["execute"], asked.get("arguments", {})
    except (ValueError, KeyError, TypeError):
        stray = "stray '\ufffd'" if request == b"\xff" else "expecting value"
        return {"error": {"class": "GenericError", "desc": f"JSON parse error, {stray}"}}, ""
    reply: dict[str, object]
    try:
        reply = {"return": answer(command, arguments)}
    except DenialError as denial:
        reply = {"error": denial.error}
    return reply | ({"id": asked["id"]} if "id" in asked else {}), command


def line(document: object) -> bytes:
    """`document` as QEMU sends it on QMP."""
    return json.dumps(document).encode() + b"\r\n"


Sticky = Literal["qmp", "agent", "freeze", "thaw"]
"""What can hang: the monitor, the agent before every request, or one command inside the guest."""

RunState = Literal["running", "paused", "prelaunch"]


class Heard(NamedTuple):
    """One command that reached the guest, at the moment it did. `at_s` is on the monotonic clock."""

    at_s: float
    channel: Literal["qmp", "qga"]
    command: str
    peer: Peer


class GuestState:
    """Whoever changes something here holds `changed` and notifies."""

    def __init__(self, running: bool) -> None:
        self.run_state: RunState = "running" if running else "prelaunch"
        self.heard: list[Heard] = []
        self.refused: dict[str, str] = {}
        self.changed = threading.Condition()
        self.stuck: set[Sticky] = set()
        self.ended = False

    def note(self, channel: Literal["qmp", "qga"], command: str, peer: Peer) -> None:
        """A command has arrived. Raises DenialError if it is one that is refused."""
        with self.changed:
            self.heard.append(Heard(time.monotonic(), channel, command, peer))
            self.changed.notify_all()
        if command in self.refused:
            raise DenialError("GenericError", self.refused[command])

    def wait_while_stuck(self, what: Sticky) -> None:
        """Inside the guest nothing goes on while its processors stand still; QEMU itself does."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.ended or (what not in self.stuck and (what == "qmp" or self.run_state == "running"))
            )

    def pass_time(self, seconds: float) -> None:
        """Not a sleep: the end of the simulation ends it too."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended, seconds)

    def run(self, state: RunState) -> None:
        """`cont` and `stop`."""
        with self.changed:
            self.run_state = state
            self.changed.notify_all()
