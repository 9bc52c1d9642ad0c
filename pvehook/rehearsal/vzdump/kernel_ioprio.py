"""The I/O priorities that the kernel has, read through a library that is not ours: psutil.

One thread at a time: psutil's `Process.ionice()` means the one thread whose id it was made with (facts of ioprio.py).
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil

_CLASS_NONE, _CLASS_BEST_EFFORT, _CLASS_IDLE = 0, 2, 3  # Linux include/uapi/linux/ioprio.h
_NORMAL_LEVEL = 4
"""What the kernel (5.18 and later) calls the best-effort level of a thread with the default priority."""


def io_priorities(pid: int) -> dict[int, tuple[int, int]]:
    """Class and level of each thread of `pid`. Threads that end meanwhile are left out."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(psutil.NoSuchProcess):
                seen: Any = psutil.Process(thread.id).ionice()  # psutil's types know a class only, not its level
                found[thread.id] = (int(seen.ioclass), int(seen.value))
    return found


def all_idle(pid: int) -> bool:
    """Whether every thread is in the idle I/O class; False for a process that is gone."""
    found = io_priorities(pid)
    return bool(found) and all(io_class == _CLASS_IDLE for io_class, _ in found.values())


def all_normal(pid: int) -> bool:
    """Whether every thread has the default priority; False for a process that is gone."""
    found = io_priorities(pid)
    return bool(found) and all(
        io_class == _CLASS_NONE or (io_class, level) == (_CLASS_BEST_EFFORT, _NORMAL_LEVEL)
        for io_class, level in found.values()
    )
