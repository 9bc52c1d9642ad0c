"""The guest agent (qemu-ga), which answers one command after the other, and sends nothing unasked.

Wire format (qga/qapi-schema.json of QEMU), one JSON object on a line, after a synchronisation:

    0xFF {"execute": "guest-sync-delimited", "arguments": {"id": 71}}
    ... whatever was left over by others ...
    0xFF {"return": 71}
    {"execute": "guest-fsfreeze-status"}
    {"return": "thawed"}

Why the synchronisation: bytes of a client that gave up still reach the agent later, and its answer goes to
the next client, which is us (facts/qemu.md). After it every answer on this connection is ours, in the order
of the commands.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from pvehook.contract.guest_facts import Filesystem, FreezeStatus, GuestInfo, GuestOs
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, GuestError
from pvehook.guest.sockets import Connection, connect, parse_document
from pvehook.guest.validate import boolean, is_number, items, mapping, request, returned, text, whole_number

_FLUSH = b"\xff"
"""Never part of JSON. Sent, it makes the agent drop somebody's half line; received, it marks a sync."""

FILE_READ_LIMIT_BYTES = 2048
"""Of one `guest-file-read`: in base64 its answer is still a text that validate.py accepts."""

_OS_CHARACTERS = 100

_CLOSE_SEND_S = 0.2
"""For what nobody takes: the socket's own buffer takes it at once, unless much was sent before."""


