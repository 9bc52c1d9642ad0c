"""What the kernel says of a process, asked by another program than ours: util-linux's ionice."""

from __future__ import annotations

import os
import subprocess

_ANSWER_S = 10.0


def io_classes(pid: int) -> dict[int, str]:
    """Each thread of `pid` and its I/O priority as `ionice -p` words it: `idle`, `best-effort: prio 4`.

    Threads that end meanwhile are left out.
    """
    classes = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        command = ["ionice", "-p", tid]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
        if asked.returncode == 0:
            classes[int(tid)] = asked.stdout.strip()
    return classes


def all_idle(pid: int) -> bool:
    """Whether every thread is at idle; False for a process that is gone."""
    classes = io_classes(pid)
    return bool(classes) and set(classes.values()) == {"idle"}


def all_normal(pid: int) -> bool:
    """Whether every thread has what a process gets that nobody touched; False for a process that is gone.

    The kernel words that as "none", or (since 5.18) as the best effort that it amounts to.
    """
    classes = io_classes(pid)
    return bool(classes) and set(classes.values()) <= {"none: prio 0", "none: prio 4", "best-effort: prio 4"}
