"""Which other programs belong to a backup by the directory that it is written to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.host.processes import Found, ProcessId
from pvehook.host.timely_files import Readers
from pvehook.priority import idle_priority
from pvehook.priority.idle_priority import IdlePriority
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import journal_log
from pvehook.records.run_state import RunState
from pvehook.settings import DEFAULT


@pytest.mark.parametrize(
    ("dumpdir", "wanted"),
    [("/mnt/usb/dump", [("rsync", "/mnt/usb/dump")]), (".", []), ("./dump", []), (None, [])],
)
def test_a_relative_dump_directory_names_no_rsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dumpdir: str | None, wanted: list[tuple[str, str]]
) -> None:
    """`--dumpdir .` would take every rsync of the node: a dot is in every command line."""
    asked: list[tuple[str, str]] = []

    def found(_node: Node, _worker: ProcessId, also: Iterable[tuple[str, str]]) -> list[Found]:
        asked.extend(also)
        return []

    monkeypatch.setattr(idle_priority, "backup_processes", found)
    node = Node(str(tmp_path))
    context = Context(node, SystemClock(), Readers(), journal_log(node.journal_socket))
    run = RunState(ProcessId(4711, 1), "", 0.0, dumpdir=dumpdir)
    guest = GuestRecord(vmid=101, mode="snapshot", vmtype="qemu", name=None, started_s=0.0)
    IdlePriority(context, run, guest).check(DEFAULT.io_priority)
    assert asked == wanted
