"""What the kernel counts of one block device's requests, from /sys/class/block/NAME/stat.

    0-3 reads: requests, merged, sectors, ms     4-7 the same of writes     8 in flight   9 busy, ms   10 waited, ms
    11-14 the same of discards                   15-16 flushes: requests, ms (since 5.5)

Source: Linux Documentation/block/stat.rst. The figures only grow while the device exists. They are of the device's own
layer: of a logical volume, what its user sees. A backup that reads the device is in them, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from pvehook.contract.latency import DiskCounters, RequestCounters
from pvehook.host.node import Node

_SECTOR_BYTES = 512  # whatever the device's own sectors are
_NS_PER_MS = 1_000_000
_STAT_BYTES: Final = 4096
"""A whole file of sysfs."""


class BlockCounters(NamedTuple):
    """One device's. `disk` is called by the device's name, and has no histograms."""

    disk: DiskCounters
    in_flight: int


def read_block_stat(node: Node, name: str) -> bytes:
    """The file of one block device or partition; b"" if it is gone. Reads memory, not the disk."""
    try:
        file = os.open(node.path(f"/sys/class/block/{name}/stat"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, _STAT_BYTES)  # without a buffer: several times a second for each guest's disks
    except OSError:
        return b""
    finally:
        os.close(file)


def parse_block_stat(name: str, text: bytes) -> BlockCounters | None:
    """The counters in it; None: the device is gone."""
    try:
        figures = [int(word) for word in text.split()]
    except ValueError:
        return None
    if len(figures) < 11:
        return None
    flushes, flush_ms = figures[15:17] if len(figures) >= 17 else (0, 0)
    read, write, flush = (
        RequestCounters(requests, sectors * _SECTOR_BYTES, took_ms * _NS_PER_MS, None)
        for requests, sectors, took_ms in (
            (figures[0], figures[2], figures[3]),
            (figures[4], figures[6], figures[7]),
            (flushes, 0, flush_ms),
        )
    )
    return BlockCounters(DiskCounters(name, name, read, write, flush), figures[8])


def completed_between(before: Sequence[DiskCounters], after: Sequence[DiskCounters]) -> tuple[int, int] | None:
    """How many requests the same devices completed between two readings, and how many ns these took together; None: a
    counter went back, or they are other devices. Of counters without histograms, and quicker than rules/latency.py: it
    is asked several times a second for each guest."""
    operations = total_time_ns = 0
    if len(before) != len(after):
        return None
    for old, new in zip(before, after, strict=True):
        if old.qdev != new.qdev:
            return None
        for was, now in ((old.read, new.read), (old.write, new.write), (old.flush, new.flush)):
            if now.operations < was.operations or now.total_time_ns < was.total_time_ns:
                return None
            operations += now.operations - was.operations
            total_time_ns += now.total_time_ns - was.total_time_ns
    return operations, total_time_ns
