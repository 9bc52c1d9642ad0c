"""I/O priority of every thread of a process, read from and written to the kernel.

A kernel I/O priority belongs to a thread (`struct io_context` of one task), not to a process: threads and
children born later inherit it, threads that exist keep what they have. psutil's `Process.ionice()` calls
ioprio_set for the one thread whose id is the pid, so the workers of `zstd -T2` or the I/O threads of a QEMU
would stay as they were. So this walks /proc/PID/task, and reads back what it wrote.

Imports only os and ctypes: the hook uses this without the daemon, while vzdump waits.

Numbers: Linux include/uapi/linux/ioprio.h; the system call numbers from the kernel's two tables.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from pvehook.errors import NodeError
from pvehook.host.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

_SYSCALLS = {"x86_64": (251, 252), "aarch64": (30, 31)}  # machine: (ioprio_set, ioprio_get)
_WHO_PROCESS = 1  # IOPRIO_WHO_PROCESS, which means one thread
_CLASS_SHIFT = 13
_LEVEL_MASK = 0b111  # bits 3..12 are hints since Linux 6.5, no part of the level

_MAX_PASSES = 8
"""A thread that is not set yet may create another while we walk. Two passes usually do; the limit is for a
process that creates threads faster than we can walk them."""

_libc = ctypes.CDLL(None, use_errno=True)


class Priority(NamedTuple):
    """One I/O priority: the kernel's class and the level in it (0 first, 7 last)."""

    io_class: int
    level: int


NONE = Priority(0, 0)
"""Not set: the kernel derives a best-effort level from the niceness. What every process starts with."""

BEST_EFFORT = Priority(2, 4)
"""Best effort in the middle: what NONE amounts to at niceness 0."""

IDLE = Priority(3, 0)
"""Served only when no other thread wants the disk, if the disk's scheduler honours classes at all."""


class ThreadState(NamedTuple):
    """What the kernel holds for one thread. `nice` is CPU niceness, -20 to 19."""

    priority: Priority
    nice: int


class ThreadsSet(NamedTuple):
    """What `set_all_threads` found at its end.

    `threads` were seen in the last pass, `confirmed` of them read back with the wanted values, `changed`
    were written to. `failed` has one text per kind of refusal. A process that has ended has
    0 threads and the comm "".
    """

    pid: int
    comm: str
    threads: int
    confirmed: int
    failed: tuple[str, ...]
    changed: int


class Restored(NamedTuple):
    """What `restore_normal` left, as `ThreadsSet`; and how many threads were idle or nice before."""

    pid: int
    comm: str
    threads: int
    confirmed: int
    failed: tuple[str, ...]
    changed: int
    was_idle: int
    was_nice: int


def read_all_threads(node: Node, pid: int) -> dict[int, ThreadState]:
    """What the kernel holds for each thread of `pid`, by thread id; empty if the process is gone.

    Raises NodeError on a machine whose system call numbers are not known.
    """
    states = {}
    for tid in _thread_ids(node, pid):
        try:
            states[tid] = ThreadState(_read_priority(tid), os.getpriority(os.PRIO_PROCESS, tid))
        except OSError as error:
            if error.errno != errno.ESRCH:  # ESRCH: the thread ended since the listing
                raise
    return states


def set_all_threads(node: Node, pid: int, priority: Priority, nice: int | None = None) -> ThreadsSet:
    """Sets every thread of `pid` to the I/O priority, and to at least the niceness `nice` (None: leave it alone).

    A thread that is nicer already stays so: backup processes are never favoured.
    Only threads that differ are written to. What the kernel refuses is in `failed`, not raised.
    Raises NodeError on a machine whose system call numbers are not known.
    """

    def wanted(now: ThreadState) -> ThreadState:
        return ThreadState(priority, now.nice if nice is None else max(now.nice, nice))

    outcome = _settle(node, pid, wanted)
    return ThreadsSet(
        pid, outcome.comm, outcome.threads, outcome.confirmed, outcome.failed, len(outcome.before)
    )


def restore_normal(node: Node, pid: int) -> Restored:
    """Sets every thread of `pid` to the I/O priority and niceness that processes start with.

    Niceness goes back to 0 where it was above. That needs CAP_SYS_NICE; without it the I/O priority is
    restored all the same and `failed` says what is left. Raises NodeError as `set_all_threads`.
    """
    outcome = _settle(node, pid, lambda now: ThreadState(NONE, min(now.nice, 0)))
    return Restored(
        pid,
        outcome.comm,
        outcome.threads,
        outcome.confirmed,
        outcome.failed,
        changed=len(outcome.before),
        was_idle=sum(state.priority == IDLE for state in outcome.before.values()),
        was_nice=sum(state.nice > 0 for state in outcome.before.values()),
    )


