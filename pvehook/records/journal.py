"""Events in the journal: structlog in front, systemd's native journal protocol behind.

One event per decision and effect. `journalctl -t pvehook PVEHOOK_VMID=101` finds them because each carries

    MESSAGE=VM 101: idle I/O priority set on zstd (3 threads)     what a person reads
    PRIORITY=6                                                    syslog's numbers
    SYSLOG_IDENTIFIER=pvehook
    PVEHOOK_EVENT=io-priority-set                                 what a program reads
    PVEHOOK_VMID=101  PVEHOOK_JOB=UPID:...  PVEHOOK_...

The protocol is one datagram of `KEY=value` lines; a value with a line feed is sent as the key, a line feed, its
length as 8 bytes little endian, and the value (systemd.io/JOURNAL_NATIVE_PROTOCOL). Without a journal the same
events go to stderr, one line each.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from pvehook.contract.text import printable

Log = structlog.typing.FilteringBoundLogger

IDENTIFIER = "pvehook"
VALUE_LIMIT_CHARACTERS = 4000
"""A datagram holds about 200 KiB; an event has some 20 fields."""

_LINE_LIMIT_BYTES = select.PIPE_BUF
"""What a pipe or a stream that has any room takes without waiting (pipe(7))."""

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


Hear = Callable[[str, str, Mapping[str, Any]], None]
"""Gets each event's name, its level and its fields as they were logged; returns at once and never raises."""


def journal_log(journal_socket: str, stderr: TextIO | None = None, hear: Hear | None = None) -> Log:
    """A structlog logger whose events go to the journal: `log.info("window-open", message="...", vmid=101)`.

    The event's name becomes PVEHOOK_EVENT, `message` MESSAGE, every other key PVEHOOK_KEY; None is left out. `hear`
    gets each of them, too.
    """

    def overhear(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if hear is not None:
            hear(str(event["event"]), level, event)
        return event

    log: Log = structlog.wrap_logger(
        JournalWriter(journal_socket, stderr or sys.stderr),
        processors=[overhear, _journal_fields],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=False,
    )
    return log


def _journal_fields(_: Any, level: str, event: MutableMapping[str, Any]) -> dict[str, str]:
    """structlog's last processor: the event as journal fields, each value safe to print."""
    name = str(event.pop("event"))
    message = event.pop("message", name)
    fields = {
        "MESSAGE": printable(str(message), VALUE_LIMIT_CHARACTERS),
        "PRIORITY": str(PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "PVEHOOK_EVENT": name,
    }
    for key, value in event.items():
        if value is not None:
            fields["PVEHOOK_" + key.upper()] = printable(_as_text(value), VALUE_LIMIT_CHARACTERS)
    return fields


def _as_text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_as_text, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


class JournalWriter:
    """structlog's wrapped logger: one method per level, each gets the fields of one event.

    It never waits for the journal: a journald that hangs must not hold a phase, so an event that finds no room
    goes to stderr, and when that is journald's own stream too it is counted and named with the next event.
    """

    def __init__(self, journal_socket: str, stderr: TextIO) -> None:
        self._address = journal_socket
        self._stderr = stderr
        self._socket: socket.socket | None = None
        self._lost = 0
        self._printing = threading.Lock()

    def msg(self, **fields: str) -> None:
        if self._lost:
            fields["PVEHOOK_EVENTS_LOST_BEFORE"] = str(self._lost)
        if self._send(encode_fields(fields)) or self._print(fields):
            self._lost = 0
        else:
            self._lost += 1

    debug = info = warning = error = critical = msg

    def _send(self, datagram: bytes) -> bool:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.sendto(datagram, socket.MSG_DONTWAIT, self._address)
        except OSError:
            return False
        return True

    def _print(self, fields: dict[str, str]) -> bool:
        own = [key for key in fields if key.startswith("PVEHOOK_") and key not in ("PVEHOOK_EVENT", "PVEHOOK_JOB")]
        shown = " ".join(f"{key.removeprefix('PVEHOOK_').lower()}={fields[key]}" for key in own)
        text = f"<{fields['PRIORITY']}>{IDENTIFIER}: {fields['MESSAGE']} [{fields['PVEHOOK_EVENT']} {shown}".rstrip()
        line = (text + "]").encode("utf-8", "replace")[: _LINE_LIMIT_BYTES - 1] + b"\n"
        try:
            # A service's stderr is a stream to journald; do not wait for that one either. It is asked for room and
            # not set to O_NONBLOCK: that belongs to the open file, which may be an administrator's terminal. Nor is
            # Python's buffer used, which would give out later what is counted as lost now.
            fd = self._stderr.fileno()
            with self._printing:
                room = select.poll()
                room.register(fd, select.POLLOUT)
                return bool(room.poll(0)) and os.write(fd, line) > 0
        except (OSError, ValueError):
            return False


def encode_fields(fields: dict[str, str]) -> bytes:
    """One event as a datagram of the native protocol."""
    datagram = b""
    for key, value in fields.items():
        data = value.encode("utf-8", "replace")
        between = b"\n" + struct.pack("<Q", len(data)) if b"\n" in data else b"="
        datagram += key.encode("ascii") + between + data + b"\n"
    return datagram
