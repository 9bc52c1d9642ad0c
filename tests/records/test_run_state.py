"""A run's recovery note is read as it was written, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.records import run_state
from pvehook.records.guest_record import FreezeSummary, GuestRecord
from pvehook.records.run_state import RunState


def run() -> RunState:
    guest = GuestRecord(101, "snapshot", "qemu", "web", 1000.5, idle={"zstd": [1, 5, 5]}, seen={"host": {"at_s": 1}})
    guest.freeze = FreezeSummary("freeze", ["safe: ..."], mountpoints=["/", "/home"])
    done = GuestRecord(102, "stop", "lxc", None, 900.0, state="accounted", result="ok")
    return RunState(ProcessId(4711, 99), "UPID:pve:...", 800.0, began=True, waiting=[103], guest=guest, done=[done])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(str(tmp_path))
    Path(node.run_dir).mkdir(parents=True)
    return node


def note(node: Node) -> Path:
    return Path(node.run_dir) / "jobs" / "4711-99.json"


def test_what_was_written_is_what_is_read(node: Node) -> None:
    run_state.save(node, run())
    assert run_state.load_all(node) == [run()]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("started_s",), "yesterday"),
        (("waiting",), "103"),
        (("waiting",), ["103"]),
        (("worker",), [4711, 99]),
        (("guest", "idle"), {"zstd": [1, None, 5]}),
        (("guest", "state"), "asleep"),
        (("guest", "freeze", "mountpoints"), "/"),
        (("done", 0, "result"), 7),
        (("more",), 1),
    ],
)
def test_a_note_of_wrong_types_is_no_run_and_is_removed(node: Node, place: tuple[Any, ...], value: object) -> None:
    run_state.save(node, run())
    body = json.loads(note(node).read_text())
    inside = body
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    note(node).write_text(json.dumps(body))
    assert run_state.load_all(node, tidy=False) == []
    assert note(node).exists()
    assert run_state.load_all(node) == []
    assert not note(node).exists()