class _Outcome(NamedTuple):
    comm: str
    threads: int
    confirmed: int
    failed: tuple[str, ...]
    before: dict[int, ThreadState]
    """The threads that were written to, as they were first seen."""


def _settle(node: Node, pid: int, wanted: Callable[[ThreadState], ThreadState]) -> _Outcome:
    """Writes to the threads of `pid` until one whole pass finds nothing left to write."""
    comm = _comm(node, pid)
    before: dict[int, ThreadState] = {}
    refused: dict[int, str] = {}
    states = read_all_threads(node, pid)
    for _ in range(_MAX_PASSES):
        todo = [tid for tid, now in states.items() if now != wanted(now) and tid not in refused]
        if not todo:
            break
        for tid in todo:
            now = states[tid]
            before.setdefault(tid, now)
            try:
                refusal = _write(tid, now, wanted(now))
            except ProcessLookupError:
                before.pop(tid)  # it ended before it could be written to
                continue
            if refusal:
                refused[tid] = refusal
        states = read_all_threads(node, pid)

    wrong = {tid for tid, now in states.items() if now != wanted(now)}
    wrong_and_alive = {tid for tid in wrong if not _has_ended(node, pid, tid)}
    texts = [refused.get(tid, "the kernel took the value but does not show it") for tid in wrong_and_alive]
    threads = len(states) - len(wrong) + len(wrong_and_alive)
    return _Outcome(
        comm,
        threads,
        confirmed=threads - len(wrong_and_alive),
        failed=tuple(f"{texts.count(text)} of {threads} threads: {text}" for text in sorted(set(texts))),
        before=before,
    )


def _write(tid: int, now: ThreadState, wanted: ThreadState) -> str:
    """Writes what differs. Returns what was refused, "" if nothing; raises ProcessLookupError if it ended."""
    refusals = []
    if now.priority != wanted.priority:
        try:
            _write_priority(tid, wanted.priority)
        except ProcessLookupError:
            raise
        except OSError as error:
            change = f"{_text(now.priority)} to {_text(wanted.priority)}"
            refusals.append(f"I/O priority {change}: {error.strerror}")
    if now.nice != wanted.nice:
        try:
            os.setpriority(os.PRIO_PROCESS, tid, wanted.nice)
        except ProcessLookupError:
            raise
        except OSError as error:
            refusals.append(f"niceness {now.nice} to {wanted.nice}: {error.strerror}")
    return "; ".join(refusals)


def _text(priority: Priority) -> str:
    name = {0: "none", 1: "realtime", 2: "best-effort", 3: "idle"}.get(priority.io_class, "unknown class")
    return f"{name} {priority.level}" if priority.io_class in (1, 2) else name


def _read_priority(tid: int) -> Priority:
    """Raises OSError; ESRCH if there is no such thread."""
    value = int(_libc.syscall(_syscall_numbers()[1], _WHO_PROCESS, tid))
    if value < 0:
        raise _os_error()
    io_class = value >> _CLASS_SHIFT & 0b111
    # The kernel keeps a level for every class but reads it only in two of them; ionice stores 7 with idle,
    # older kernels show 4 for a thread that was never set. Without this such threads would never be equal.
    level = value & _LEVEL_MASK if io_class in (1, 2) else 0
    return Priority(io_class, level)


def _write_priority(tid: int, priority: Priority) -> None:
    value = priority.io_class << _CLASS_SHIFT | priority.level
    if _libc.syscall(_syscall_numbers()[0], _WHO_PROCESS, tid, value) < 0:
        raise _os_error()


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))  # Python makes it a ProcessLookupError if it is ESRCH


def _syscall_numbers() -> tuple[int, int]:
    machine = os.uname().machine
    numbers = _SYSCALLS.get(machine)
    if numbers is None:
        raise NodeError(
            f"I/O priority cannot be set on this machine: it is {machine}, "
            f"pvehook knows the system calls of {' and '.join(_SYSCALLS)}"
        )
    return numbers


def _thread_ids(node: Node, pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(node.path(f"/proc/{pid}/task")) if name.isdigit()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _has_ended(node: Node, pid: int, tid: int) -> bool:
    """Whether the thread does no I/O any more: it ended, or it is a first thread that ended before the others.

    Such a first thread stays listed as a zombie; the kernel dropped its I/O priority and takes no new one.
    """
    try:
        with open(node.path(f"/proc/{pid}/task/{tid}/stat"), "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return True
    state = stat[stat.rfind(b")") + 2 :][:1]
    return state in (b"Z", b"X")


def _comm(node: Node, pid: int) -> str:
    try:
        with open(node.path(f"/proc/{pid}/comm"), encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""
