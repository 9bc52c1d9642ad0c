"""hooks/guest-hook as Proxmox calls it: `SCRIPT VMID PHASE`. A frozen guest is thawed before it is shut down, and no
state of anything keeps a VM from starting or stopping."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.host.node import INSTALLED_UNDER
from pvehook.rescue.freeze_record import FROZEN_BY_US, State, record_path
from tests.guest_files import SimulatedGuest
from tests.node_under_test import REPO, NodeUnderTest
from tests.rescue.test_thaw_command import leave_record

STATES: tuple[State, ...] = get_args(State)
ENVIRONMENT = {"PATH": "/sbin:/bin:/usr/sbin:/usr/bin", "LC_ALL": "C"}
"""Proxmox runs its daemons and `qm` with little more than that."""

PHASES = ("pre-start", "post-start", "pre-stop", "post-stop")


def call(script: Path | str, *arguments: str, stdout: int = subprocess.PIPE) -> str:
    """What Proxmox shows in the task log of the VM's start or stop. The exit code is 0, always."""
    done = subprocess.run(
        [str(script), *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        text=True, check=False, timeout=30, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def node(node_without_daemon: NodeUnderTest) -> NodeUnderTest:
    return node_without_daemon


@pytest.fixture
def hook(node: NodeUnderTest) -> Path:
    return Path(node.hook).with_name("guest-hook")


@pytest.fixture
def frozen(node: NodeUnderTest) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101) as guest:
        with open_agent(guest.qga_path, Deadline.after(5)) as agent:
            agent.fsfreeze_freeze(None, Deadline.after(5))
        yield guest


@pytest.mark.parametrize("state", [None, *STATES])
def test_before_a_shutdown_exactly_our_freezes_are_thawed(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest, state: State | None
) -> None:
    if state:
        leave_record(node, state)
    said = call(hook, "101", "pre-stop")
    is_ours = state in FROZEN_BY_US
    assert frozen.is_frozen is not is_ours
    thawed = "pvehook: guest 101: a freeze by pvehook was left over; now it reports thawed, 2 filesystems\n"
    assert said == (thawed if is_ours else "")
    assert os.path.exists(record_path(node.node, 101)) is (state is not None and not is_ours)


def test_another_guests_record_thaws_nobody(node: NodeUnderTest, hook: Path, frozen: SimulatedGuest) -> None:
    leave_record(node, "frozen", 102)
    assert call(hook, "101", "pre-stop") == ""
    assert frozen.is_frozen


def test_a_guest_that_cannot_be_thawed_is_named_and_stopped_all_the_same(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest
) -> None:
    leave_record(node, "frozen")
    frozen.stick("agent")
    said = call(hook, "101", "pre-stop")
    assert said.startswith("pvehook: guest 101: STILL FROZEN, as far as we know: ")
    frozen.unstick("agent")


@pytest.mark.parametrize("state", STATES)
def test_after_a_start_the_record_is_forgotten_and_nobody_is_thawed(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest, state: State
) -> None:
    record, other = leave_record(node, state), leave_record(node, state, 102)
    assert call(hook, "101", "post-start") == ""
    assert not record.exists()
    assert other.exists()
    assert frozen.is_frozen


@pytest.mark.parametrize(
    "arguments",
    [
        ("101", "pre-start"),
        ("101", "post-stop"),
        ("101", "pre-migrate"),
        ("101", ""),
        ("101",),
        (),
        ("pre-stop", "101"),
        ("web", "pre-stop"),
        ("-101", "pre-stop"),
        ("\u00b2", "pre-stop"),  # a digit to str.isdigit(), and no number
        ("../101", "pre-stop"),
        ("9" * 5000, "pre-stop"),
        ("101", "pre-stop", "and more"),
    ],
)
def test_anything_else_does_nothing(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest, arguments: tuple[str, ...]
) -> None:
    record = leave_record(node, "frozen")
    said = call(hook, *arguments)
    assert said == "" or said.startswith("pvehook: fault in the guest hook")
    assert frozen.is_frozen
    assert record.exists()


@pytest.mark.parametrize("phase", PHASES)
def test_without_the_program_the_vm_starts_and_stops(node: NodeUnderTest, hook: Path, phase: str) -> None:
    (node.root / INSTALLED_UNDER.lstrip("/") / "pvehook").unlink()
    said = call(hook, "101", phase)
    assert ("not installed any more; take this script off: qm set 101 --delete hookscript" in said) is (
        phase in ("pre-stop", "post-start")
    )


@pytest.mark.parametrize("phase", PHASES)
def test_a_program_that_is_broken_keeps_no_vm_from_stopping(node: NodeUnderTest, hook: Path, phase: str) -> None:
    program = node.root / INSTALLED_UNDER.lstrip("/") / "pvehook"
    program.unlink()
    program.mkdir()
    (program / "__init__.py").write_text("this is half an upgra")
    said = call(hook, "101", phase)
    assert said.startswith("pvehook: fault in the guest hook (SyntaxError(")


def test_nobody_reads_what_it_says(node: NodeUnderTest, hook: Path, frozen: SimulatedGuest) -> None:
    leave_record(node, "frozen")
    read, write = os.pipe()
    os.close(read)
    try:
        call(hook, "101", "pre-stop", stdout=write)
    finally:
        os.close(write)
    assert not frozen.is_frozen


def copy_of(hook: Path, at: Path) -> Path:
    """A copy in a storage's snippets, for which this tree is the node."""
    text = hook.read_text()
    line = 'INSTALLED = "/usr/local/lib/pvehook/hooks/guest-hook"\n'
    assert text.count(line) == 1
    at.write_text(text.replace(line, f'INSTALLED = "{hook}"\n'))
    at.chmod(0o755)
    return at


@pytest.mark.parametrize("how", ["link", "copy"])
def test_as_a_snippet_it_runs_the_installed_one(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest, how: str
) -> None:
    leave_record(node, "frozen")
    tree = node.root / INSTALLED_UNDER.lstrip("/")
    (tree / "hooks").unlink()
    shutil.copytree(REPO / "hooks", tree / "hooks")
    snippet = node.root / "pvehook-guest-hook"
    if how == "link":
        snippet.symlink_to(hook)
    else:
        copy_of(hook, snippet)
    assert "now it reports thawed" in call(snippet, "101", "pre-stop")
    assert not frozen.is_frozen


def test_a_copy_passes_everything_to_whatever_is_installed(node: NodeUnderTest, hook: Path) -> None:
    """An upgrade may change everything but the place: the copy knows nothing else."""
    snippet = copy_of(hook, node.root / "snippet")
    hook.parent.unlink()
    hook.parent.mkdir()
    hook.write_text('#!/bin/sh\necho "$@"\n')
    hook.chmod(0o755)
    assert call(snippet, "101", "pre-migrate", "and more") == "101 pre-migrate and more\n"


@pytest.mark.parametrize("phase", PHASES)
def test_a_copy_outlives_the_program(node: NodeUnderTest, hook: Path, phase: str) -> None:
    snippet = copy_of(hook, node.root / "snippet")
    hook.parent.unlink()
    said = call(snippet, "101", phase)
    assert ("take this script off: qm set 101 --delete hookscript" in said) is (phase in ("pre-stop", "post-start"))


def test_a_copy_of_another_node_leaves_this_tree_alone(node: NodeUnderTest, hook: Path, frozen: SimulatedGuest) -> None:
    leave_record(node, "frozen")
    snippet = node.root / "pvehook-guest-hook"
    shutil.copy(hook, snippet)
    call(snippet, "101", "pre-stop")
    assert frozen.is_frozen


OWN = '#!/bin/sh\necho "own $@"\nexit {code}\n'


def chaining(hook: Path, directory: Path, own: str | None) -> Path:
    """A copy that chains `own.pl`, as `pvehook guests hookscript enable` puts it beside that."""
    directory.mkdir()
    if own is not None:
        (directory / "own.pl").write_text(own)
        (directory / "own.pl").chmod(0o755)
    return copy_of(hook, directory / "pvehook-guest-hook.own.pl")


def ends(script: Path, *arguments: str) -> tuple[int, str]:
    """Its exit code and what Proxmox shows."""
    done = subprocess.run(
        [str(script), *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=30, cwd="/",
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("phase", PHASES)
def test_the_guests_own_script_is_run_as_before_and_its_exit_code_counts(
    node: NodeUnderTest, hook: Path, phase: str, code: int
) -> None:
    script = chaining(hook, node.root / "snippets", OWN.format(code=code))
    assert ends(script, "101", phase) == (code, f"own 101 {phase}\n")


def test_a_frozen_guest_is_thawed_before_its_own_script_is_run(
    node: NodeUnderTest, hook: Path, frozen: SimulatedGuest
) -> None:
    leave_record(node, "frozen")
    code, said = ends(chaining(hook, node.root / "snippets", OWN.format(code=0)), "101", "pre-stop")
    first, second = said.splitlines()
    assert "now it reports thawed" in first
    assert (code, second) == (0, "own 101 pre-stop")
    assert not frozen.is_frozen


def test_the_guests_own_script_has_no_child_that_it_did_not_start(node: NodeUnderTest, hook: Path) -> None:
    own = "#!/usr/bin/python3 -IS\nimport os\ntry: print(os.waitpid(-1, 0))\nexcept ChildProcessError: print('none')\n"
    assert ends(chaining(hook, node.root / "snippets", own), "101", "post-stop") == (0, "none\n")


@pytest.mark.parametrize("phase", PHASES)
def test_the_guests_own_script_outlives_the_program(node: NodeUnderTest, hook: Path, phase: str) -> None:
    script = chaining(hook, node.root / "snippets", OWN.format(code=3))
    hook.parent.unlink()
    code, said = ends(script, "101", phase)
    assert code == 3
    assert said.endswith(f"own 101 {phase}\n")
    assert ("give the guest its own hookscript back: own.pl" in said) is (phase in ("pre-stop", "post-start"))


@pytest.mark.parametrize("own", [None, "no interpreter's line"])
def test_one_that_cannot_be_run_fails_as_it_does_in_proxmox(node: NodeUnderTest, hook: Path, own: str | None) -> None:
    code, said = ends(chaining(hook, node.root / "snippets", own), "101", "pre-start")
    assert code == 1
    assert said.startswith("pvehook: the guest's own hookscript cannot be run: ")
