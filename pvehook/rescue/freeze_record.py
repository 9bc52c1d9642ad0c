"""The write-ahead record of a freeze: whoever comes next knows that a guest may be frozen, and by whom.

    /run/pvehook/frozen/101.freeze       one page
        freezing\\n                       the current state, padded to 16 bytes
        {"vmid": 101, "worker": 4711, "agent": "/var/run/qemu-server/101.qga", "armed_s": 1795312800.0, "daemon": 4712}

    /run/pvehook/frozen/101.thawed       who ended a freeze that a dead daemon had left, for the guest's summary

The page ends with the times of the freeze and of its thaw: seconds on the monotonic clock, one for all processes.

The page is mapped and its first word is stored without a system call: between a freeze and its thaw nothing may wait
for a file system. /run is memory, and what was stored survives a SIGKILL of the writer.

Stdlib only: `pvehook thaw --left-over` and the guests' hookscript depend on it.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from math import isfinite, nan
from typing import Literal, NamedTuple, get_args

from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file

State = Literal["armed", "freezing", "frozen", "thawing", "thawed"]
FROZEN_BY_US: tuple[State, ...] = ("freezing", "frozen", "thawing")
"""With one of these in the record, the guest may be frozen by us. `armed`: nothing was sent yet."""

_STATE_BYTES = _TIME_BYTES = 16
_PAGE_BYTES = 4096
_WORDS: dict[State, bytes] = {state: state.encode().ljust(_STATE_BYTES - 1) + b"\n" for state in get_args(State)}
_TIME_AT: dict[State, slice] = {"freezing": slice(4064, 4080), "thawed": slice(4080, 4096)}


class FrozenRecord:
    """One guest's record, open for writing; the rendezvous holds it."""

    def __init__(self, path: str, vmid: int, worker_pid: int, agent_path: str, armed_s: float) -> None:
        """Creates the file in state `armed`. Raises OSError."""
        who = {"vmid": vmid, "worker": worker_pid, "agent": agent_path}
        body = {**who, "armed_s": armed_s, "daemon": os.getpid()}
        page = _WORDS["armed"] + json.dumps(body).encode() + b"\n"
        self._path = path
        replace_file(path, page.ljust(_PAGE_BYTES, b"\0").decode("ascii"))
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE_BYTES)

    def say(self, state: State) -> None:
        """Stores the state. No system call, hardly an allocation."""
        if state in _TIME_AT:
            self._page[_TIME_AT[state]] = f"{time.monotonic():.3f}".encode().ljust(_TIME_BYTES)
        self._page[:_STATE_BYTES] = _WORDS[state]

    def remove(self) -> None:
        """Deletes the record: the freeze is confirmed to be over."""
        self._page.close()
        remove_file(self._path)


class FreezeRecord(NamedTuple):
    path: str
    state: State
    vmid: int
    worker_pid: int
    agent_path: str
    armed_s: float
    daemon_pid: int
    """The process that wrote it."""
    frozen_from_s: float
    thawed_at_s: float
    """Both on the monotonic clock; not a number: not sent, not thawed yet."""


def record_path(node: Node, vmid: int) -> str:
    return os.path.join(node.run_dir, "frozen", f"{vmid}.freeze")


def freeze_records(node: Node) -> list[FreezeRecord]:
    """All records on the node. A file that cannot be read is not ours and is left alone."""
    return list(filter(None, map(read_record, files_in(os.path.join(node.run_dir, "frozen"), ".freeze"))))


def read_record(path: str) -> FreezeRecord | None:
    """One record, None when there is none."""
    try:
        page = read_regular_file(path, _PAGE_BYTES)
        state = page[:_STATE_BYTES].decode("ascii").strip()
        body = json.loads(page[_STATE_BYTES:].partition(b"\0")[0])
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
            *(float(page[place].strip(b"\0 ") or nan) for place in _TIME_AT.values()),
        )
    except DAMAGED:
        return None


def remove_record(left: FreezeRecord) -> None:
    """Its guest is thawed or gone. A record that was rewritten since belongs to a newer freeze and stays."""
    now = read_record(left.path)
    if now is not None and now.armed_s == left.armed_s:
        remove_file(left.path)  # one that stays costs the next reader a query of a thawed guest


def leave_thaw_note(left: FreezeRecord, by: str, thawed_at_s: float = nan) -> None:
    """For `take_thaw_note`; `thawed_at_s` on the monotonic clock. A note that cannot be written costs a sentence."""
    frozen_s = thawed_at_s - left.frozen_from_s
    frozen_ms = round(frozen_s * 1000) if isfinite(frozen_s) else None  # a damaged record has any number
    try:
        replace_file(_note_path(left.path), json.dumps({"frozen_ms": frozen_ms, "by": by}))
    except OSError:
        pass


def has_thaw_note(left: FreezeRecord) -> bool:
    return os.path.exists(_note_path(left.path))


def take_thaw_note(record: str) -> tuple[int | None, str] | None:
    """Reads and deletes the note of this guest's last freeze, if there is one: for how many ms it was frozen (None: not
    known), and who saw to it that it is thawed. `record`: as `record_path`."""
    try:
        body = json.loads(read_regular_file(_note_path(record), _PAGE_BYTES))
        remove_file(_note_path(record))
        return None if body["frozen_ms"] is None else int(body["frozen_ms"]), str(body["by"])
    except DAMAGED:
        return None


def _note_path(record: str) -> str:
    return record.removesuffix(".freeze") + ".thawed"
