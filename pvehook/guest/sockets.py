"""One connection to a VM's unix socket: JSON lines, each wait with a deadline, each answer with a limit.

What is at the other end is hostile ground: the agent's bytes are written by whoever owns the guest. So an
answer is bounded in time, in bytes and in depth before anything reads it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
from collections.abc import Callable, Iterator
from typing import Self

from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, Busy, TimedOut, Unreachable

REPLY_LIMIT_BYTES = 1024 * 1024
DEPTH_LIMIT = 32
SLICE_S = 0.01

_SUN_PATH_BYTES = 108  # unix(7): sun_path, its closing zero included
_CHUNK_BYTES = 64 * 1024


@contextlib.contextmanager
def fitting_address(path: str) -> Iterator[str]:
    """An address for `bind` or `connect` that means `path`, also where `path` is too long for a unix socket: then it is
    `/proc/self/fd/N/NAME` with the directory open as N, without a change of the working directory, which all threads
    share. Raises OSError when the directory cannot be opened."""
    if len(os.fsencode(path)) < _SUN_PATH_BYTES:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


class Connection:
    """A connected socket that sends bytes and reads lines. What is read before `allow` is called again counts against
    one limit, so a peer cannot send for ever in short lines either."""

    def __init__(self, path: str, connected: socket.socket) -> None:
        self.path = path
        self._socket = connected
        self._received = bytearray()
        self._searched = 0
        self._limit_bytes = REPLY_LIMIT_BYTES
        self._room_bytes = REPLY_LIMIT_BYTES
        self.while_waiting: Callable[[], None] | None = None
        """Called every SLICE_S while the peer is waited for; a GuestError that it raises ends the wait."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def inode(self) -> int:
        """Of our end: the kernel reports by it who waits at a listener (host/waiters.py)."""
        return os.fstat(self._socket.fileno()).st_ino & 0xFFFFFFFF  # as many bits as unix_diag shows

    @property
    def is_readable(self) -> bool:
        """Whether something has been received, or the other side has closed."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(self._received or poller.poll(0))

    def allow(self, limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        """Lets the peer send `limit_bytes` more: a new exchange begins."""
        self._limit_bytes = limit_bytes
        self._room_bytes = limit_bytes - len(self._received)

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Sends all of `data`. Raises TimedOut (the peer does not take it) and Unreachable (it is gone)."""
        rest = memoryview(data)
        has_to_wait = deadline.left_s() <= 0  # too late: nothing is sent any more
        while rest:
            try:
                if has_to_wait:
                    self._wait(select.POLLOUT, deadline, "does not take what is sent to it")
                has_to_wait = True
                rest = rest[self._socket.send(rest) :]
            except TimedOut:
                # Half a command is on its way; whatever followed would become part of it.
                self._socket.shutdown(socket.SHUT_RDWR)
                raise
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone(error) from error

    def read_line(self, deadline: Deadline) -> bytes:
        """The next line, without its newline. Raises TimedOut, BadReply (too long), Unreachable (hung up)."""
        while (end := self._received.find(b"\n", self._searched)) < 0:
            self._searched = len(self._received)
            self._read_some(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return line

    def _read_some(self, deadline: Deadline) -> None:
        if self._room_bytes <= 0:
            raise BadReply(f"{self.path}: the answer is longer than {self._limit_bytes} bytes")
        fault = "does not finish its answer" if self._received else "does not answer"
        self._wait(select.POLLIN, deadline, fault)
        try:
            # Asking for no more than there is room for bounds the memory, whatever the peer sends.
            data = self._socket.recv(min(_CHUNK_BYTES, self._room_bytes))
        except BlockingIOError:
            return
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise Unreachable(f"{self.path}: the other side hung up, {len(self._received)} bytes into its answer")
        self._room_bytes -= len(data)
        self._received += data

    def _wait(self, event: int, deadline: Deadline, fault: str) -> None:
        poller = select.poll()
        poller.register(self._socket, event)
        while (left_s := deadline.left_s()) > 0:
            slice_s = left_s if self.while_waiting is None else min(left_s, SLICE_S)
            # Rounded up, so that a wait never ends a moment early and spins.
            if poller.poll(int(slice_s * 1000) + 1):
                return
            if self.while_waiting is not None:
                self.while_waiting()
        raise TimedOut(
            f"{self.path}: the other side {fault} within {deadline.total_s:g} s;"
            " it hangs, or serves another client first"
        )

    def _gone(self, error: OSError) -> Unreachable:
        return Unreachable(f"{self.path}: the other side is gone: {error.strerror}")


def connect(path: str) -> Connection:
    """Connects to the unix socket at `path`, at once or not at all. That says little: QEMU serves one client at a time,
    and a second one is connected but waits unseen (facts/qemu.md). Only an answer is an answer. Raises Unreachable (no
    such socket, nobody listens, no permission) and Busy (two others wait already)."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        with fitting_address(path) as address:
            connecting.connect(address)
    except OSError as error:
        connecting.close()
        if error.errno == errno.EAGAIN:  # unix(7): a full queue, and never "in progress"
            raise Busy(f"{path}: its queue is full, other clients wait for it") from error
        raise Unreachable(f"{path}: cannot connect: {error.strerror}") from error
    return Connection(path, connecting)


_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, or the start of one that is never closed. No backtracking: a scan is linear in the input."""
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_document(data: bytes, *, source: str) -> dict[str, object]:
    """The JSON object in `data`. Raises BadReply, naming `source`, for anything else."""
    # With so few brackets it cannot be nested deeper: most answers are short, and there are several each second.
    if data.count(b"[") + data.count(b"{") > DEPTH_LIMIT and (depth := _depth(data)) > DEPTH_LIMIT:
        raise BadReply(f"{source}: the answer is nested {depth} deep, more than {DEPTH_LIMIT}")
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, an integer of thousands of digits
        raise BadReply(f"{source}: the answer is not JSON: {_excerpt(data)}") from error
    if not isinstance(document, dict):
        raise BadReply(f"{source}: the answer is not a JSON object: {_excerpt(data)}")
    return document


def _depth(data: bytes) -> int:
    """How deep `data` is nested, without following it down as json.loads would, into a RecursionError."""
    depth = deepest = 0
    for bracket in _JSON_STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _excerpt(data: bytes) -> str:
    return printable(data[:200].decode("utf-8", "replace"), 80)
