"""Whether idle I/O priority can have an effect: on a disk, and on a backup.

On a disk it is the block layer's scheduler that decides (Linux block/bfq-iosched.c, block/mq-deadline.c; the
latter since kernel 5.16). On a backup the question is whose requests carry the priority: a thread's own do,
what the kernel writes back from the page cache later does not. Measured for this project: the compressor of a
VM backup in the idle I/O class changed nothing measurable for the guest, under none, mq-deadline and bfq alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pvehook.contract.disks import Disk, Kind, Location

Verdict = Literal["honoured", "partly", "ignored", "not-applicable", "unknown"]

_MQ_DEADLINE_SINCE = (5, 16)


class Effect(NamedTuple):
    """Whether idle priority counts, and why."""

    verdict: Verdict
    reason: str


_SCHEDULERS = {
    "bfq": Effect("honoured", "bfq serves idle requests when no other process wants the disk"),
    "none": Effect("ignored", "without a scheduler (none) I/O priorities are ignored"),
    "kyber": Effect("ignored", "the scheduler kyber ignores I/O priorities"),
}


def idle_effect(scheduler: str | None, kernel: tuple[int, int] | None, kind: Kind) -> Effect:
    """Whether one disk serves idle requests last. None if the node does not tell."""
    if kind == "network":
        return Effect("not-applicable", "another machine decides which request is served first")
    if kind == "zfs":
        return Effect("ignored", "ZFS orders its I/O itself and submits it from kernel threads")
    if kind == "unknown" or scheduler is None:
        return Effect("unknown", "no disk with a known scheduler was found")
    if scheduler == "mq-deadline":
        return _mq_deadline(kernel)
    return _SCHEDULERS.get(scheduler) or Effect("unknown", f"the scheduler {scheduler} is not known to pvehook")


def _mq_deadline(kernel: tuple[int, int] | None) -> Effect:
    rule = "mq-deadline serves idle requests last from kernel 5.16 on"
    if kernel is None:
        return Effect("unknown", f"{rule}, this kernel's version is unknown")
    version = f"{kernel[0]}.{kernel[1]}"
    if kernel < _MQ_DEADLINE_SINCE:
        return Effect("ignored", f"{rule}, this is {version}")
    # 10 s is the default of the disk's prio_aging_expire.
    return Effect("honoured", f"mq-deadline (kernel {version}) serves idle requests last, a starved one after 10 s")


def location_effect(location: Location, kernel: tuple[int, int] | None) -> Effect:
    """The effect on everything under one place."""
    if location.kind != "disks" or not location.disks:
        kind: Kind = "unknown" if location.kind == "disks" else location.kind
        effect = idle_effect(None, kernel, kind)
        return effect._replace(reason=f"{location.detail}: {effect.reason}")
    return combined_effect(
        (_disk_label(disk), idle_effect(disk.scheduler, kernel, disk.kind)) for disk in location.disks
    )


def combined_effect(effects: Iterable[tuple[str, Effect]]) -> Effect:
    """One verdict over several disks or places, each with its label; the reason names those that differ."""
    labels: dict[tuple[Verdict, str], list[str]] = {}
    for label, effect in effects:
        labels.setdefault((effect.verdict, effect.reason), []).append(label)
    verdicts = {verdict for verdict, _ in labels}
    reason = "; ".join(
        f"{', '.join(dict.fromkeys(names))}: {text}" if any(names) else text
        for (_, text), names in sorted(labels.items(), key=lambda item: item[1])
    )
    if not verdicts:
        return Effect("unknown", "no disk was found")
    if len(verdicts) > 1 and verdicts & {"honoured", "partly"}:
        return Effect("partly", reason)
    by_weight: tuple[Verdict, ...] = ("honoured", "partly", "unknown", "ignored", "not-applicable")
    return Effect(next(each for each in by_weight if each in verdicts), reason)


def _disk_label(disk: Disk) -> str:
    return disk.name if disk.transport in ("local", "zfs") else f"{disk.name} ({disk.transport})"


def idle_reach(vmtype: str | None, mode: str, target_is_pbs: bool) -> str:
    """One or two sentences: what of this guest's backup in this mode idle I/O priority can reach at all."""
    if vmtype == "qemu":
        return _reach_in_vm_backup(mode, target_is_pbs)
    if vmtype == "lxc":
        return _reach_in_container_backup(mode, target_is_pbs)
    return "What idle priority reaches is unknown: vzdump did not say whether this is a VM or a container."


def _reach_in_vm_backup(mode: str, target_is_pbs: bool) -> str:
    reader = "The VM's disks are read by the VM's own QEMU, at the VM's normal priority"
    if mode == "stop":
        reader += " (vzdump starts it for the backup, pvehook puts its priority back)"
    if target_is_pbs:
        return (
            f"{reader}, and QEMU itself sends them to the backup server: "
            "idle priority reaches nothing of the data path."
        )
    return (
        f"{reader}; idle priority reaches only the compressor, if there is one, and what else vzdump forks. The "
        "archive goes through the page cache, and the kernel's write-back does not carry the priority."
    )


def _reach_in_container_backup(mode: str, target_is_pbs: bool) -> str:
    reader = "proxmox-backup-client" if target_is_pbs else "tar"
    if mode == "suspend":
        reader = f"rsync, which copies the container's files first, and by {reader}, which reads the copy"
    reach = f"The container's files are read by {reader}: idle priority reaches all of the reading"
    if target_is_pbs:
        return f"{reach} and sending."
    return f"{reach} and writing, except what the kernel writes back from the page cache later."
