"""What a run starts ends with it: threads, descriptors and memory of the daemon do not grow with runs and guests.

Set PVEHOOK_FULL_SIZE to play 100 runs and 300 guests, as a node does in a bad week.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from pvehook.contract.guest_facts import Filesystem
from tests.daemon.caller import Caller
from tests.node_under_test import ALWAYS, NEVER, NodeUnderTest
from tests.watch.test_guest_monitor import running_vm

FULL = "PVEHOOK_FULL_SIZE" in os.environ
RUNS = 100 if FULL else 30
GUESTS = 300 if FULL else 60
MEMORY_KIB = 4 * 1024
"""What the allocator may keep between two measurements of a daemon that does not grow."""

GUEST_KIB = 10
"""Of each guest what the run's table at its end is made of."""

GUEST_PHASES = ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "log-end")


class Usage(NamedTuple):
    """Of the daemon's process."""

    threads: int
    descriptors: int
    memory_kib: int


def usage(node: NodeUnderTest) -> Usage:
    proc = Path(f"/proc/{node.daemon.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Usage(int(status["Threads"]), len(os.listdir(proc / "fd")), int(status["VmRSS"].split()[0]))


def play(node: NodeUnderTest, *vmids: int) -> None:
    """One run."""
    with Caller(node) as vzdump:
        for phase in ("job-init", "job-start"):
            assert "exit 0" in vzdump.call(phase)
        for vmid in vmids:
            vzdump.guest(vmid, *GUEST_PHASES)
        assert "exit 0" in vzdump.call("job-end")


def grows_not(before: Usage, after: Usage, guests: int = 0) -> None:
    assert after.threads <= before.threads + 1, (before, after)  # one may be on its way out
    assert after.descriptors <= before.descriptors + 1, (before, after)
    assert after.memory_kib <= before.memory_kib + MEMORY_KIB + guests * GUEST_KIB, (before, after)


def test_run_after_run_takes_no_more_than_the_first_ones(node: NodeUnderTest) -> None:
    for _ in range(RUNS // 10):
        play(node, 101)
    before = usage(node)
    for _ in range(RUNS - RUNS // 10):
        play(node, 101)
    grows_not(before, usage(node))
    assert node.event_names().count("guest-done") == RUNS
    assert "fault" not in node.event_names()
    assert os.listdir(node.root / "run/pvehook/jobs") == []


@pytest.mark.parametrize("window", [ALWAYS, NEVER], ids=["served", "refused"])
def test_runs_leave_no_threads_behind_where_etc_pve_hangs(node: NodeUnderTest, window: str) -> None:
    """The unit's limit is 64. The jobs are asked for the guests' promises, at each run's end and each refusal."""
    node.configure(window)
    jobs = node.root / "etc/pve/jobs.cfg"
    jobs.unlink(missing_ok=True)
    os.mkfifo(jobs)
    play_or_be_refused(node)
    before = usage(node).threads
    for _ in range(RUNS // 5):
        play_or_be_refused(node)
    assert usage(node).threads <= before + 1
    assert "fault" not in node.event_names()


def play_or_be_refused(node: NodeUnderTest) -> None:
    events = len(node.journal.events)
    with Caller(node) as vzdump:
        if "exit 0" in vzdump.call("job-init"):
            vzdump.call("job-start")
            vzdump.guest(101, *GUEST_PHASES)
            vzdump.call("job-end")
    node.wait_for_event("overdue-not-known", after=events)  # a refused run's guests are found out afterwards


def test_guest_after_guest_takes_no_more_than_the_first_ones(node: NodeUnderTest) -> None:
    play(node, *range(101, 101 + GUESTS // 10))
    before = usage(node)
    play(node, *range(101, 101 + GUESTS))
    grows_not(before, usage(node), GUESTS)
    assert "fault" not in node.event_names()


def test_what_a_guest_says_of_itself_is_not_kept_without_a_limit(node: NodeUnderTest) -> None:
    """7000 filesystems with long names were 1.7 MB in the run's recovery note, written at each phase of each guest."""
    many = [Filesystem(f"sd{number}", f"/srv/{number:0200}", "ext4") for number in range(1000)]
    node.configure(ALWAYS + "freeze: {rules: [{guests: [101], mode: auto, except: [/tmp]}]}\n")
    with running_vm(node, filesystems=many), Caller(node) as vzdump:
        for phase in ("job-init", "job-start"):
            assert "exit 0" in vzdump.call(phase)
        vzdump.guest(101, *GUEST_PHASES[:2])
        assert node.wait_for_event("freeze-verdict", vmid="101")["PVEHOOK_MOUNTPOINTS"].startswith("/srv/000")
        (note,) = (node.root / "run/pvehook/jobs").iterdir()
        assert note.stat().st_size < 32 * 1024
        vzdump.guest(101, *GUEST_PHASES[2:])
        assert note.stat().st_size < 32 * 1024
