"""What the kernel counts of one block device's requests, from /sys/class/block/NAME/stat.

    0-3 reads: requests, merged, sectors, ms     4-7 the same of writes     8 in flight   9 busy, ms   10 waited, ms
    11-14 the same of discards                   15-16 flushes: requests, ms (since 5.5)

Source: Linux Documentation/block/stat.rst. The figures only grow while the device exists. They are of the device's own
layer: of a logical volume, what its user sees. A backup that reads the device is in them, too.
"""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.latency import DiskCounters, RequestCounters
from pvehook.host.node import Node

_SECTOR_BYTES = 512  # whatever the device's own sectors are
_NS_PER_MS = 1_000_000


class BlockCounters(NamedTuple):
    """One device's. `disk` is called by the device's name, and has no histograms."""

    disk: DiskCounters
    in_flight: int


def read_block_stat(node: Node, name: str) -> bytes:
    """The file of one block device or partition; b"" if it is gone. Reads memory, not the disk."""
    return node.read(f"/sys/class/block/{name}/stat")


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
