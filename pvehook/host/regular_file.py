"""Reading and replacing small files. Stdlib only: the path without a daemon imports it."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading

DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading a record of JSON may raise when the file is damaged, or not of our writing."""


def read_regular_file(path: str, limit_bytes: int) -> bytes:
    """At most this many bytes of a file. Raises OSError, also for what is no regular file: a FIFO would be waited for,
    a device read for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read(limit_bytes)


def files_in(directory: str, suffix: str) -> list[str]:
    """The paths of a directory's files with this suffix, by name; none where there is no directory."""
    try:
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(suffix)]
    except OSError:
        return []


def remove_file(path: str) -> bool:
    """False where it is gone already, or stays."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def replace_file(path: str, text: str, mode: int | None = None) -> None:
    """Writes the whole file or nothing: a reader sees the old text or the new, even after we or the node crash. What
    writers that were killed left half written goes. `mode` is not subject to the umask."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        remove_file(temporary)
        raise
    for left in files_in(directory, ".new"):
        writer = re.search(r"\.([0-9]+)\.[0-9]+\.new$", left)
        if writer and not os.path.exists(f"/proc/{writer[1]}"):
            remove_file(left)
