"""journald's end of its native protocol: a datagram socket that keeps what it receives.

    MESSAGE=VM 101: done        a datagram is a list of such lines;
    PVEHOOK_NOTE                a value with line feeds comes as its key, a line feed,
    <8 bytes, little endian>    its length,
    two\\nlines                  and itself, with a line feed behind it

An event too large for a datagram comes as an open file (memfd) instead, with an empty datagram.
Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from pvehook.rehearsal.vzdump.player import WAIT_S

_LIMIT_BYTES = 1 << 20


class Event(NamedTuple):
    """One event and when it came (epoch seconds)."""

    at_s: float
    fields: dict[str, str]


class JournalReceiver:
    """Listens at `path` until the `with` block is left. `events` grows meanwhile."""

    def __init__(self, path: str, now_s: Callable[[], float] = time.time) -> None:
        self.events: list[Event] = []
        self.broken: list[str] = []
        """What came and was no event; leaving the block raises it."""
        self._path = path
        self._now_s = now_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._thread = threading.Thread(target=self._receive, name="journal", daemon=True)
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._socket.bind(self._path)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # the thread ends at an empty datagram without a file, which no client sends
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", self._path)
        self._thread.join(WAIT_S)
        self._socket.close()
        os.unlink(self._path)
        if self.broken and kind is None:
            raise ValueError(f"the journal was sent what is no event: {'; '.join(self.broken)}")

    def wait_for(self, is_it: Callable[[dict[str, str]], bool], what: str, after: int = 0) -> dict[str, str]:
        """The fields of the first event for which `is_it` holds, after the first `after` ones. Raises TimeoutError."""

        def found() -> dict[str, str] | None:
            return next((event.fields for event in self.events[after:] if is_it(event.fields)), None)

        with self._news:
            if not self._news.wait_for(lambda: found() is not None, WAIT_S):
                last = [event.fields.get("MESSAGE", "") for event in self.events[-3:]]
                raise TimeoutError(f"no event in the journal within {WAIT_S:g} s: {what}; the last were {last}")
            fields = found()
        assert fields is not None  # noqa: S101 - just seen, and events are never taken away
        return fields

    def _receive(self) -> None:
        while True:
            data, files, _, _ = socket.recv_fds(self._socket, _LIMIT_BYTES, 1)
            for fd in files:
                with os.fdopen(fd, "rb") as file:
                    file.seek(0)
                    data = file.read(_LIMIT_BYTES)
            if not data and not files:
                return
            try:
                event = Event(self._now_s(), parse_event(data))
            except ValueError as error:
                self.broken.append(str(error))
                continue
            with self._news:
                self.events.append(event)
                self._news.notify_all()


def parse_event(data: bytes) -> dict[str, str]:
    """The fields of one datagram. Raises ValueError when it is not one: a rehearsal hides no mistake."""
    fields: dict[str, str] = {}
    while data:
        line, end, data = data.partition(b"\n")
        if not end:
            raise ValueError(f"no line feed after {line[:60]!r}")
        key, equals, value = line.partition(b"=")
        if not equals:
            if len(data) < 8:
                raise ValueError(f"no length after {line[:60]!r}")
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length :]
            if len(value) != length or not data.startswith(b"\n"):
                raise ValueError(f"{key[:60]!r} is shorter than its length field ({length} bytes)")
            data = data[1:]
        if not key.replace(b"_", b"").isalnum() or key != key.upper():
            raise ValueError(f"{key[:60]!r} is no name of a field")
        fields[key.decode("ascii")] = value.decode("utf-8")
    return fields
