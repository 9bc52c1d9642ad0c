"""I/O priority of every thread of a process, read from and written to the kernel.

A kernel I/O priority belongs to a thread (`struct io_context` of one task), not to a process: threads and children born
later inherit it, threads that exist keep what they have. psutil's `Process.ionice()` sets the one thread whose id is
the pid, so the workers of `zstd -T2` or the I/O threads of a QEMU would stay as they were. So this walks
/proc/PID/task, and reads back what it wrote.

Imports little: the hook uses this without the daemon, while vzdump waits.
Numbers: Linux include/uapi/linux/ioprio.h; the system call numbers from the kernel's two tables.
"""

from __future__ import annotations

import contextlib
import ctypes
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
"""A thread that is not set yet may create another while we walk; two passes usually do."""

_libc = ctypes.CDLL(None, use_errno=True)


class Priority(NamedTuple):
    """One I/O priority: the kernel's class and the level in it (0 first, 7 last)."""

    io_class: int
    level: int


NONE = Priority(0, 0)
"""Not set: the kernel derives a best-effort level from the niceness. What every process starts with."""

IDLE = Priority(3, 0)
"""Served only when no other thread wants the disk, if the disk's scheduler honours classes at all."""


class ThreadState(NamedTuple):
    """What the kernel holds for one thread. `nice` is CPU niceness, -20 to 19."""

    priority: Priority
    nice: int


class ThreadsSet(NamedTuple):
    """What was found at the end of setting a process's threads; one that has ended has no threads and the comm ""."""

    comm: str
    threads: int
    """In the last pass."""
    confirmed: int
    """Of them, read back with the wanted values."""
    failed: tuple[str, ...]
    """One text per kind of refusal."""
    changed: int
    """Threads that were written to, and how many of those were idle or nice before."""
    was_idle: int
    was_nice: int


def read_all_threads(node: Node, pid: int) -> dict[int, ThreadState]:
    """By thread id; empty if the process is gone. Raises NodeError where the system call numbers are not known."""
    states = {}
    for tid in _thread_ids(node, pid):
        with contextlib.suppress(ProcessLookupError):  # the thread ended since the listing
            states[tid] = ThreadState(_read_priority(tid), os.getpriority(os.PRIO_PROCESS, tid))
    return states


def set_all_threads(node: Node, pid: int, priority: Priority, nice: int | None = None) -> ThreadsSet:
    """Sets every thread of `pid` to the I/O priority, and to at least the niceness `nice` (None: leave it alone): a
    backup is never favoured. What the kernel refuses is in `failed`. Raises NodeError as `read_all_threads`."""
    least = -20 if nice is None else nice
    return _settle(node, pid, lambda now: ThreadState(priority, max(now.nice, least)))


def restore_normal(node: Node, pid: int) -> ThreadsSet:
    """Sets every thread of `pid` to the I/O priority that processes start with, and a niceness above 0 to 0. The latter
    needs CAP_SYS_NICE; without it `failed` says what is left. Raises NodeError as `set_all_threads`."""
    return _settle(node, pid, lambda now: ThreadState(NONE, min(now.nice, 0)))


def _settle(node: Node, pid: int, wanted: Callable[[ThreadState], ThreadState]) -> ThreadsSet:
    """Writes to the threads of `pid` until one whole pass finds nothing left to write."""
    comm = node.read(f"/proc/{pid}/comm").decode(errors="replace").rstrip("\n")
    before: dict[int, ThreadState] = {}  # the threads that were written to, as they were first seen
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
    return ThreadsSet(
        comm,
        threads,
        confirmed=threads - len(wrong_and_alive),
        failed=tuple(f"{texts.count(text)} of {threads} threads: {text}" for text in sorted(set(texts))),
        changed=len(before),
        was_idle=sum(state.priority == IDLE for state in before.values()),
        was_nice=sum(state.nice > 0 for state in before.values()),
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
    value = _ioprio_call(1, tid)
    io_class = value >> _CLASS_SHIFT & 0b111
    # The kernel keeps a level for every class but reads it only in two of them; ionice stores 7 with idle,
    # older kernels show 4 for a thread that was never set. Without this such threads would never be equal.
    return Priority(io_class, value & _LEVEL_MASK if io_class in (1, 2) else 0)


def _write_priority(tid: int, priority: Priority) -> None:
    _ioprio_call(0, tid, priority.io_class << _CLASS_SHIFT | priority.level)


def _ioprio_call(which: int, tid: int, *value: int) -> int:
    """`which` of the machine's two system calls, for one thread."""
    machine = os.uname().machine
    if machine not in _SYSCALLS:
        raise NodeError(
            f"I/O priority cannot be set on this machine: it is {machine}, "
            f"pvehook knows the system calls of {' and '.join(_SYSCALLS)}"
        )
    result = int(_libc.syscall(_SYSCALLS[machine][which], _WHO_PROCESS, tid, *value))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))  # Python makes it a ProcessLookupError if it is ESRCH
    return result


def _thread_ids(node: Node, pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(node.path(f"/proc/{pid}/task")) if name.isdigit()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _has_ended(node: Node, pid: int, tid: int) -> bool:
    """Whether the thread does no I/O any more: it ended, or it is a first thread that ended before the others. That one
    stays listed as a zombie; the kernel dropped its I/O priority and takes no new one."""
    stat = node.read(f"/proc/{pid}/task/{tid}/stat")
    return stat[stat.rfind(b")") + 2 :][:1] in (b"", b"Z", b"X")
