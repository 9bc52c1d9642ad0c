"""The write-ahead record of a freeze: whoever comes next knows that a guest may be frozen, and by whom.

    /run/pvehook/frozen/101.freeze       one page
        freezing\\n                       the current state, padded to 16 bytes
        {"vmid": 101, "worker": [4711, 8812345], "agent": "/var/run/qemu-server/101.qga", "armed_s": 1795312800.0,
         "daemon": 4712}

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
from pvehook.host.regular_file import read_regular_file

State = Literal["armed", "freezing", "frozen", "thawing", "thawed"]
FROZEN_BY_US: tuple[State, ...] = ("freezing", "frozen", "thawing")
"""With one of these in the record, the guest may be frozen by us. `armed`: nothing was sent yet."""

_STATE_BYTES = 16
_PAGE_BYTES = 4096


class FrozenRecord:
    """One guest's record, open for writing; the rendezvous holds it."""

    def __init__(self, path: str, vmid: int, worker: tuple[int, int], agent_path: str, armed_s: float) -> None:
        """Creates the file in state `armed`. Raises OSError."""
        body = {
            "vmid": vmid,
            "worker": list(worker),
            "agent": agent_path,
            "armed_s": armed_s,
            "daemon": os.getpid(),
        }
        page = _word("armed") + json.dumps(body).encode() + b"\n"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self._path = path
        # A new file, then renamed: a reader never sees half a page, and an old mapping of the path is harmless.
        temporary = f"{path}.{os.getpid()}.new"
        with open(temporary, "w+b") as file:
            file.write(page.ljust(_PAGE_BYTES, b"\0"))
            file.flush()
            self._page = mmap.mmap(file.fileno(), _PAGE_BYTES)
        os.replace(temporary, path)

    def say(self, state: State) -> None:
        """Stores the state. No system call, hardly an allocation."""
        self._page[:_STATE_BYTES] = _WORDS[state]

    def remove(self) -> None:
        """Deletes the record: the freeze is confirmed to be over."""
        self._page.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass


class FreezeRecord(NamedTuple):
    """A record as it was read."""

    path: str
    state: State
    vmid: int
    worker: tuple[int, int]
    agent_path: str
    armed_s: float
    daemon_pid: int
    """The process that wrote it."""


def record_path(node: Node, vmid: int) -> str:
    """The path of one guest's record."""
    return os.path.join(node.run_dir, "frozen", f"{vmid}.freeze")


def freeze_records(node: Node) -> list[FreezeRecord]:
    """All records on the node. A file that cannot be read is not ours and is left alone."""
    directory = os.path.join(node.run_dir, "frozen")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    found = (read_record(os.path.join(directory, name)) for name in names if name.endswith(".freeze"))
    return [each for each in found if each is not None]


def read_record(path: str) -> FreezeRecord | None:
    """One record, None when there is none."""
    try:
        page = read_regular_file(path, _PAGE_BYTES)
        state = page[:_STATE_BYTES].decode("ascii").strip()
        body = json.loads(page[_STATE_BYTES:].rstrip(b"\0"))
        worker_pid, worker_start = body["worker"]
        if state not in get_args(State):
            return None
        return FreezeRecord(
            path,
            state,  # type: ignore[arg-type]  # one of State's words, just looked up
            int(body["vmid"]),
            (int(worker_pid), int(worker_start)),
            str(body["agent"]),
            float(body["armed_s"]),
            int(body["daemon"]),
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def remove_record(left: FreezeRecord) -> None:
    """Its guest is thawed or gone. A record that was rewritten since belongs to a newer freeze and stays."""
    now = read_record(left.path)
    if now is not None and now.armed_s == left.armed_s:
        try:
            os.unlink(left.path)
        except OSError:
            pass  # gone already; or it stays, and costs the next reader a query of a thawed guest


def _word(state: State) -> bytes:
    return state.encode().ljust(_STATE_BYTES - 1) + b"\n"


_WORDS: dict[State, bytes] = {state: _word(state) for state in get_args(State)}
