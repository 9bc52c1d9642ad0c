"""What a process shows as its command line in /proc/PID/cmdline.

Perl, and so PVE's worker, writes over the memory of its own arguments when it sets `$0`; QEMU has its
arguments from its start. The rehearsal's processes are Python, so both write over theirs.
"""

from __future__ import annotations

import ctypes
import os
import re

_ARG_START = 47  # /proc/PID/stat, counted from 0: address of the first argument (proc_pid_stat(5))
_ARG_END = 48


def start_ticks() -> int:
    """When this process started, in clock ticks since boot: PSTART of a UPID."""
    return int(_stat_fields()[21])


def set_title(arguments: list[str], name: str) -> None:
    """Let this process appear as `arguments`, and its main thread as `name` (at most 15 bytes are kept).

    The room is that of the arguments it was started with; what does not fit is cut off, as Perl does. What is
    left is filled with zero bytes. Safe because the interpreter copied its arguments when it started.
    """
    fields = _stat_fields()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    wanted = b"\0".join(os.fsencode(argument) for argument in arguments)
    title = wanted[: end - start - 1].ljust(end - start, b"\0")
    ctypes.memmove(start, title, len(title))
    with open("/proc/self/comm", "wb") as comm:
        comm.write(os.fsencode(name)[:15])


def _stat_fields() -> list[str]:
    """The command name, which may hold spaces and brackets, is made one word."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as stat:
        return re.sub(r"\(.*\)", "(comm)", stat.read(), flags=re.DOTALL).split()
