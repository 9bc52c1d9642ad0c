"""What QEMU shows of a backup while it runs, as types. pvehook/guest fills them."""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.latency import DiskCounters


class BlockJob(NamedTuple):
    """One entry of `query-block-jobs`. On Proxmox a backup's job carries the drive's name: `drive-scsi0`."""

    device: str
    type: str
    offset_bytes: int
    length_bytes: int
    speed_bytes_per_s: int
    """0 is no limit."""


class DiskSample(NamedTuple):
    """The guest's disks and its backup's jobs at one moment."""

    at_s: float
    """On the monotonic clock."""
    disks: tuple[DiskCounters, ...]
    jobs: tuple[BlockJob, ...]
