"""What is under a path: disks with an I/O scheduler, or something that has none here."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["disks", "network", "zfs", "unknown"]


class Disk(NamedTuple):
    """One block device with nothing local under it."""

    name: str
    scheduler: str | None
    """None: unknown."""
    transport: str
    """"local" or how it is reached: iscsi, fc, nvme-tcp, nvme-rdma, nvme-fc, rbd, nbd, drbd; "zfs" for a zvol."""

    @property
    def kind(self) -> Kind:
        if self.transport == "zfs":
            return "zfs"
        return "disks" if self.transport == "local" else "network"


class Location(NamedTuple):
    """Where a path leads. `disks` may be empty with every kind but "disks"; `detail` says what was found."""

    kind: Kind
    disks: tuple[Disk, ...]
    detail: str
