"""A directory tree as values, to say that it is byte for byte what it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    mode: int
    owner: tuple[int, int]
    content: bytes
    """A file's bytes, a symbolic link's target."""


def entries(top: Path) -> dict[str, Entry]:
    """Every name under `top`; nothing is left out but times."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content = b""
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(top))] = Entry(status.st_mode, (status.st_uid, status.st_gid), content)
    return found
