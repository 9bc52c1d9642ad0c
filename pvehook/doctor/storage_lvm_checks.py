"""LVM below the guests: containers that cannot be snapshotted, snapshots that cost, thin pools that fill up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pvehook.contract.lvm_report import LogicalVolume
from pvehook.contract.measured import value_of
from pvehook.contract.text import named
from pvehook.doctor.finding import Finding, Severity
from pvehook.doctor.storage_facts import StorageFacts
from pvehook.records.figures import in_bytes

_DATA: Final = (90.0, 97.0)
_METADATA: Final = (80.0, 95.0)
"""Percent: where it is a warning (of metadata LVM's own monitor warns there), and where an error."""


def container_without_snapshots(facts: StorageFacts) -> Iterator[Finding]:
    for guest in facts.guests:
        if not guest.unsnapshotted or not guest.snapshot_jobs:
            continue
        yield Finding(
            guest.label,
            "warning",
            f"Proxmox cannot snapshot {named(guest.unsnapshotted)}, so {named(guest.snapshot_jobs)} in mode snapshot "
            "falls back to suspend: its files are copied twice, and it stands still during the second copy",
            (
                f"pct move-volume {guest.vmid} {guest.unsnapshotted[0].partition(' ')[0]} STORAGE  "
                "# lvmthin, zfspool or rbd; the container off",
            ),
            vmid=guest.vmid,
        )


def thick_snapshots(facts: StorageFacts) -> Iterator[Finding]:
    for volume in value_of(facts.volumes) or ():
        if not volume.is_thick_snapshot:
            continue
        full = f"{volume.data_percent:.0f} % of its {in_bytes(volume.size_bytes)} used"
        state = volume.trouble or (full if volume.data_percent is not None else "not active")
        yield Finding(
            f"LVM {volume.full_name}",
            "note" if volume.trouble == "invalid" else "warning",
            f"a snapshot of {volume.group}/{volume.origin} on thick LVM ({state}): each first write to a chunk of the "
            "original waits until the old one was read and written elsewhere on the same disks; when its room is used "
            "up the snapshot is lost",
            (f"lvremove {volume.full_name}  # once nobody reads it, as a running backup may",),
        )


def thin_pool_full(facts: StorageFacts) -> Iterator[Finding]:
    for pool in value_of(facts.volumes) or ():
        if not pool.is_thin_pool:
            continue
        data, metadata = _level(pool.data_percent, _DATA), _level(pool.metadata_percent, _METADATA)
        if not (data or metadata or pool.trouble):
            continue
        severity: Severity = "error" if pool.trouble or "error" in (data, metadata) else "warning"
        parts = []
        if pool.trouble:
            parts.append(f"LVM says: {pool.trouble}")
        if data:
            left = in_bytes(pool.size_bytes * (100 - (pool.data_percent or 0.0)) / 100)
            full = f"data {pool.data_percent:.1f} % full, {left} left"
            parts.append(f"{full}: once it is full, writes of all guests on it wait, and fail after a minute")
        if metadata:
            parts.append(
                f"metadata {pool.metadata_percent:.1f} % full: once full, the pool goes read-only and may not be "
                "repairable"
            )
        remedy = _extend(pool, bool(data), bool(metadata))
        yield Finding(f"thin pool {pool.full_name}", severity, "; ".join(parts), remedy)


def _level(percent: float | None, limits: tuple[float, float]) -> Severity | None:
    if percent is None or percent < limits[0]:
        return None
    return "error" if percent >= limits[1] else "warning"


def _extend(pool: LogicalVolume, data: bool, metadata: bool) -> tuple[str, ...]:
    """None of it can be taken back."""
    commands = []
    gib = pool.group_free_bytes >> 30
    if metadata:
        commands.append(f"lvextend --poolmetadatasize +1G {pool.full_name}")
    if data and gib > 1:
        commands.append(f"lvextend -L +{gib - 1}G {pool.full_name}")
    if data:
        commands.append("pct fstrim CTID; in each VM whose disks have discard=on: fstrim -a")
        commands.append("delete snapshots and disks that nobody needs: qm listsnapshot VMID")
    if gib < 1:
        commands.append(f"vgextend {pool.group} /dev/DISK  # the volume group has no room left")
    if pool.trouble:
        commands.append("man lvmthin  # metadata check and repair, before anything else")
    return tuple(commands)