class Pending:
    """A command that was sent and whose answer has its own deadline."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._answer: object | GuestError | None = None


class AgentConnection:
    """A synchronised connection; while it is held, nobody else reaches the agent. Every method raises the errors of
    pvehook.errors.GuestError. After TimedOut the agent may still carry out what was sent: the connection stays usable,
    and what is sent next waits its turn in the guest."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unanswered: deque[Pending] = deque()

    def send(self, command: str, arguments: Mapping[str, object] | None = None, *, deadline: Deadline) -> Pending:
        """Sends `command` behind all that was sent before, without waiting for an answer."""
        self._connection.send(request(command, arguments), deadline)
        pending = Pending(command)
        self._unanswered.append(pending)
        return pending

    def receive(self, pending: Pending, *, deadline: Deadline) -> object:
        """The `return` of `pending`. Answers to earlier commands come first and are kept for who asks."""
        self._connection.allow()
        while pending in self._unanswered:
            line = self._connection.read_line(deadline)
            earliest = self._unanswered.popleft()
            earliest._answer = _answer(line, source=self._source(earliest.command))
        if isinstance(pending._answer, GuestError):
            raise pending._answer
        return pending._answer

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, deadline: Deadline) -> object:
        return self.receive(self.send(command, arguments, deadline=deadline), deadline=deadline)

    def ping(self, deadline: Deadline) -> None:
        self.execute("guest-ping", deadline=deadline)

    def guest_info(self, deadline: Deadline) -> GuestInfo:
        """The agent's version and what it may do."""
        source = self._source("guest-info")
        reply = mapping(self.execute("guest-info", deadline=deadline), source=source)
        commands = items(reply.get("supported_commands"), source=source)
        enabled = {text(each, "name", source=source): boolean(each, "enabled", source=source) for each in commands}
        return GuestInfo(text(reply, "version", source=source), enabled)

    def get_fsinfo(self, deadline: Deadline) -> tuple[Filesystem, ...]:
        """The filesystems a freeze would reach, in the order of the guest's mount table, latest first."""
        source = self._source("guest-get-fsinfo")
        return tuple(
            Filesystem(
                name=text(entry, "name", source=source),
                mountpoint=text(entry, "mountpoint", source=source),
                type=text(entry, "type", source=source),
            )
            for entry in items(self.execute("guest-get-fsinfo", deadline=deadline), source=source)
        )

    def os_id(self, deadline: Deadline) -> str | None:
        """`debian`, `mswindows`; None where it says nothing of the kind."""
        return self.os_info(deadline).id

    def os_info(self, deadline: Deadline) -> GuestOs:
        reply = self.execute("guest-get-osinfo", deadline=deadline)
        fields = reply if isinstance(reply, dict) else {}
        values = (fields.get(key) for key in ("id", "pretty-name", "version-id", "kernel-release"))
        return GuestOs(*(value[:_OS_CHARACTERS] if isinstance(value, str) else None for value in values))

    def fsfreeze_status(self, deadline: Deadline) -> FreezeStatus:
        """Whether a freeze is in force, whoever requested it."""
        return self.receive_status(self.send("guest-fsfreeze-status", deadline=deadline), deadline)

    def receive_status(self, pending: Pending, deadline: Deadline) -> FreezeStatus:
        reply = self.receive(pending, deadline=deadline)
        if reply == "thawed":
            return "thawed"
        if reply == "frozen":
            return "frozen"
        source, seen = self._source(pending.command), printable(str(reply)[:80], 80)
        raise BadReply(f"{source}: neither `thawed` nor `frozen`: {seen}")

    def send_freeze(self, mountpoints: Sequence[str] | None, deadline: Deadline) -> Pending:
        """Sends the freeze of all filesystems, or of those at exactly `mountpoints`; see `receive_count`."""
        if mountpoints is None:
            return self.send("guest-fsfreeze-freeze", deadline=deadline)
        return self.send("guest-fsfreeze-freeze-list", {"mountpoints": list(mountpoints)}, deadline=deadline)

    def send_thaw(self, deadline: Deadline) -> Pending:
        """Sends the thaw. Behind a freeze that hangs it runs at the moment the freeze ends."""
        return self.send("guest-fsfreeze-thaw", deadline=deadline)

    def receive_count(self, pending: Pending, deadline: Deadline) -> int:
        """How many filesystems that freeze or thaw reached; 0 after a freeze: nothing is frozen."""
        return whole_number(self.receive(pending, deadline=deadline), source=self._source(pending.command))

    def fsfreeze_freeze(self, mountpoints: Sequence[str] | None, deadline: Deadline) -> int:
        """Freezes and returns the number of filesystems; see `send_freeze` and `receive_count`."""
        return self.receive_count(self.send_freeze(mountpoints, deadline), deadline)

    def fsfreeze_thaw(self, deadline: Deadline) -> int:
        """Thaws and returns the number of filesystems; thawing what is not frozen returns 0."""
        return self.receive_count(self.send_thaw(deadline), deadline)

    def file_open(self, path: str, deadline: Deadline, mode: Literal["r", "w"] = "r") -> int:
        """Opens a file of the guest. The handle outlives this connection: see `file_close`. `w` makes the file if there
        is none, and empties it."""
        reply = self.execute("guest-file-open", {"path": path, "mode": mode}, deadline=deadline)
        return whole_number(reply, source=self._source("guest-file-open"))

    def file_seek_end(self, handle: int, deadline: Deadline) -> None:
        self.execute("guest-file-seek", {"handle": handle, "offset": 0, "whence": 2}, deadline=deadline)

    def file_read(self, handle: int, count: int, deadline: Deadline) -> bytes:
        """Up to `count` bytes, at most FILE_READ_LIMIT_BYTES; none at the end of the file."""
        return self.receive_file_read(self.send_file_read(handle, count, deadline), deadline)

    def send_file_read(self, handle: int, count: int, deadline: Deadline) -> Pending:
        return self.send("guest-file-read", {"handle": handle, "count": count}, deadline=deadline)

    def receive_file_read(self, pending: Pending, deadline: Deadline) -> bytes:
        source = self._source("guest-file-read")
        reply = mapping(self.receive(pending, deadline=deadline), source=source)
        try:
            return base64.b64decode(text(reply, "buf-b64", source=source), validate=True)
        except ValueError as error:
            raise BadReply(f"{source}: `buf-b64` is not base64") from error

    def file_write(self, handle: int, data: bytes, deadline: Deadline) -> None:
        """Writes all of it: it has reached the file, or an error is raised."""
        arguments = {"handle": handle, "buf-b64": base64.b64encode(data).decode("ascii")}
        self.execute("guest-file-write", arguments, deadline=deadline)
        # qemu-ga writes through stdio: what the file's own side says against it comes with the flush.
        self.execute("guest-file-flush", {"handle": handle}, deadline=deadline)

    def file_close(self, handle: int, deadline: Deadline) -> None:
        """Closes the file. The close is sent also past the deadline, because nobody else would ever close it: behind a
        read that hangs it runs when the read ends."""
        pending = self.send("guest-file-close", {"handle": handle}, deadline=Deadline.after(_CLOSE_SEND_S))
        self.receive(pending, deadline=deadline)

    def _source(self, command: str) -> str:
        return f"{self._connection.path}: {command}"


