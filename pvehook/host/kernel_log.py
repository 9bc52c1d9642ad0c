"""The node's kernel log from now on, and what it still has of the time since the boot, read from /dev/kmsg.

Each read returns one whole record, in order, independently of other readers; with O_NONBLOCK it fails with EAGAIN at
the end, and once with EPIPE when records were overwritten before they were read (the next read continues with the
oldest one left; the numbers show how many are missing). Source: Documentation/ABI/testing/dev-kmsg of Linux.

A record's time is the kernel's `local_clock`, which is never adjusted: `dmesg -T` is minutes off after months. Here a
record was written between two reads, which corrects its time.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import NamedTuple

from pvehook.contract.kernel_line import KernelLine, TimedLine, parse_kernel_line
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.deadline import Deadline
from pvehook.host.clock import Clock
from pvehook.host.node import Node

_RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX: with a smaller buffer a long record gives EINVAL
_KMSG_DEVICE = os.makedev(1, 11)  # Documentation/admin-guide/devices.txt of Linux

LINES_LIMIT = 1000
"""Per read, which is 4 ms of work. The rest stays in the kernel for the next one, or is overwritten and counted."""
BYTES_LIMIT = 256 * 1024
PAST_LINES_LIMIT = 50_000
"""A log of 256 KiB has some 3000; nodes with many CPUs have larger ones (CONFIG_LOG_CPU_MAX_BUF_SHIFT)."""

_NO_LOG = "this node has no kernel log of its own (/dev/kmsg): a container?"
_REMEDY = (
    "the service needs DeviceAllow=/dev/kmsg and CAP_SYSLOG (kernel.dmesg_restrict), as hooks/systemd/pvehook.service"
    " has them; outside of it, root"
)


class PastLog(NamedTuple):
    """What the kernel's log has, the oldest first."""

    lines: tuple[KernelLine, ...]
    is_whole: bool
    """Nothing since the boot is overwritten."""


def open_kernel_log(node: Node, clock: Clock) -> Measured[HostKernelLog]:
    """Opens the log at its end."""
    fd = _open(node, os.SEEK_END)
    return HostKernelLog(fd, clock) if isinstance(fd, int) else fd


def read_past_log(node: Node, deadline: Deadline) -> Measured[PastLog]:
    """Everything in the log, within the deadline. It is memory: a few thousand lines, 4 us each."""
    fd = _open(node, os.SEEK_SET)
    if not isinstance(fd, int):
        return fd
    lines: list[KernelLine] = []
    first_number = 0
    try:
        while deadline.left_s() > 0 and len(lines) < PAST_LINES_LIMIT:
            try:
                record = os.read(fd, _RECORD_BYTES).decode("ascii", errors="replace")
            except BlockingIOError:
                return PastLog(tuple(lines), first_number == 0)
            except BrokenPipeError:
                continue  # overwritten while it was read
            line = parse_kernel_line(record)
            first_number = first_number if lines else int(record.split(",", 2)[1])
            lines.append(line)
    except (OSError, ValueError) as error:
        return Broken(f"/dev/kmsg cannot be read: {error}")
    finally:
        os.close(fd)
    return Broken(f"/dev/kmsg could not all be read in time, only {len(lines)} lines")


def _open(node: Node, whence: int) -> int | Absent | Broken:
    """A descriptor at the log's start or end."""
    path = node.path("/dev/kmsg")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return Absent(_NO_LOG)
        if error.errno in (errno.EPERM, errno.EACCES):
            return Broken(f"{path} may not be read ({error.strerror}): {_REMEDY}")
        return Broken(f"{path} cannot be opened: {error.strerror}")
    try:
        status = os.fstat(fd)
        # systemd-nspawn puts a FIFO there, others a link to /dev/null or the console.
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _KMSG_DEVICE:
            os.close(fd)
            return Absent(_NO_LOG)
        os.lseek(fd, 0, whence)
    except OSError as error:
        os.close(fd)
        return Broken(f"{path} cannot be read from its start or end: {error.strerror}")
    return fd


class HostKernelLog:
    """An open kernel log. Use it from one thread."""

    lost: int
    """Records that were overwritten before they were read; how many came before the first one read is unknown and
    counts as 1."""
    fault: Broken | None
    """Why the log can no longer be read."""

    def __init__(self, fd: int, clock: Clock) -> None:
        self.lost = 0
        self.fault = None
        self._fd = fd
        self._clock = clock
        self._next_number: int | None = None
        self._read_s = clock.now_s()
        self._boot_s = self._read_s - time.monotonic()

    def close(self) -> None:
        os.close(self._fd)

    def read_new(self) -> list[TimedLine]:
        """What was written since the last call, at most LINES_LIMIT lines; never waits. After a fault: nothing."""
        lines: list[KernelLine] = []
        taken_bytes = 0
        overwritten = at_end = False
        for _ in range(LINES_LIMIT):
            if self.fault is not None or taken_bytes > BYTES_LIMIT:
                break
            try:
                record = os.read(self._fd, _RECORD_BYTES).decode("ascii", errors="replace")
                taken_bytes += len(record)
                line = parse_kernel_line(record)
                number = int(record.split(",", 2)[1])
            except BlockingIOError:
                at_end = True
                break
            except BrokenPipeError:
                overwritten = True
                continue
            except OSError as error:
                self.fault = Broken(f"/dev/kmsg cannot be read: {error.strerror}")
                break
            except ValueError as error:
                self.fault = Broken(f"/dev/kmsg: {error}")
                break
            if overwritten:
                self.lost += 1 if self._next_number is None else max(number - self._next_number, 0)
                overwritten = False
            self._next_number = number + 1
            lines.append(line)
        return self._timed(lines, at_end)

    def _timed(self, lines: list[KernelLine], at_end: bool) -> list[TimedLine]:
        """Moves the log's zero so that the lines fall between the last read and this one."""
        now_s = self._clock.now_s()
        if lines:
            self._boot_s = max(self._boot_s, self._read_s - lines[0].at_us / 1e6)
            self._boot_s = min(self._boot_s, now_s - lines[-1].at_us / 1e6)
        timed = [TimedLine(self._boot_s + line.at_us / 1e6, line.text) for line in lines]
        if at_end:
            self._read_s = now_s
        elif timed:
            self._read_s = timed[-1].at_s  # what is left for the next read may have been written since then
        return timed
