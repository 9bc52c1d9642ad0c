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


def stat_fields(pid: int | str) -> list[str]:
    """Fields of /proc/PID/stat. The command name, which may hold spaces and brackets, is made one word."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return re.sub(r"\(.*\)", "(comm)", stat.read(), flags=re.DOTALL).split()


def start_ticks(pid: int | str) -> int:
    """When the process started, in clock ticks since boot: PSTART of a UPID."""
    return int(stat_fields(pid)[21])


def set_title(arguments: list[str], name: str) -> None:
    """Let this process appear as `arguments`, and its main thread as `name` (at most 15 bytes are kept).

    The room is that of the arguments it was started with; what does not fit is cut off, as Perl does. What is
    left is filled with zero bytes. Safe because the interpreter copied its arguments when it started.
    """
    fields = stat_fields("self")
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    wanted = b"\0".join(os.fsencode(argument) for argument in arguments)
    title = wanted[: end - start - 1].ljust(end - start, b"\0")
    ctypes.memmove(start, title, len(title))
    with open("/proc/self/comm", "wb") as comm:
        comm.write(os.fsencode(name)[:15])


def padding(started_with: list[str], arguments: list[str]) -> str:
    """One more argument for `started_with`, so that its room is that of `arguments`, if that is larger."""
    have = sum(len(os.fsencode(argument)) + 1 for argument in started_with)
    want = sum(len(os.fsencode(argument)) + 1 for argument in arguments)
    return "x" * max(0, want - have - 1)
