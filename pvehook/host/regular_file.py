"""Reading and replacing small files. Stdlib only: the path without a daemon imports it."""

from __future__ import annotations

import errno
import os
import stat
import threading


def read_regular_file(path: str, limit_bytes: int) -> bytes:
    """At most this many bytes of a file. Raises OSError, also for what is no regular file: a FIFO would be waited for,
    a device read for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read(limit_bytes)


def replace_file(path: str, text: str, mode: int | None = None) -> None:
    """Writes the whole file or nothing: a reader sees the old text or the new, even after we crash. `mode` is not
    subject to the umask."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
