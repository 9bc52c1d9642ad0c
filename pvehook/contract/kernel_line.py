"""One record of a kernel's log, as /dev/kmsg gives it, on the host and inside a guest.

    4,1203,88412345678,-;watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]
     SUBSYSTEM=...                                  lines of a dictionary, which are not text

Priority and facility (syslog's), sequence number, microseconds since boot, flags, text; escapes like `\\x0a` stay.
Source: Documentation/ABI/testing/dev-kmsg of Linux.
"""

from __future__ import annotations

from typing import NamedTuple


class KernelLine(NamedTuple):
    """The text is the kernel's own, a guest's kernel among them: `contract.text.printable` before it is shown."""

    at_us: int
    """Since that kernel's boot."""
    text: str


class TimedLine(NamedTuple):
    """The same with the time on the host's clock."""

    at_s: float
    """Since the epoch."""
    text: str


def parse_kernel_line(record: str) -> KernelLine:
    """One record. Raises ValueError when it is none."""
    head, semicolon, text = record.partition(";")
    fields = head.split(",")
    if not semicolon or len(fields) < 4:
        raise ValueError(f"no record of a kernel log: {record[:60]!r}")
    at_us = int(fields[2])
    if not 0 <= at_us < 2**63:
        raise ValueError(f"no time of a kernel log: {record[:60]!r}")
    return KernelLine(at_us, text.partition("\n")[0])
