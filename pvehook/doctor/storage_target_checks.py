"""Where backups go: on which disks, whether it can be used, and what a server that is gone does to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pvehook.contract.disks import Location
from pvehook.contract.guest_config import split_list
from pvehook.contract.storage_config import content_of
from pvehook.contract.text import named
from pvehook.doctor.finding import Finding, Severity
from pvehook.doctor.storage_facts import VZDUMP_CONF, BackupTarget, GuestPlaces, StorageFacts
from pvehook.rules.pacing import DumpPlace, Pacing, judge_pacing

_CIFS: Final = ("cifs", "smb3")
_NFS: Final = ("nfs", "nfs4")


def dump_on_guest_disks(facts: StorageFacts) -> Iterator[Finding]:
    for target in facts.targets:
        sharing = [
            each for each in sharing_guests(facts, target) if not facts.asked or each.vmid in facts.asked
        ]
        for guests in [[each] for each in sharing] if facts.asked else [sharing] if sharing else []:
            shared = sorted(disks_of(target.where) & frozenset().union(*(each.disks for each in guests)))
            whose = f"the disks of {named([each.label for each in guests])}"
            pacing = pacing_of(facts, target, guests)
            paced = "the pacer keeps the bursts small" if pacing.acts else f"its bursts are not paced ({pacing.why})"
            yield Finding(
                target.subject,
                "warning",
                f"archives are written to {', '.join(shared)} ({target.where.detail}), which also "
                f"{'carries' if len(shared) == 1 else 'carry'} {whose}: what reads a guest, what writes its archive, "
                f"and all guests queue at the same disk; {paced}",
                _elsewhere(facts, target),
                vmid=guests[0].vmid if len(guests) == 1 else None,
            )


def unusable_target(facts: StorageFacts) -> Iterator[Finding]:
    for target in facts.targets:
        severity: Severity = "error" if target.users != (VZDUMP_CONF,) else "warning"
        whose = f"{named(target.users)} {'writes' if len(target.users) == 1 else 'write'} there"
        refusal = target.refusal or target.look.refusal
        if refusal is not None:
            evidence = f"Proxmox fails every backup to it: {refusal}; {whose}"
            yield Finding(target.subject, severity, evidence, _use(facts, target))
        elif target.look.is_silent:
            yield Finding(
                target.subject,
                severity,
                f"it does not answer: {target.look.unknown}; {whose}. A backup that runs into this stops the I/O of a "
                "VM that has no fleecing image, for as long as it lasts",
                (f"pvesm status --storage {target.storage.id}" if target.storage else f"stat -f {target.subject}",),
            )
        elif target.look.not_mounted and target.storage is not None:
            yield Finding(
                target.subject,
                "warning",
                f"it is not mounted now, though Proxmox mounts it whenever it can: the server may be off; {whose}",
                (f"pvesm status --storage {target.storage.id}", "journalctl -u pvestatd --since -10min"),
            )


def soft_mount(facts: StorageFacts) -> Iterator[Finding]:
    for target in facts.targets:
        mount = target.mount
        soft = next((each for each in ("soft", "softerr") if each in mount.options), None)
        if soft is None or mount.fs_type not in (*_NFS, *_CIFS):
            continue
        is_nfs = mount.fs_type in _NFS
        default = "" if is_nfs else ", which is the default of CIFS"
        timing = [each for each in mount.options if each.startswith(("timeo=", "retrans="))]
        yield Finding(
            target.subject,
            "warning" if is_nfs else "note",
            f"{mount.source} is mounted {soft}{default}{' (' + ', '.join(timing) + ')' if timing else ''}: when the "
            "server does not answer for a while, writes fail and the backup is lost, and a VM without fleecing image "
            "can see a failed write of its own. A hard mount waits instead, and goes on when the server is back",
            _harden(target, soft),
        )


def sharing_guests(facts: StorageFacts, target: BackupTarget) -> list[GuestPlaces]:
    """The guests on the disks that the archives are written to; none where Proxmox would write none."""
    if target.refusal or target.look.refusal:
        return []
    return [each for each in facts.guests if each.disks & disks_of(target.where)]


def pacing_of(facts: StorageFacts, target: BackupTarget, guests: list[GuestPlaces]) -> Pacing:
    """Whether the pacer would act for the first of them: they share the same disks."""
    mount = target.mount
    place = DumpPlace(
        mount.mount_point, mount.fs_type, mount.is_network, mount.is_in_memory, mount.is_fuse, target.where
    )
    return judge_pacing(facts.pacer, "the archive", place, guests[0].places)


def disks_of(where: Location) -> frozenset[str]:
    return frozenset(disk.name for disk in where.disks)


def _elsewhere(facts: StorageFacts, target: BackupTarget) -> tuple[str, ...]:
    """The commands that send the backups to a storage on other disks, if there is one."""
    taken = frozenset().union(*(each.disks for each in facts.guests))
    known = ((name, disks_of(where)) for name, where in facts.others if where.kind == "network" or where.disks)
    free = (name for name, disks in known if not disks & taken)
    other = next(free, None)
    first = () if other else ("pvesm add nfs OTHER ...  # or another storage that is not on these disks",)
    return (*first, *_send_to(target, other or "OTHER"))


def _send_to(target: BackupTarget, storage_id: str) -> tuple[str, ...]:
    own = "" if target.storage is not None else " --delete dumpdir"
    commands = [f"pvesh set /cluster/backup/{job} --storage {storage_id}{own}" for job in target.jobs]
    if VZDUMP_CONF in target.users:
        commands.append(f"in {VZDUMP_CONF}: storage: {storage_id}")
    cron = set(target.users) - {f"job {job}" for job in target.jobs} - {VZDUMP_CONF}
    commands += [f"in {user.removeprefix('job ')}: --storage {storage_id}" for user in sorted(cron)]
    return tuple(commands)


def _use(facts: StorageFacts, target: BackupTarget) -> tuple[str, ...]:
    """Of a target that Proxmox refuses."""
    storage = target.storage
    if target.refusal is None:
        path = storage.properties.get("path", "") if storage is not None else target.subject
        return (f"findmnt --target {path}", f"mount {path}", *_send_to(target, "OTHER"))
    if storage is None:
        return _send_to(target, "OTHER")
    if "disabled" in target.refusal:
        return (f"pvesm set {storage.id} --disable 0",)
    if "content" in target.refusal:
        return (f"pvesm set {storage.id} --content {content_of(storage)},backup",)
    nodes = ",".join([*split_list(storage.properties.get("nodes", "")), facts.node_name])
    return (f"pvesm set {storage.id} --nodes {nodes}  # if it can be reached from here", *_send_to(target, "OTHER"))


def _harden(target: BackupTarget, soft: str) -> tuple[str, ...]:
    again = f"umount {target.mount.mount_point}"
    storage = target.storage
    if storage is None or storage.type not in ("nfs", "cifs"):
        return (f"in /etc/fstab: hard in place of {soft} for {target.mount.mount_point}", f"{again}; mount -a")
    kept = [each for each in storage.properties.get("options", "").split(",") if each and each != soft]
    return (
        f"pvesm set {storage.id} --options {','.join([*kept, 'hard'])}",
        f"{again}  # while no backup runs; Proxmox mounts it again",
    )
