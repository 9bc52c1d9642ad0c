"""Writing back a file that another process is still writing.

Whoever can read a file can tell the kernel to write its dirty pages out now, and to drop them from the page cache
when they are clean. Nothing here writes to the file, changes it or delays its writer.

    sync_file_range(2)         starts the writeback of a range, or waits for the writeback in progress. It writes
                               no metadata, so it does not make data safe, which is not needed here.
    posix_fadvise(DONTNEED)    drops the clean pages of a range; what is dirty or in writeback stays.

Both calls can wait for the disk for as long as it takes, and no signal ends that: whoever calls them does so in a
thread that nobody joins without a bound. Flags: Linux include/uapi/linux/fs.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import Literal

from pvehook.host.node import Node

_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

Place = Literal["here", "elsewhere", "deleted"]


class NotTheFile(OSError):
    """Something else has the file's name. The text says what."""


class GrowingFile:
    """A file that another process writes, by its directory and its name. Read only, never followed through a link.

    Raises FileNotFoundError while it is not there, NotTheFile for what is no plain file of root's or of ours, and
    OSError for the rest. The directory itself may be reached through links: that is the administrator's choice.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._name = name
        self._fd = -1
        self._directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd = _open(self._directory_fd, name)
            self._status = os.fstat(self._fd)
            if not stat.S_ISREG(self._status.st_mode):
                raise NotTheFile(errno.EINVAL, f"{name} is no plain file")
            if (owner := self._status.st_uid) not in (0, os.geteuid()):
                raise NotTheFile(errno.EPERM, f"{name} belongs to user {owner}, vzdump's belong to root")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for fd in (self._fd, self._directory_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory_fd = -1

    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def place(self) -> Place:
        """Whether the file still has its name. Renamed it is `elsewhere`, and can be written back all the same."""
        try:
            named = os.stat(self._name, dir_fd=self._directory_fd, follow_symlinks=False)
            if (named.st_dev, named.st_ino) == (self._status.st_dev, self._status.st_ino):
                return "here"
        except FileNotFoundError:
            pass
        return "elsewhere" if os.fstat(self._fd).st_nlink else "deleted"

    def start_writeback(self, offset: int, length: int) -> None:
        """Queues the dirty pages of the range. Waits only while the disk's queue is full. Not with WAIT_AFTER in one
        call: the kernel then writes as for an fsync, and the guest's disk scheduler prefers such requests."""
        _sync(self._fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def wait_for_writeback(self, offset: int, length: int) -> None:
        """Waits until the writeback of the range is over."""
        _sync(self._fd, offset, length, _SYNC_FILE_RANGE_WAIT_BEFORE)

    def drop_from_cache(self, offset: int, length: int) -> None:
        """Frees the memory of the clean pages of the range."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)


def requests_in_flight(node: Node, disk: str) -> int:
    """All requests in flight of a disk, by its name in /sys/block: `       1        4`, reads and writes (Linux
    Documentation/ABI/stable/sysfs-block). 0 if unknown."""
    try:
        return sum(int(each) for each in node.read(f"/sys/block/{disk}/inflight").split())
    except ValueError:
        return 0


def _open(directory_fd: int, name: str) -> int:
    # O_NONBLOCK: a FIFO of this name must not keep us waiting for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotTheFile(error.errno, f"{name} is a symbolic link") from error
        raise


def _sync(fd: int, offset: int, length: int, flags: int) -> None:
    if _libc.sync_file_range(fd, offset, length, flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
