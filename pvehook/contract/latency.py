"""What QEMU counts of a guest's own disk requests, as types. pvehook/guest/block_stats.py asks and fills them.

The figures are the guest's: what its device model was asked for, waits for copy-before-write included, the backup's own
reads not (facts/qemu.md). All of them only grow while the VM runs; two readings make a difference.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

RequestKind = Literal["read", "write", "flush"]
REQUEST_KINDS: Final[tuple[RequestKind, ...]] = ("read", "write", "flush")


class Histogram(NamedTuple):
    """How many requests took how long. `counts` has one entry more than `boundaries_ns`: the first counts what was
    quicker than the first boundary, the last what was not quicker than the last."""

    boundaries_ns: tuple[int, ...]
    counts: tuple[int, ...]


class RequestCounters(NamedTuple):
    """Requests of one kind to one disk, since the VM started; the histogram since it was armed (None: it is not)."""

    operations: int
    bytes: int
    total_time_ns: int
    histogram: Histogram | None


class DiskCounters(NamedTuple):
    """One disk of a VM."""

    qdev: str
    """QEMU's path of the device, by which its histogram is armed: `/machine/peripheral/virtio0/virtio-backend`."""
    name: str
    """What Proxmox calls it, for people: `scsi0`, `virtio0`."""
    read: RequestCounters
    write: RequestCounters
    flush: RequestCounters


def our_boundaries_ns() -> tuple[int, ...]:
    """The boundaries that pvehook arms: from 100 us to 100 s, 20 to a decade, so a bin is 12 % wide. 1 s and 10 s, and
    with them what counts as a stall, are exact."""
    return tuple(round(10 ** (5 + step / 20)) for step in range(121))
