"""Asking one of the node's own programs, such as zpool or lvs, which may hang where a disk does."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def answer_of(command: Sequence[str], deadline_s: float) -> str | None:
    """What the command prints; None: it is not there, fails, or has not ended within `deadline_s` seconds. It goes
    through no shell, and its language is fixed."""
    null = subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603  (names in it are Proxmox's or the kernel's)
            command, stdin=null, stdout=subprocess.PIPE, stderr=null, env={"LC_ALL": "C"}
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: one that hangs in the kernel does not even die
        if process.stdout:
            process.stdout.close()
        return None
    return output.decode(errors="replace") if process.returncode == 0 else None