@contextlib.contextmanager
def open_agent(path: str, deadline: Deadline) -> Iterator[AgentConnection]:
    """Connects and synchronises; closes at the end. One exchange is one such `with`. Raises TimedOut when no agent runs
    in the guest, when it hangs, and when another client is served first."""
    with connect(path) as connection:
        yield synchronise(connection, deadline)


def synchronise(connection: Connection, deadline: Deadline) -> AgentConnection:
    """Synchronises on a connection that was made before; the caller closes it. Raises as `open_agent`."""
    return receive_sync(connection, send_sync(connection, deadline), deadline)


def send_sync(connection: Connection, deadline: Deadline) -> int:
    """Sends a synchronisation, and returns what is to be answered to it; see `receive_sync`."""
    fresh, sync = _fresh_sync()
    connection.send(_FLUSH + sync, deadline)
    return fresh


def receive_sync(connection: Connection, fresh: int, deadline: Deadline) -> AgentConnection:
    """The answer to `send_sync`. After TimedOut it may be called again."""
    for _ in _until_sync(connection, fresh, deadline):
        pass
    return AgentConnection(connection)


def thaw_at_once(connection: Connection, deadline: Deadline, on_sent: Callable[[], None]) -> tuple[int | None, float]:
    """Thaws, on a connection on which nothing was sent yet, a guest that we froze ourselves. How many filesystems
    (None: it did not say), and when that was answered, on the monotonic clock.

    The thaw is sent first, with sync and status behind it in the same write: with a slow agent, each answer that is
    waited for before the thaw keeps the guest frozen. Raises GuestError, also when it still reports `frozen`; the thaw
    may have run all the same."""
    fresh, sync = _fresh_sync()
    status = request("guest-fsfreeze-status")
    connection.send(_FLUSH + request("guest-fsfreeze-thaw") + sync + status, deadline)
    on_sent()
    # The answer right before the sync's is the thaw's: the agent answers in order, and nobody else is served.
    answer, at_s = b"", time.monotonic()
    for line in _until_sync(connection, fresh, deadline):
        answer, at_s = line, time.monotonic()
    agent = AgentConnection(connection)
    agent._unanswered.append(Pending("guest-fsfreeze-status"))
    source = f"{connection.path}: guest-fsfreeze-thaw"
    if agent.receive_status(agent._unanswered[0], deadline) != "thawed":
        raise BadReply(f"{source}: it still reports `frozen`")
    try:
        return whole_number(_answer(answer, source=source), source=source), at_s
    except BadReply:
        return None, at_s  # the status is what is believed


def _fresh_sync() -> tuple[int, bytes]:
    fresh = secrets.randbelow(2**52)  # nobody's left-over sync has it; exact also where numbers are doubles
    return fresh, request("guest-sync-delimited", {"id": fresh})


def _until_sync(connection: Connection, fresh: int, deadline: Deadline) -> Iterator[bytes]:
    """Reads up to the answer of our sync, and gives the lines before it: left over by others, or answers to what was
    sent on this connection before the sync."""
    while True:
        line = connection.read_line(deadline)
        # What comes before the mark on the line is somebody's half answer; a line without it is a whole one.
        _, mark, tail = line.rpartition(_FLUSH)
        if mark and is_number(_answer(tail, source=f"{connection.path}: guest-sync-delimited"), fresh):
            return
        yield line


def _answer(line: bytes, *, source: str) -> object | GuestError:
    try:
        return returned(parse_document(line, source=source), source=source)
    except GuestError as error:
        return error
