"""How long threads waited for a CPU: as the kernel writes it, and against the clock on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.host.node import Node
from pvehook.host.run_delay import run_delay_ns

PID = 4711


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(str(tmp_path))


def write_thread(node: Node, tid: int, schedstat: str | None) -> None:
    thread = Path(node.path(f"/proc/{PID}/task/{tid}"))
    thread.mkdir(parents=True)
    if schedstat is not None:
        (thread / "schedstat").write_text(schedstat)


def test_the_second_number_of_each_thread_asked_for(node: Node) -> None:
    write_thread(node, 4711, "900 70 3\n")
    write_thread(node, 4720, "2183940221 1598004511 8123\n")
    write_thread(node, 4721, "12000 0 1\n")
    assert run_delay_ns(node, PID, [4720, 4721]) == {4720: 1_598_004_511, 4721: 0}


def test_a_thread_that_is_gone_is_left_out(node: Node) -> None:
    write_thread(node, 4720, "100 50 3\n")
    assert run_delay_ns(node, PID, [4719, 4720]) == {4720: 50}
    assert run_delay_ns(node, PID, [4719]) == {}
    assert run_delay_ns(node, PID + 1, [4720]) == {}


def test_a_kernel_that_does_not_count_is_absent(node: Node) -> None:
    write_thread(node, 4720, None)
    assert isinstance(run_delay_ns(node, PID, [4720]), Absent)


def test_a_kernel_that_writes_zeros_for_all_is_absent(node: Node) -> None:
    write_thread(node, 4720, "0 0 0\n")
    write_thread(node, 4721, "0 0 0\n")
    assert isinstance(run_delay_ns(node, PID, [4720, 4721]), Absent)


def test_a_thread_that_never_waited_is_zero(node: Node) -> None:
    write_thread(node, 4720, "0 0 1\n")
    write_thread(node, 4721, "0 0 0\n")  # just made
    assert run_delay_ns(node, PID, [4720, 4721]) == {4720: 0, 4721: 0}


@pytest.mark.parametrize("text", ["", "1 2\n", "1 2 3 4\n", "a b c\n", "9" * 5000])
def test_what_is_no_schedstat_is_broken(node: Node, text: str) -> None:
    write_thread(node, 4720, text)
    assert isinstance(run_delay_ns(node, PID, [4720]), Broken)


def test_what_cannot_be_read_is_broken(node: Node) -> None:
    Path(node.path(f"/proc/{PID}/task/4720/schedstat")).mkdir(parents=True)
    found = run_delay_ns(node, PID, [4720])
    assert isinstance(found, Broken)
    assert "Is a directory" in found.why


# The kernel of this machine


@pytest.fixture
def one_cpu_for_two() -> Iterator[None]:
    """This process shares one CPU with another one that always wants it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    hog = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True)\nfor _ in range(10**10): pass"], stdout=subprocess.PIPE
    )
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline() == b"up\n"
        yield
    finally:
        hog.kill()
        hog.communicate()
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu_for_two")
def test_what_the_clock_says_beyond_the_own_work_was_waited_for() -> None:
    node, thread = Node(), os.getpid()
    before = run_delay_ns(node, thread, [thread])
    if isinstance(before, Absent):
        pytest.skip(before.why)
    began_ns, worked_ns = time.monotonic_ns(), time.thread_time_ns()
    while time.thread_time_ns() - worked_ns < 100_000_000:
        pass
    lost_ns = time.monotonic_ns() - began_ns - (time.thread_time_ns() - worked_ns)
    after = run_delay_ns(node, thread, [thread])
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    waited_ns = after[thread] - before[thread]
    # About 100 ms: the other one had its share. Of what was lost some may be a hypervisor's under this machine.
    assert 20_000_000 < waited_ns <= lost_ns + 10_000_000
