"""PVE's own freeze around the start of a backup, with its order, its timeouts and its texts.

    guest-ping              no answer: no freeze
    guest-fsfreeze-status   since qemu-server 9.1.10; frozen already: neither freeze nor thaw
    guest-fsfreeze-freeze   if it fails, the backup is made all the same, and PVE thaws
    (the backup job is started)
    guest-fsfreeze-thaw

Source: qemu-server, `qga_fs_freeze` and `qga_fs_thaw` in PVE/VZDump/QemuServer.pm, `guest_fs_freeze_applicable` and
`guest_fs_freeze` in PVE/QemuServer/Agent.pm. A signal ends only the command that is being waited for, because each of
them stands in an `eval`: PVE then goes on with the next.

Another client of the agent than `pvehook.guest` has, on purpose: in PVE's (PVE::QMPClient) sync and command leave in
one write, no 0xFF goes before them, and a signal ends the wait.

It sends these events to the player, as vzdump/worker.py does those of the job's start:

    pve-pings     pve-pinged                                 a command is about to be sent, and was answered
    pve-skipped-freeze                                       with `why`; a ping that is not answered ends here too
    pve-freezes   pve-froze     pve-freeze-failed            `why` with the last
    pve-thaws     pve-thawed    pve-thaw-failed              the same

vzdump's worker imports this file, so it needs nothing but the standard library and pvehook.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from itertools import count
from typing import Final, NamedTuple

from pvehook.rehearsal.vzdump.commands import InterruptError
from pvehook.rehearsal.vzdump.player import Played
from pvehook.rehearsal.vzdump.qmp_client import connected
from pvehook.rehearsal.vzdump.session import Session, Task

NATIVE_FREEZE: Final = "tests.native_freeze:native_freeze"

_STATUS_PATIENCE_S = 5.0
_STATUS_POLLS = 5
"""After a freeze that was not answered, each with the freeze's patience."""

_numbers = count(1)


class AgentError(Exception):
    """No answer, or one that PVE dies of. The text is for the task log."""


class TimeUpError(AgentError):
    """No answer in time."""


class Answer(NamedTuple):
    """The agent's answer. In PVE a refusal is a value too, which the caller may check or not."""

    value: object
    refusal: str | None = None


class FreezeEvent(NamedTuple):
    """One moment of the freeze around the start of a VM's backup job; `name` is as above or as in vzdump/worker.py."""

    vmid: int
    name: str
    at_s: float
    """On the monotonic clock, which is the same in all processes."""
    why: str
    """Of a failure, or of a freeze that was skipped; else ""."""


def freeze_events(played: Played) -> tuple[FreezeEvent, ...]:
    """In order."""
    return tuple(
        FreezeEvent(event["vmid"], event["event"], event["at_s"], event.get("why", ""))
        for event in played.events
        if "at_s" in event
    )


@contextlib.contextmanager
def native_freeze(task: Task) -> Iterator[None]:
    """For `Run.freeze`. The backup job is started inside."""
    owes_thaw = _freeze_if_applicable(task)
    try:
        yield
    finally:
        if owes_thaw:
            _thaw(task)


def _freeze_if_applicable(task: Task) -> bool:
    """True if PVE thaws afterwards: it has tried to freeze, whether that worked or not."""
    if not _is_applicable(task):
        return False
    task.info("issuing guest-agent 'fs-freeze' command")
    task.moment("pve-freezes")
    try:
        _freeze(task)
    except AgentError as error:
        task.moment("pve-freeze-failed", why=str(error))
        task.log("ERROR:", error)
    else:
        task.moment("pve-froze")
    return True


def _thaw(task: Task) -> None:
    """Once, with patience; a thaw that fails is a line in the log."""
    task.info("issuing guest-agent 'fs-thaw' command")
    task.moment("pve-thaws")
    try:
        refusal = _ask(task, "guest-fsfreeze-thaw", task.session.run.thaw_patience_s).refusal
        if refusal is not None and _is_new(task):
            raise AgentError(f"Agent error: {refusal}")
    except AgentError as error:
        task.moment("pve-thaw-failed", why=str(error))
        task.log("ERROR:", error)
    else:
        task.moment("pve-thawed")


