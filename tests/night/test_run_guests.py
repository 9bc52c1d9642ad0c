"""Whom a run backs up, where its job or the command that started it tells."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, identify
from pvehook.host.timely_files import TimelyReader
from pvehook.night.run_guests import guests_of_run
from pvehook.records.run_state import RunState

UPID = "UPID:pve:000019A9:0014546C:6B0BFAFC:vzdump::root@pam:"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """With guests 101 to 104, of which 102 and 103 are in a pool."""
    (tmp_path / "proc").symlink_to("/proc")
    for vmid in (101, 102, 103):
        write(tmp_path / f"etc/pve/qemu-server/{vmid}.conf", f"name: vm{vmid}\n")
    write(tmp_path / "etc/pve/lxc/104.conf", "hostname: ct104\n")
    write(tmp_path / "etc/pve/user.cfg", "pool:web::102,103::\n")
    return Node(str(tmp_path))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Ends what a test started, with its child."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for each in processes:
        each.communicate()


@pytest.mark.parametrize(
    ("command", "guests"),
    [
        ("101,103 104 --mode snapshot --storage nas", [101, 103, 104]),
        ("103 102", [102, 103]),
        ("101 999", [101]),  # of another node, or of none
        ("--all --exclude 102", [101, 103, 104]),
        ("--pool web --quiet", [102, 103]),
        ("--mode stop", []),
    ],
)
def test_those_of_the_command_that_started_it(
    node: Node, tmp_path: Path, started: list[subprocess.Popen[str]], command: str, guests: list[int]
) -> None:
    program = tmp_path / "bin/vzdump"
    write(program, "(echo $BASHPID; exec cat) <&0\n:\n")  # the task, which lives until its input ends
    words = ["bash", str(program), *command.split()]
    vzdump = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started.append(vzdump)
    assert vzdump.stdout is not None
    worker = identify(node, int(vzdump.stdout.readline()))
    assert worker is not None
    assert guests_of_run(node, TimelyReader(), RunState(worker, UPID, 0.0)) == guests


def test_a_task_that_the_web_page_started_tells_nothing_but_a_single_guest(node: Node) -> None:
    nobody = ProcessId(1 << 22, 1)
    assert guests_of_run(node, TimelyReader(), RunState(nobody, UPID, 0.0)) == []
    one = UPID.replace("vzdump::", "vzdump:102:")
    assert guests_of_run(node, TimelyReader(), RunState(nobody, one, 0.0)) == [102]
