"""The group `storage`: what under and around the guests' disks makes backups stall or get lost."""

from __future__ import annotations

from typing import Final

from pvehook.doctor.finding import Check, Group
from pvehook.doctor.storage_disk_checks import (
    idle_class_ignored,
    much_may_be_dirty,
    raid_cache,
    rotating_without_scheduler,
    throttling_off,
)
from pvehook.doctor.storage_facts import StorageFacts, gather, missing
from pvehook.doctor.storage_lvm_checks import container_without_snapshots, thick_snapshots, thin_pool_full
from pvehook.doctor.storage_target_checks import dump_on_guest_disks, soft_mount, unusable_target

CHECKS: Final = (
    Check("PVH-301", "Archives are written to the guests' own disks", dump_on_guest_disks),
    Check("PVH-302", "The disk's scheduler ignores the idle I/O class", idle_class_ignored),
    Check("PVH-303", "A disk that rotates has no scheduler", rotating_without_scheduler),
    Check("PVH-304", "Writeback throttling is off", throttling_off),
    Check("PVH-305", "More may wait to be written than the disk writes in ten seconds", much_may_be_dirty),
    Check("PVH-306", "A container cannot be snapshotted, and is suspended instead", container_without_snapshots),
    Check("PVH-307", "A snapshot on thick LVM", thick_snapshots),
    Check("PVH-308", "A thin pool is nearly full", thin_pool_full),
    Check("PVH-309", "A RAID controller writes through, or hides its cache", raid_cache),
    Check("PVH-310", "Backups go to a storage that cannot take them now", unusable_target),
    Check("PVH-311", "Backups go to a soft mount", soft_mount),
)

GROUP: Final[Group[StorageFacts]] = Group("storage", gather, missing, CHECKS)
