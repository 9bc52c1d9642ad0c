"""Who may suffer from a backup: what a guest and a backup stand on, and whether they share some of it.

A patient is a running guest of the node, in the job or not. A load is one running backup: what it reads and where it
writes. A resource that both may share has one name:

    disk:sda        a local disk, whatever lies between it and a volume (LVM, dm, md, a partition)
    pool:rpool      a ZFS pool whose disks are not known
    storage:nas     a storage that is no local disk (NFS, Ceph, iSCSI), by its id
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from pvehook.contract.disks import Location
from pvehook.contract.latency import RequestCounters

Exposure = Literal["shared", "unknown", "elsewhere"]
"""shared: they share a resource; unknown: that cannot be found out, so it is treated as shared, and said."""


class Place(NamedTuple):
    """Where one volume, or the archive, is."""

    what: str
    """`scsi0`, `the archive`: for people."""
    storage_id: str | None
    """None: an absolute path."""
    where: Location


class Resources(NamedTuple):
    """What a guest or a load stands on."""

    names: frozenset[str]
    unknown: tuple[str, ...] = ()
    """Places of which that is not known, each with the reason."""


class PatientSample(NamedTuple):
    """What one guest's disks completed since the look before, as QEMU counts it, or the guest's block devices."""

    vmid: int
    at_s: float
    """On the monotonic clock."""
    period_s: float
    completed: Mapping[str, RequestCounters]
    """By kind of request, all its disks together."""
    waits: bool | None = None
    """Whether requests were in flight when it was looked at; None: that was not seen."""


def resources_of(places: Iterable[Place]) -> Resources:
    """The resources under some places."""
    names: set[str] = set()
    unknown: list[str] = []
    for what, storage_id, where in places:
        if where.disks:
            names |= {f"disk:{disk.name}" for disk in where.disks}
        elif where.kind == "network" and storage_id is not None:
            names.add(f"storage:{storage_id}")
        elif where.kind == "zfs":
            names.add(f"pool:{where.detail.partition('ZFS pool ')[2].partition(',')[0]}")
        else:
            unknown.append(f"{what}: {where.detail}")
    return Resources(frozenset(names), tuple(unknown))


def exposure(patient: Resources, load: Resources) -> Exposure:
    """Whether what one does on its disks is felt by the other."""
    if patient.names & load.names:
        return "shared"
    return "unknown" if patient.unknown or load.unknown else "elsewhere"
