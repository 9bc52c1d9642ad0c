"""QEMU's counters of a guest's own disk requests, as types that pvehook/guest/block_stats.py fills.

They count what the guest asked of its disks, including time that copy-before-write made it wait, excluding the backup's
own reads (facts/qemu.md). They only grow while the VM runs: subtract two samples.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

RequestKind = Literal["read", "write", "flush"]
REQUEST_KINDS: Final[tuple[RequestKind, ...]] = ("read", "write", "flush")


class Histogram(NamedTuple):
    """How many requests took how long. `counts` has one entry more than `boundaries_ns`: the first counts requests
    below the first boundary, the last those at or above the last."""

    boundaries_ns: tuple[int, ...]
    counts: tuple[int, ...]


class RequestCounters(NamedTuple):
    """Requests of one kind to one disk, since the VM started; the histogram since it was enabled (None: it is not)."""

    operations: int
    bytes: int
    total_time_ns: int
    histogram: Histogram | None


class DiskCounters(NamedTuple):
    qdev: str
    """QEMU's path of the device, by which its histogram is enabled: `/machine/peripheral/virtio0/virtio-backend`."""
    name: str
    """Proxmox's name for it: `scsi0`, `virtio0`."""
    read: RequestCounters
    write: RequestCounters
    flush: RequestCounters


def our_boundaries_ns() -> tuple[int, ...]:
    """The boundaries that pvehook sets: from 100 us to 100 s, 20 per decade, so a bin is 12 % wide. 1 s and 10 s, the
    limits of what counts as a stall, are exact."""
    return tuple(round(10 ** (5 + step / 20)) for step in range(121))
