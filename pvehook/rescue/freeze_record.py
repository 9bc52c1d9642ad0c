"""The write-ahead record of a freeze: whoever comes next knows that a guest may be frozen, and by whom.

    /run/pvehook/frozen/101.freeze       one page
        freezing\\n                       the current state, padded to 16 bytes
        {"vmid": 101, "worker": 4711, "agent": "/var/run/qemu-server/101.qga", "armed_s": 1795312800.0, "daemon": 4712}

The page is mapped and its first word is stored without a system call: between a freeze and its thaw nothing may wait
for a file system. /run is memory, and what was stored survives a SIGKILL of the writer.

Stdlib only: `pvehook thaw --left-over` and the guests' hookscript depend on it.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Literal, NamedTuple, get_args

from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file

State = Literal["armed", "freezing", "frozen", "thawing", "thawed"]
FROZEN_BY_US: tuple[State, ...] = ("freezing", "frozen", "thawing")
"""With one of these in the record, the guest may be frozen by us. `armed`: nothing was sent yet."""

_STATE_BYTES = 16
_PAGE_BYTES = 4096
_WORDS: dict[State, bytes] = {state: state.encode().ljust(_STATE_BYTES - 1) + b"\n" for state in get_args(State)}


class FrozenRecord:
    """One guest's record, open for writing; the rendezvous holds it."""

    def __init__(self, path: str, vmid: int, worker_pid: int, agent_path: str, armed_s: float) -> None:
        """Creates the file in state `armed`. Raises OSError."""
        body = {
            "vmid": vmid,
            "worker": worker_pid,
            "agent": agent_path,
            "armed_s": armed_s,
            "daemon": os.getpid(),
        }
        page = _WORDS["armed"] + json.dumps(body).encode() + b"\n"
        self._path = path
        replace_file(path, page.ljust(_PAGE_BYTES, b"\0").decode("ascii"))
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE_BYTES)

    def say(self, state: State) -> None:
        """Stores the state. No system call, hardly an allocation."""
        self._page[:_STATE_BYTES] = _WORDS[state]

    def remove(self) -> None:
        """Deletes the record: the freeze is confirmed to be over."""
        self._page.close()
        remove_file(self._path)


class FreezeRecord(NamedTuple):
    """A record as it was read."""

    path: str
    state: State
    vmid: int
    worker_pid: int
    agent_path: str
    armed_s: float
    daemon_pid: int
    """The process that wrote it."""


def record_path(node: Node, vmid: int) -> str:
    """The path of one guest's record."""
    return os.path.join(node.run_dir, "frozen", f"{vmid}.freeze")


def freeze_records(node: Node) -> list[FreezeRecord]:
    """All records on the node. A file that cannot be read is not ours and is left alone."""
    found = map(read_record, files_in(os.path.join(node.run_dir, "frozen"), ".freeze"))
    return [each for each in found if each is not None]


def read_record(path: str) -> FreezeRecord | None:
    """One record, None when there is none."""
    try:
        page = read_regular_file(path, _PAGE_BYTES)
        state = page[:_STATE_BYTES].decode("ascii").strip()
        body = json.loads(page[_STATE_BYTES:].rstrip(b"\0"))
        if state not in get_args(State):
            return None
        return FreezeRecord(
            path,
            state,  # type: ignore[arg-type]  # one of State's words, just looked up
            int(body["vmid"]),
            int(body["worker"]),
            str(body["agent"]),
            float(body["armed_s"]),
            int(body["daemon"]),
        )
    except DAMAGED:
        return None


def remove_record(left: FreezeRecord) -> None:
    """Its guest is thawed or gone. A record that was rewritten since belongs to a newer freeze and stays."""
    now = read_record(left.path)
    if now is not None and now.armed_s == left.armed_s:
        remove_file(left.path)  # one that stays costs the next reader a query of a thawed guest
