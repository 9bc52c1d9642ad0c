"""Checks of backup fleecing: a fast image near the guest that takes what the target is too slow for.

Source: PVE's manual on fleecing, and what was measured of a target that hangs or dies (docs/checks/PVH-202.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pvehook.contract.disks import Location
from pvehook.contract.section_config import find_section
from pvehook.contract.storage_config import why_not_usable
from pvehook.contract.text import named
from pvehook.contract.vzdump_config import MODE_DEFAULT
from pvehook.contract.vzdump_options import parse_fleecing
from pvehook.doctor.finding import Finding
from pvehook.doctor.vzdump_facts import BackupJob, VzdumpFacts, can_hold_fleecing, is_thin
from pvehook.doctor.vzdump_remedies import Fix, Origin, changed, origins
from pvehook.doctor.vzdump_settings_checks import disks_of, guests_of, titles

_WHICH: Final = "STORAGE: thin (LVM-thin, ZFS with sparse, a directory), on fast disks, not those of guests or target"


def off_with_network_target(facts: VzdumpFacts) -> Iterator[Finding]:
    """Not in mode suspend: a guest that stands still writes nothing."""
    jobs = [
        job
        for job in _with_vms(facts)
        if job.where.kind == "network"
        and job.options.get("mode", MODE_DEFAULT) != "suspend"
        and not parse_fleecing(job.options.get("fleecing")).enabled
    ]
    for origin in origins(jobs, lambda job: _belongs_to_job(facts, job)):
        targets = named(sorted({_target_of(job) for job in origin.jobs}))
        yield Finding(
            origin.subject,
            "warning",
            f"fleecing is off, expected on, for {named([job.title for job in origin.jobs])} to {targets}: before a"
            f" guest may overwrite a block the old one is copied to the target; while that hangs no request of"
            f" {titles(guests_of(origin))} is answered, and if it fails the guest's write fails",
            *_with_storage(facts, origin),
        )


def storage_fails(facts: VzdumpFacts) -> Iterator[Finding]:
    for origin, storage_id in _fleecing_origins(facts):
        why = why_not_usable(facts.storages, storage_id, facts.node_name)
        if why is not None:
            yield Finding(
                origin.subject,
                "error",
                f"the fleecing {why}: the backup of each VM fails ({titles(guests_of(origin))})",
                *_with_storage(facts, origin),
            )


def storage_is_thick(facts: VzdumpFacts) -> Iterator[Finding]:
    for origin, storage_id in _fleecing_origins(facts):
        storage = find_section(facts.storages, storage_id)
        if storage is None or storage.type not in ("lvm", "zfspool") or is_thin(storage):
            continue
        what = "thick LVM" if storage.type == "lvm" else "ZFS without sparse"
        fix = _with_storage(facts, origin)
        if storage.type == "zfspool" and not fix.steps:
            fix = Fix((f"pvesm set {storage_id} --sparse 1", "new disks of guests are thin there from then on too"))
        yield Finding(
            origin.subject,
            "warning",
            f"fleecing images are made on storage {storage_id} ({what}), expected a thin one: each backup takes as much"
            f" space there as the guest's disks have, and fails where that is not free ({titles(guests_of(origin))})",
            *fix,
        )


def storage_shares_disks(facts: VzdumpFacts) -> Iterator[Finding]:
    """Silent on disks that do not rotate: there it costs little, and protects from a target that hangs all the same."""
    for origin, storage_id in _fleecing_origins(facts):
        images = _local(facts.disks.get(storage_id))
        shared = []
        if guests := images & frozenset[str]().union(*(disks_of(facts, each) for each in guests_of(origin))):
            shared.append(("the guests' disks", guests))
        if targets := images & frozenset[str]().union(*(_local(job.where) for job in origin.jobs)):
            shared.append(("the archives", targets))
        disks = frozenset[str]().union(*(each for _, each in shared))
        if not disks or all(facts.rotational.get(disk) is False for disk in disks):
            continue
        is_slow = any(facts.rotational.get(disk) for disk in disks)
        yield Finding(
            origin.subject,
            "warning" if is_slow else "note",
            f"fleecing images are made on storage {storage_id}, on {', '.join(sorted(disks))}, as are"
            f" {' and '.join(what for what, _ in shared)}, expected other disks: each block that a guest overwrites"
            " costs these disks one more write and one more read",
            *_with_storage(facts, origin),
        )


def _target_of(job: BackupJob) -> str:
    """`nfs storage nas`, or `storage dump (nfs4 from 10.0.0.9:/e)`."""
    detail = job.where.detail
    return detail if job.target in detail else f"{job.target} ({detail})"


def _with_vms(facts: VzdumpFacts) -> list[BackupJob]:
    return [job for job in facts.jobs if job.vms]


def _is_own(job: BackupJob) -> bool:
    return "fleecing" in job.job.options


def _belongs_to_job(facts: VzdumpFacts, job: BackupJob) -> bool:
    """Else /etc/vzdump.conf is the better place: another node need not have the storage, and then its backups fail."""
    is_here_only = job.job.options.get("node") == facts.node_name or not _other_nodes(facts)
    return _is_own(job) or (is_here_only and not job.job.is_cron)


def _other_nodes(facts: VzdumpFacts) -> set[str]:
    return set(facts.node_of.values()) - {facts.node_name}


def _fleecing_origins(facts: VzdumpFacts) -> Iterator[tuple[Origin, str]]:
    """Where fleecing is on, and its storage."""
    for origin in origins(_with_vms(facts), _is_own):
        fleecing = parse_fleecing(origin.options.get("fleecing"))
        if fleecing.enabled and fleecing.storage:
            yield origin, fleecing.storage


def _with_storage(facts: VzdumpFacts, origin: Origin) -> Fix:
    """With fleecing on the best storage that there is, if one is good."""
    storage_id = _best_storage(facts, origin)
    if storage_id is not None:
        return changed(facts, origin, "fleecing", f"enabled=1,storage={storage_id}")
    return Fix((*changed(facts, origin, "fleecing", "enabled=1,storage=STORAGE").remedy, _WHICH))


def _best_storage(facts: VzdumpFacts, origin: Origin) -> str | None:
    """A thin one on disks that do not rotate, else one on disks of its own; never on the target's."""
    guests = frozenset[str]().union(*(disks_of(facts, each) for each in guests_of(origin)))
    targets = frozenset[str]().union(*(_local(job.where) for job in origin.jobs))
    is_everywhere = origin.job is not None and origin.job.job.options.get("node") != facts.node_name
    found = []
    for storage in facts.storages:
        disks = _local(facts.disks.get(storage.id))
        if not disks or disks & targets or not can_hold_fleecing(facts.storages, storage, facts.node_name):
            continue
        if is_everywhere and _other_nodes(facts) and "nodes" in storage.properties:
            continue
        is_fast = all(facts.rotational.get(disk) is False for disk in disks)
        if is_fast or not disks & guests:
            found.append((not is_fast, bool(disks & guests), storage.id))
    return min(found)[2] if found else None


def _local(where: Location | None) -> frozenset[str]:
    disks = where.disks if where is not None else ()
    return frozenset(disk.name for disk in disks if disk.transport == "local")
