"""Which mode a guest's governor has, which backups are slowed for it, and the settings that would help it more than any
governor can."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pvehook.contract.vzdump_options import WORKERS_DEFAULT, workers_set
from pvehook.rules.governor_readings import Culprit
from pvehook.rules.guest_match import match
from pvehook.settings import GovernorConfig, GovernorMode, Spare


class Setup(NamedTuple):
    """How this guest is backed up. None: not known, and then there is no advice about it."""

    max_workers: int | None = None
    workers_of_job: str | None = None
    """The job whose own `performance` says how many; None: /etc/vzdump.conf does, or Proxmox's default counts."""
    fleecing: bool | None = None
    iothread: bool | None = None
    """Whether each of its disks has an I/O thread of its own."""
    shares_disk: bool | None = None
    """Whether the archive is written to a disk that holds volumes of the guest."""
    is_spared: bool = True
    """Whether its backup is slowed for the guest's own sake, and not only for those beside it."""


def mode_for(config: GovernorConfig, vmid: int, name: str | None, tags: Collection[str]) -> GovernorMode:
    """How this guest's own backup is treated: by the first rule that matches the guest and has a mode, else by the
    section's mode."""
    found = (rule.mode for rule in config.rules if rule.mode is not None and match(rule, vmid, name, tags))
    return next(found, config.mode)


def spare_for(config: GovernorConfig, vmid: int, name: str | None, tags: Collection[str]) -> Spare:
    """Which backups are slowed while this guest suffers: by the first rule that matches it and has `spare`, else
    always."""
    found = (rule.spare for rule in config.rules if rule.spare is not None and match(rule, vmid, name, tags))
    return next(found, "always")


def spared_in_own_backup(config: GovernorConfig, vmid: int, name: str | None, tags: Collection[str]) -> bool:
    """Whether this guest's own backup is slowed because this guest suffers. Not the same as its mode: with `off` it is
    not slowed for its neighbours either."""
    return spare_for(config, vmid, name, tags) != "never"


def may_be_spared_for_others(config: GovernorConfig, vmid: int, name: str | None, tags: Collection[str]) -> bool:
    """Whether the backups of other guests are slowed because this guest suffers."""
    return spare_for(config, vmid, name, tags) == "always"


def workers_of(performance: str | None) -> int:
    """Of a job's or /etc/vzdump.conf's `performance: max-workers=4,pbs-entries-max=...`; None: it is not set."""
    found = workers_set(performance)
    return found if found is not None else WORKERS_DEFAULT


def advice(vmid: int, setup: Setup, culprit: Culprit | None) -> tuple[str, ...]:
    """Settings that would help a guest that suffered, each as it is to be set. `culprit`: why slowing was given up."""
    found = []
    if culprit == "slow-target" and setup.fleecing is False:
        found.append(
            "the backup's target is slow: give the job `fleecing enabled=1,storage=STORAGE`, with a STORAGE on "
            "fast disks that are not the guest's own"
        )
    if setup.max_workers is not None and setup.max_workers > 1:
        where = "`performance: max-workers=1` in /etc/vzdump.conf"
        if setup.workers_of_job is not None:
            where = f"`max-workers=1` in the performance of job {setup.workers_of_job}: it wins over /etc/vzdump.conf"
        what = f"up to {setup.max_workers} requests of the backup may be queued in front of each of the guest's"
        # Measured with Proxmox's own code and a target of 20 MiB/s: as long with 1 worker as with 16.
        cost = "; the backup takes no longer, since its target is the slow part" if culprit == "slow-target" else ""
        found.append(f"{what}: set {where}{cost}")
    if setup.shares_disk:
        found.append("the archive is written to a disk of the guest's own: give the job a storage on other disks")
    if setup.iothread is False:
        found.append(
            f"its disks share QEMU's main thread: `qm set {vmid} --scsihw virtio-scsi-single` and `iothread=1` on each "
            "disk"
        )
    return tuple(found)
