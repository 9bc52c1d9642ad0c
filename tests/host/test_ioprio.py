"""Priorities of real threads, set by pvehook and read back by somebody else: psutil asks the kernel itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pvehook.errors import NodeError
from pvehook.host import ioprio
from pvehook.host.ioprio import IDLE, NONE, Priority, restore_normal, set_all_threads
from pvehook.host.node import Node

if TYPE_CHECKING:
    from tests.host.players import Player

NODE = Node()
NOBODY = 65534
CAP_SYS_NICE = 1 << 23


def may_lower_niceness() -> bool:
    """Root in a container often lacks just this capability, so the user id says nothing."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & CAP_SYS_NICE)


needs_sys_nice = pytest.mark.skipif(not may_lower_niceness(), reason="lowering niceness needs CAP_SYS_NICE")


def threads_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def classes_of(pid: int) -> set[int]:
    return {int(psutil.Process(tid).ionice().ioclass) for tid in threads_of(pid)}


def niceness_of(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, tid) for tid in threads_of(pid)}


def with_threads(player: Player, number: int) -> Player:
    for _ in range(number):
        player.tell("thread")
    return player


def test_every_thread_is_idle_and_read_back(start: Callable[..., Player]) -> None:
    player = with_threads(start(), 3)
    done = set_all_threads(NODE, player.pid, IDLE)
    assert (done.threads, done.confirmed, done.changed, done.failed) == (4, 4, 4, ())
    assert done.comm.startswith("python")
    assert classes_of(player.pid) == {IDLE.io_class}


def test_psutil_alone_would_have_left_threads_behind(start: Callable[..., Player]) -> None:
    player = with_threads(start(), 1)
    psutil.Process(player.pid).ionice(psutil.IOPRIO_CLASS_IDLE)
    assert classes_of(player.pid) == {NONE.io_class, IDLE.io_class}
    assert set_all_threads(NODE, player.pid, IDLE).changed == 1


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed: vzdump's compressor is not tried")
def test_a_real_compressor_is_idle_on_all_its_threads() -> None:
    with (
        open("/dev/urandom", "rb") as endless,
        subprocess.Popen(["zstd", "-T2", "-c"], stdin=endless, stdout=subprocess.PIPE) as zstd,
    ):
        try:
            assert zstd.stdout
            assert zstd.stdout.read(1)  # so its workers have started; it cannot end, we read no further
            done = set_all_threads(NODE, zstd.pid, IDLE, nice=5)
            assert done.threads >= 3
            assert (done.comm, done.confirmed, done.failed) == ("zstd", done.threads, ())
            assert classes_of(zstd.pid) == {IDLE.io_class}
            assert niceness_of(zstd.pid) == {5}
        finally:
            zstd.kill()


def test_what_is_born_later_inherits_and_needs_no_writing(start: Callable[..., Player]) -> None:
    player = start()
    set_all_threads(NODE, player.pid, IDLE)
    with_threads(player, 2)
    again = set_all_threads(NODE, player.pid, IDLE)
    assert (again.threads, again.confirmed, again.changed) == (3, 3, 0)


@pytest.mark.skipif(shutil.which("ionice") is None, reason="ionice is not installed: what PVE does is not tried")
def test_what_vzdump_made_idle_with_ionice_needs_no_writing(start: Callable[..., Player]) -> None:
    player = start()
    subprocess.run(["ionice", "-c3", "-p", str(player.pid)], check=True)  # stores level 7, which means nothing
    done = set_all_threads(NODE, player.pid, IDLE)
    assert (done.threads, done.confirmed, done.changed) == (1, 1, 0)


def test_a_thread_born_while_we_walk_is_caught(
    start: Callable[..., Player], monkeypatch: pytest.MonkeyPatch
) -> None:
    player = start()
    really_list = ioprio._thread_ids
    listings = 0

    def list_then_give_birth(node: Node, pid: int) -> list[int]:
        nonlocal listings
        listings += 1
        tids = really_list(node, pid)
        if listings == 1:
            player.tell("thread")  # by a thread that is not idle yet, so it is not either
        return tids

    monkeypatch.setattr(ioprio, "_thread_ids", list_then_give_birth)
    done = set_all_threads(NODE, player.pid, IDLE)
    assert (done.threads, done.confirmed, done.changed) == (2, 2, 2)
    assert classes_of(player.pid) == {IDLE.io_class}


def test_a_process_that_makes_threads_faster_than_we_walk_ends_the_walk_and_is_told(
    start: Callable[..., Player], monkeypatch: pytest.MonkeyPatch
) -> None:
    player = start()
    really_write = ioprio._write_priority

    def write_nothing(tid: int, priority: Priority) -> None:
        really_write(tid, Priority(2, 4))  # the kernel says yes each time, and it is not what was asked

    monkeypatch.setattr(ioprio, "_write_priority", write_nothing)
    done = set_all_threads(NODE, player.pid, IDLE)
    assert (done.threads, done.confirmed) == (1, 0)
    assert "does not show it" in done.failed[0]


