#!/usr/bin/env python3
"""One slow disk with one queue, as a real block device of this kernel: the model that tests/bench/pacer.py stands on.

    /dev/loopN  (mq-deadline, writeback throttling at its 75 ms for disks that rotate)
        └─ a loop device with direct I/O: at most 128 requests on their way, none of them cached
            └─ one file, served by this program over /dev/fuse, the data in memory

Real are the kernel's page cache, its writeback and throttling, the file system, the block layer and its scheduler. The
model is what comes below: requests are served one at a time in the order they come; each costs its bytes at the disk's
rate, and a seek unless it goes on where the last one ended (a short one within 1 MiB, else a long one); a flush costs a
long seek. Nothing is reordered: a real disk that sorts what it has queued would give a guest somewhat better figures,
with and without pacing.

`served_disk` gives it for as long as a `with` lasts. Needs root, /dev/fuse and a free loop device.

Numbers: Linux include/uapi/linux/fuse.h (protocol 7.31 is what is spoken; newer kernels go down to it).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20

_HARD_DISKS_WBT_US = 75_000
"""What the kernel itself sets for a disk that rotates (block/blk-wbt.c); for a loop device it has taken 2 ms."""

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT_HEADER = struct.Struct("=IiQ")  # length, minus errno, unique
_INIT_IN = struct.Struct("=IIII")  # major, minor, readahead, flags
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")  # ..., max_background, congestion, max_write, granularity, max_pages, ...
_READ_IN = struct.Struct("=QQI")  # handle, offset, size, ...
_WRITE_IN_BYTES = 40
_ATTRIBUTES = struct.Struct("=QII6Q10I")  # valid s, ns, dummy; ino, size, blocks, 3 times; 3 ns, mode, nlink, ...
_OPEN_OUT = struct.Struct("=QII")  # handle, flags, padding

_GETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT = 3, 14, 15, 16, 18, 20, 25, 26
_FORGET, _INTERRUPT = 2, 36  # these two and the next want no answer
_BATCH_FORGET = 42
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
_OPEN_DIRECT_IO = 1 << 0
_ROOT_NODE = 1
_LARGEST_REQUEST = MIB
_NEAR_BYTES = MIB


class Disk:
    """The data, and how long each request takes."""

    def __init__(self, size: int, bytes_per_s: float, long_seek_s: float, short_seek_s: float) -> None:
        # All of it at once: a first touch would be a slow request.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self.data = memoryview(mmap.mmap(-1, size, flags=flags))
        self._bytes_per_s = bytes_per_s
        self._long_seek_s = long_seek_s
        self._short_seek_s = short_seek_s
        self._head = 0
        self._free_at_s = 0.0

    def serve(self, offset: int, length: int) -> None:
        """Returns when a request of this place and length would be served."""
        distance = abs(offset - self._head)
        seek_s = 0.0 if not distance else self._short_seek_s if distance <= _NEAR_BYTES else self._long_seek_s
        self._head = offset + length
        self._spend(seek_s + length / self._bytes_per_s)

    def flush(self) -> None:
        self._spend(self._long_seek_s)

    def _spend(self, cost_s: float) -> None:
        # By the disk's own time: that this process woke up late for one request makes the next one no later.
        now_s = time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s - 0.002) + cost_s
        if self._free_at_s > now_s:
            time.sleep(self._free_at_s - now_s)


def serve(fd: int, disk: Disk) -> None:
    """Answers the kernel until the file system is unmounted."""
    room = _LARGEST_REQUEST + 4096
    while True:
        try:
            request = os.read(fd, room)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
        if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            continue
        number, answer = _answer(opcode, memoryview(request)[_IN_HEADER.size :], disk)
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), -number, unique)
        os.writev(fd, (header, answer))


def _answer(opcode: int, body: memoryview, disk: Disk) -> tuple[int, bytes | memoryview]:
    """errno and what is answered."""
    if opcode in (_READ, _WRITE):
        return 0, _transfer(opcode, body, disk)
    if opcode == _FSYNC:
        disk.flush()
    answers: dict[int, Callable[[], bytes]] = {
        _INIT: lambda: _init_answer(_INIT_IN.unpack_from(body)[3]),
        _GETATTR: lambda: _attributes(len(disk.data)),
        _OPEN: lambda: _OPEN_OUT.pack(0, _OPEN_DIRECT_IO, 0),
        _FSYNC: bytes,
        _FLUSH: bytes,
        _RELEASE: bytes,
    }
    return (0, answers[opcode]()) if opcode in answers else (errno.ENOSYS, b"")


def _transfer(opcode: int, body: memoryview, disk: Disk) -> bytes | memoryview:
    _, offset, size = _READ_IN.unpack_from(body)
    disk.serve(offset, size)
    if opcode == _READ:
        return disk.data[offset : offset + size]
    disk.data[offset : offset + size] = body[_WRITE_IN_BYTES : _WRITE_IN_BYTES + size]
    return struct.pack("=II", size, 0)


def _init_answer(offered: int) -> bytes:
    flags = offered & (_ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES)
    return _INIT_OUT.pack(7, 31, 0, flags, 1024, 1024, _LARGEST_REQUEST, 1, _LARGEST_REQUEST // 4096, 0, 0)


def _attributes(size: int) -> bytes:
    """Of a file that is root's alone, and whose times do not matter; good for an hour."""
    times_s, times_ns = (0, 0, 0), (0, 0, 0)
    mode, links, uid, gid, rdev, block, flags = stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0
    rest = (*times_ns, mode, links, uid, gid, rdev, block, flags)
    return _ATTRIBUTES.pack(3600, 0, 0, _ROOT_NODE, size, size // 512, *times_s, *rest)


class ServedDisk(NamedTuple):
    """`pid` is the process that is the disk: stopped, the disk hangs."""

    device: str
    pid: int


@contextlib.contextmanager
def served_disk(
    file: Path, mib: int, mib_per_s: float = 1000.0, long_seek_ms: float = 0.0, short_seek_ms: float = 0.0
) -> Iterator[ServedDisk]:
    """A new disk; without further figures a fast one."""
    file.touch()
    figures = [str(each) for each in (mib, mib_per_s, long_seek_ms, short_seek_ms)]
    process = subprocess.Popen([sys.executable, __file__, str(file), *figures], stdout=subprocess.PIPE)
    device = ""
    try:
        assert process.stdout
        if not process.stdout.readline():
            raise OSError(f"{file}: the disk could not be served")
        device = _tool("losetup", "--direct-io=on", "--find", "--show", str(file))
        queue = Path("/sys/block", os.path.basename(device), "queue")
        for name, value in (("rotational", 1), ("scheduler", "mq-deadline"), ("wbt_lat_usec", _HARD_DISKS_WBT_US)):
            (queue / name).write_text(f"{value}\n")
        yield ServedDisk(device, process.pid)
    finally:
        if device:
            _tool("losetup", "--detach", device)
        process.kill()
        process.communicate()
        subprocess.run(["umount", "--lazy", str(file)], check=False)


def _tool(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def mount(path: str) -> int:
    """Mounts a FUSE file system that is a single file; the descriptor of its requests."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
    if libc.mount(b"pacer-disk", path.encode(), b"fuse", 0, options.encode()) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{path}: {os.strerror(number)}")
    return fd


def main() -> None:
    path, mib, rate, long_seek, short_seek = sys.argv[1:]
    disk = Disk(int(mib) * MIB, float(rate) * MIB, float(long_seek) / 1000, float(short_seek) / 1000)
    fd = mount(path)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # a disk does not wait for a CPU
    print("serving", flush=True)
    serve(fd, disk)


if __name__ == "__main__":
    main()