def _is_new(task: Task) -> bool:
    return task.session.run.qemu_server == "9.1.10"


def _is_applicable(task: Task) -> bool:
    guest = task.guest
    if not guest.agent or task.mode == "stop" or guest.state != "running":
        return False
    # the older one asks the agent even where it will not freeze
    if _is_new(task) and not guest.freeze_fs:
        return _skip(task, "disabled in VM options")
    if not _ping(task):
        return _skip(task, "agent configured but not running?")
    if not guest.freeze_fs:
        return _skip(task, "disabled in VM options")
    if _is_new(task) and _is_frozen(task):
        return _skip(task, "already frozen")
    return True


def _skip(task: Task, why: str) -> bool:
    task.moment("pve-skipped-freeze", why=why)
    what = "guest filesystem freeze -" if _is_new(task) else "guest-agent 'fs-freeze',"
    task.info(f"skipping {what} {why}")
    return False


def _ping(task: Task) -> bool:
    task.session.pause(f"before ping {task.guest.vmid}")
    task.moment("pve-pings")
    try:
        _ask(task, "guest-ping", task.session.run.ping_patience_s)  # a refusal is an answer too
    except AgentError:
        return False
    task.moment("pve-pinged")
    return True


def _is_frozen(task: Task) -> bool:
    try:
        answer = _ask(task, "guest-fsfreeze-status", _STATUS_PATIENCE_S)
        if answer.refusal is not None:
            raise AgentError(f"Agent error: {answer.refusal}")
    except AgentError as error:
        task.log("WARN:", f"unable to check guest fs freeze status - {error}")
        return False
    return answer.value == "frozen"


def _freeze(task: Task) -> None:
    """Raises AgentError: not frozen, as far as PVE can tell."""
    try:
        refusal = _ask(task, "guest-fsfreeze-freeze", task.session.run.freeze_patience_s).refusal
    except AgentError:
        status = _status_after_silence(task)
        if status != "frozen":
            raise AgentError(f"unable to freeze guest fs - unexpected status '{status}'") from None
        return
    if refusal is not None:
        raise AgentError(f"unable to freeze guest fs - {refusal}")


def _status_after_silence(task: Task) -> object:
    """The agent answers this as soon as the freeze has ended, however that went."""
    patience_s, failed = task.session.run.freeze_patience_s, "querying status after freezing guest fs failed - "
    for left in range(_STATUS_POLLS, 0, -1):
        task.log("", f"still waiting on guest fs freeze - timeout in {patience_s * left / 60:g} minutes")
        try:
            answer = _ask(task, "guest-fsfreeze-status", patience_s)
        except TimeUpError:
            continue
        except AgentError as error:
            raise AgentError(f"{failed}{error}") from error
        if answer.refusal is not None:
            raise AgentError(f"{failed}Agent error: {answer.refusal}")
        return answer.value
    raise AgentError(f"{failed}timeout after {patience_s * (_STATUS_POLLS + 1) / 60:g} minutes")


def _ask(task: Task, command: str, patience_s: float) -> Answer:
    """One exchange. Raises AgentError; whatever was sent may still be carried out later."""
    session, vmid, until_s = task.session, task.guest.vmid, time.monotonic() + patience_s
    # As PVE's: the pid, a 0, a number that counts.
    number = int(f"{os.getpid()}0{next(_numbers)}")
    requests = (
        {"execute": "guest-sync-delimited", "arguments": {"id": number}},
        {"execute": command, "arguments": {}},
    )
    data = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    try:
        with connected(session.node.path(f"/var/run/qemu-server/{vmid}.qga"), until_s, session.wait) as connection:
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