def test_a_first_thread_that_ended_is_no_failure(start: Callable[..., Player]) -> None:
    player = start()
    player.tell("end_first_thread")
    wait_for_zombie(player.pid)
    done = set_all_threads(NODE, player.pid, IDLE)
    assert (done.threads, done.confirmed, done.failed) == (1, 1, ())


def wait_for_zombie(tid: int) -> None:
    """The player answers just before its first thread ends; the rest is the kernel's few microseconds."""
    for _ in range(1_000_000):
        if ") Z " in Path(f"/proc/{tid}/task/{tid}/stat").read_text():
            return
        os.sched_yield()
    raise AssertionError("the first thread does not end")


def test_a_process_that_is_gone_has_no_threads(start: Callable[..., Player]) -> None:
    player = start()
    player.end()
    assert set_all_threads(NODE, player.pid, IDLE) == ("", 0, 0, (), 0, 0, 0)
    assert restore_normal(NODE, player.pid) == ("", 0, 0, (), 0, 0, 0)


def test_niceness_is_only_ever_raised(start: Callable[..., Player]) -> None:
    player = with_threads(start(), 1)
    set_all_threads(NODE, player.pid, IDLE, nice=7)
    assert niceness_of(player.pid) == {7}
    assert set_all_threads(NODE, player.pid, IDLE, nice=3).changed == 0
    assert set_all_threads(NODE, player.pid, IDLE).changed == 0
    assert niceness_of(player.pid) == {7}


@needs_sys_nice
def test_a_guest_that_inherited_idle_and_niceness_is_normal_again(start: Callable[..., Player]) -> None:
    player = with_threads(start(), 2)
    set_all_threads(NODE, player.pid, IDLE, nice=10)
    done = restore_normal(NODE, player.pid)
    assert (done.was_idle, done.was_nice, done.changed) == (3, 3, 3)
    assert (done.threads, done.confirmed, done.failed) == (3, 3, ())
    assert classes_of(player.pid) == {NONE.io_class}
    assert niceness_of(player.pid) == {0}


def test_only_one_idle_thread_among_others_is_found_and_restored(start: Callable[..., Player]) -> None:
    player = with_threads(start(), 2)
    psutil.Process(threads_of(player.pid)[-1]).ionice(psutil.IOPRIO_CLASS_IDLE)
    done = restore_normal(NODE, player.pid)
    assert (done.was_idle, done.changed, done.confirmed) == (1, 1, 3)
    assert classes_of(player.pid) == {NONE.io_class}


def test_vzdumps_default_of_best_effort_7_is_taken_off_too(start: Callable[..., Player]) -> None:
    player = start()
    set_all_threads(NODE, player.pid, Priority(2, 7))
    done = restore_normal(NODE, player.pid)
    assert (done.was_idle, done.changed) == (0, 1)
    assert classes_of(player.pid) == {NONE.io_class}


def test_a_process_nobody_touched_is_left_alone(start: Callable[..., Player]) -> None:
    done = restore_normal(NODE, with_threads(start(), 1).pid)
    assert (done.threads, done.confirmed, done.changed, done.was_idle, done.was_nice) == (2, 2, 0, 0, 0)


def as_nobody(what: Callable[[], object]) -> str:
    """Runs `what` in a child that has no privilege over others; the text of what it returns or raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            text = repr(what())
        except BaseException as error:  # nothing may reach pytest in the child
            text = f"raised {error!r}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_niceness_that_may_not_be_lowered_is_reported_and_the_rest_done() -> None:
    def nice_and_idle() -> object:
        os.nice(5)
        set_all_threads(NODE, os.getpid(), IDLE)
        return restore_normal(NODE, os.getpid())

    text = as_nobody(nice_and_idle)
    assert "niceness 5 to 0: Permission denied" in text
    assert "confirmed=0" in text
    assert "was_idle=1" in text
    assert "I/O priority" not in text  # that part went well


def test_a_refusal_is_told_and_not_raised() -> None:
    somebody_elses = os.getpid() if os.geteuid() == 0 else 1
    text = as_nobody(lambda: set_all_threads(NODE, somebody_elses, IDLE))
    assert "threads: I/O priority none to idle: Operation not permitted" in text
    assert "confirmed=0" in text


def test_a_machine_whose_system_calls_are_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*uname[:4], "riscv64")))
    with pytest.raises(NodeError, match="riscv64"):
        set_all_threads(NODE, os.getpid(), IDLE)


def test_the_hook_can_afford_to_import_it() -> None:
    code = (
        "import sys; before = set(sys.modules); import pvehook.host.ioprio; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pvehook.host.ioprio" in loaded
    assert not loaded & {"psutil", "structlog", "yaml", "logging", "asyncio", "subprocess", "pathlib", "inspect"}
