"""Whether the writeback of a guest's archive is worth pacing, and the summary of having done so.

The kernel lets an archive gather in the page cache and writes it out in bursts. Where archive and guest share a disk,
each burst stands in front of the guest's requests (measured: tests/bench/pacer.py). Pacing writes it out in small steps
as it grows. That can help only where the archive goes through the page cache of this node.

A step that joins a long queue makes it longer for whatever the guest asks next, so a step waits for a moment in which
the disk has next to nothing to do. Such moments come many times a second unless the disk cannot keep up at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pvehook.contract.disks import Location
from pvehook.settings import PacerMode

PACED_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "bcachefs", "vfat", "exfat"})
"""Those with a block device under them that write their files through the page cache."""

QUIET_AT_MOST = 1  # requests in flight to each disk that a step may join: the backup's own read is nearly always one
WAITING_BYTES_AT_MOST = 32 << 20  # so much of the archive waits for a quiet disk; then a step is begun all the same

Due = Literal["not-yet", "when-quiet", "now"]

Unpaced = Literal["network", "in-memory", "zfs", "file-system", "dump-unknown", "volumes-unknown"]
Reason = Unpaced | Literal["shared-disk", "asked-for", "switched-off", "no-dump-file", "no-shared-disk"]
End = Literal["not-begun", "running", "blocked", "complete", "deleted", "stopped", "too-long", "refused", "failed"]


class DumpPlace(NamedTuple):
    """The mount that the archive is written to, and the disks under it."""

    mount_point: str
    fs_type: str
    is_network: bool
    is_in_memory: bool
    is_fuse: bool
    where: Location


class Pacing(NamedTuple):
    """Whether to pace, and why. `reason` is for programs, `why` for people."""

    acts: bool
    reason: Reason
    why: str
    disks: tuple[str, ...] = ()
    """Under the archive, as far as they are known: those to be quiet when a step is begun."""


class PacerRecord(NamedTuple):
    """One guest's archive, as far as it was paced."""

    mode: PacerMode
    pacing: Pacing | None  # None: the disks are not found yet, or could not be
    step_bytes: int
    end: End = "not-begun"
    """`running` until the archive is complete, that is, has got its final name."""
    why: str = ""
    """What ended it where it was not the archive's end, and what was left undone."""
    file: str | None = None
    paced_bytes: int = 0
    steps: int = 0
    blocked_s: float = 0.0  # waited for the disk, in all steps: the pacer's time, nobody else waits with it
    worst_step_s: float = 0.0
    most_behind_bytes: int = 0  # how far the archive was ahead at the worst: the disk did not keep up or was not quiet
    cpu_s: float = 0.0

    @property
    def has_paced(self) -> bool:
        return self.steps > 0


def growing_file(target: str | None) -> str | None:
    """What vzdump writes to until the archive is complete; None if this backup writes no file.

    `/var/lib/vz/dump/vzdump-qemu-101-2026_11_22-02_10_00.vma.zst` grows as `...-02_10_00.vma.dat`. For a backup server
    the target is `vm/101/2026-11-22T02:10:00Z`. Source: `exec_backup_task` of pve-manager's PVE/VZDump.pm.
    """
    if not target or not target.startswith("/") or "\0" in target:
        return None
    growing = re.sub(r"\.[^./]+$", ".dat", target)
    return growing if growing != target else None


def is_due(ahead_bytes: int, step_bytes: int, is_complete: bool) -> Due:
    """Whether to begin a step. `ahead_bytes` of the archive are not begun; a complete one is ended without delay."""
    if is_complete:
        return "now" if ahead_bytes else "not-yet"
    if ahead_bytes < step_bytes:
        return "not-yet"
    return "when-quiet" if ahead_bytes < WAITING_BYTES_AT_MOST else "now"


def judge_pacing(
    mode: PacerMode, file: str | None, dump: DumpPlace | str, volumes: Sequence[tuple[str, Location]] | str
) -> Pacing:
    """`file` is `growing_file`'s; `volumes` are all that the guest uses, also those that are not backed up, each with
    its name. A text in place of the dump or the volumes says why nobody knows."""
    if mode == "off":
        return Pacing(False, "switched-off", "pacer: off")
    if file is None:
        return Pacing(False, "no-dump-file", "this backup writes no file on this node")
    if isinstance(dump, str):
        return Pacing(False, "dump-unknown", f"the file system of the archive is unknown: {dump}")
    refusal = _unpaced(dump)
    if refusal is not None:
        return Pacing(False, *refusal)
    if mode == "on":
        why = f"pacer: on; the archive goes to {dump.where.detail}"
        return Pacing(True, "asked-for", why, tuple(sorted(_names(dump.where))))
    return _judge_disks(dump.where, volumes)


def _judge_disks(where: Location, volumes: Sequence[tuple[str, Location]] | str) -> Pacing:
    """Only a disk that is known to carry both is reason enough to act unasked."""
    disks = tuple(sorted(_names(where)))
    if not disks:
        return Pacing(False, "dump-unknown", f"the disks under the archive are unknown: {where.detail}")
    if isinstance(volumes, str):
        return Pacing(False, "volumes-unknown", f"the disks under the guest are unknown: {volumes}")
    shared = {name: common for name, volume in volumes if (common := _names(volume) & _names(where))}
    if shared:
        both = sorted(set().union(*shared.values()))
        carry = f"{', '.join(both)} {'carries' if len(both) == 1 else 'carry'}"
        why = f"{carry} the archive ({where.detail}) and {', '.join(shared)} of the guest"
        return Pacing(True, "shared-disk", why, disks)
    unknown = [f"{name}: {each.detail}" for name, each in volumes if each.kind == "unknown" and not each.disks]
    on = ", ".join(disks)
    if unknown:
        why = f"the archive is written to {on}; what lies under the guest is not all known ({'; '.join(unknown)})"
        return Pacing(False, "volumes-unknown", why)
    return Pacing(False, "no-shared-disk", f"nothing of the guest lies on {on}, where the archive is written")


def _unpaced(dump: DumpPlace) -> tuple[Unpaced, str] | None:
    """Why this file system's writeback is not for us to pace; None if it is."""
    place = f"{dump.fs_type or 'an unknown file system'} at {dump.mount_point or 'an unknown place'}"
    if dump.is_network or (dump.where.kind == "network" and not dump.where.disks):
        return "network", f"{dump.where.detail}: another machine's file system has its own rules"
    if dump.is_in_memory:
        return "in-memory", f"{place} is in memory and on no disk"
    if dump.fs_type == "zfs":
        return "zfs", f"{place}: ZFS does not write through the page cache"
    if dump.fs_type not in PACED_FILE_SYSTEMS:
        doer = "a process of its own does the I/O" if dump.is_fuse else "nobody knows how it writes back"
        return "file-system", f"{place}: {doer}"
    return None


def _names(where: Location) -> set[str]:
    return {disk.name for disk in where.disks}
