"""How the kernel treats the requests of the disks that guests and archives are on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pvehook.contract.measured import Absent, Broken
from pvehook.contract.text import named, printable
from pvehook.doctor.finding import Command, Finding, Step, Write
from pvehook.doctor.storage_facts import FIX_FILES, StorageFacts
from pvehook.doctor.storage_target_checks import disks_of, pacing_of, sharing_guests
from pvehook.host.disk_queue import DiskQueue
from pvehook.records.figures import in_bytes
from pvehook.rules.io_effect import idle_effect

_BETTER: Final = "mq-deadline"
_THROTTLING_US: Final = {True: 75_000, False: 2_000}
"""What the kernel itself sets, by whether the disk rotates: wbt_default_latency_nsec in block/blk-wbt.c."""
_WBT_FAULT: Final = ((6, 15), (6, 16))
_RAID_DRIVERS: Final = frozenset(
    {"megaraid_sas", "mpi3mr", "hpsa", "smartpqi", "aacraid", "arcmsr", "3w-9xxx", "3w-sas"}
)

Fix = tuple[tuple[str, ...], tuple[Step, ...]]
"""Remedy and steps."""

_MEGARAID_EVENT: Final = re.compile(
    r"megaraid_sas (\S+): \d+ \([^)]*/(?:WARN|CRIT|FATAL|DEAD)\) - (.*(?:battery|bbu|cachevault|capacitor).*)", re.I
)
"""megasas_decode_evt of drivers/scsi/megaraid/megaraid_sas_base.c, which logs from CRIT on unless told otherwise."""

_TOO_LONG_S: Final = 10.0
_WRITES_BYTES_PER_S: Final = {True: 250e6, False: 500e6}
"""At most, sequentially: one hard disk, and one SSD behind SATA. For disks of which no archive's rate is known."""
_SYSCTL: Final = f"/etc/sysctl.d/{FIX_FILES}dirty.conf"


def idle_class_ignored(facts: StorageFacts) -> Iterator[Finding]:
    if facts.idle == "off":
        return
    for queue in facts.queues.values():
        effect = idle_effect(queue.scheduler, facts.kernel, "disks")
        whose = [each.label for each in facts.guests if each.vmtype == "lxc" and queue.name in each.disks]
        # NVMe disks serve so many requests at once that their makers and distributions leave them without a scheduler.
        if effect.verdict != "ignored" or not whose or queue.name.startswith("nvme") or _rotates_unscheduled(queue):
            continue
        if _BETTER in queue.schedulers:
            yield Finding(
                f"disk {queue.name}",
                "note",
                f"{effect.reason}; on it are {named(whose)}, whose backups pvehook sets to the idle I/O class",
                *_set(facts, queue, "scheduler", queue.scheduler or "none", _BETTER),
            )


def rotating_without_scheduler(facts: StorageFacts) -> Iterator[Finding]:
    for queue in facts.queues.values():
        if _rotates_unscheduled(queue):
            controller = f"; {queue.model} of {queue.driver} may sort them once more" if _is_raid(queue) else ""
            yield Finding(
                f"disk {queue.name}",
                "note",
                "the kernel takes it for a disk that rotates, and it has no scheduler (none): reads wait behind "
                f"whatever is written, and the idle I/O class is ignored{controller}",
                *_set(facts, queue, "scheduler", "none", _BETTER),
            )


def throttling_off(facts: StorageFacts) -> Iterator[Finding]:
    for queue in facts.queues.values():
        # bfq switches it off itself, and does its work in another way.
        if queue.throttling_us != 0 or queue.scheduler == "bfq" or queue.is_rotational is None:
            continue
        is_faulty = facts.kernel in _WBT_FAULT
        remedy, steps = _set(facts, queue, "wbt_lat_usec", "0", str(_THROTTLING_US[queue.is_rotational]))
        fault = f"; kernel {facts.release} may not switch it on by itself: 6.15 to 6.16.2 do not" if is_faulty else ""
        yield Finding(
            f"disk {queue.name}",
            "warning" if queue.is_rotational else "note",
            "writeback throttling is off (wbt_lat_usec 0): what the page cache writes out, archives above all, fills "
            f"the disk's queue in front of everybody's reads{fault}",
            remedy,
            steps if queue.is_throttling_set_up else (),  # what cannot be read could not be taken back
        )


def much_may_be_dirty(facts: StorageFacts) -> Iterator[Finding]:
    if isinstance(facts.dirty, (Absent, Broken)):
        return
    limit_bytes, setting, background = facts.dirty
    for target in facts.targets:
        queues = [facts.queues[name] for name in sorted(disks_of(target.where)) if name in facts.queues]
        guests = sharing_guests(facts, target)
        if not queues or not guests:
            continue
        pacing = pacing_of(facts, target, guests)
        if not pacing.acts and pacing.reason != "switched-off":
            continue  # nothing of the archive waits in this node's page cache
        assumed = _WRITES_BYTES_PER_S[any(each.is_rotational is not False for each in queues)]
        seen = facts.archive_bytes_per_s or 0.0
        rate = max(assumed, seen)
        if limit_bytes <= _TOO_LONG_S * rate:
            continue
        how = "as the fastest archive came lately" if seen > assumed else "the most that disks of this kind do"
        kept = "the pacer keeps the archives' part small, not that of containers and other programs"
        yield Finding(
            "node",
            "note" if pacing.acts else "warning",
            f"{in_bytes(limit_bytes)} may wait in the page cache to be written ({setting}), {limit_bytes / rate:.0f} s "
            f"of work for {', '.join(each.name for each in queues)} at {in_bytes(rate)}/s, {how}: until it is done the "
            f"guests on it wait; {kept if pacing.acts else 'the pacer is off'}",
            *_lower(facts, round(rate), (background, setting)),
        )
        return


def raid_cache(facts: StorageFacts) -> Iterator[Finding]:
    lines = [] if isinstance(facts.kernel_log, (Absent, Broken)) else facts.kernel_log.lines
    events = {match[1]: match[2] for line in lines if (match := _MEGARAID_EVENT.match(line.text))}
    for controller, event in events.items():  # the last one of each
        yield Finding(
            f"controller {controller}",
            "warning",
            f"the kernel's log has of it: {printable(event, 120)}. Without a battery a controller writes each request "
            "to its disks before it answers, unless it is forced to risk the data; it may be well again by now",
            (_CONTROLLER_TOOLS["megaraid_sas"],),
        )
    for queue in facts.queues.values():
        if not (_is_raid(queue) and queue.is_rotational and queue.write_cache == "write through"):
            continue
        yield Finding(
            f"disk {queue.name}",
            "note",
            f"{queue.model} of {queue.driver} says write through: either the controller writes each request to its "
            "disks before it answers, as one does whose battery is missing or spent, and the guests' flushes take "
            "long; or it has a cache with a battery and hides it. The kernel cannot tell which",
            (_CONTROLLER_TOOLS.get(queue.driver, "ask the controller's own tool for its cache and its battery"),),
        )


_CONTROLLER_TOOLS: Final = {
    "megaraid_sas": "storcli64 /c0 show all  # or perccli64; see BBU, CacheVault, each VD's cache",
    "mpi3mr": "storcli2 /c0 show all  # or perccli2; see the energy pack, each VD's cache",
    "hpsa": "ssacli ctrl all show config detail  # see Battery/Capacitor and Cache Status",
    "smartpqi": "ssacli ctrl all show config detail  # or arcconf getconfig 1; see the battery, Cache Status",
    "aacraid": "arcconf getconfig 1  # see the battery, each device's Write-cache mode",
}


def _is_raid(queue: DiskQueue) -> bool:
    """A RAID volume, and not a disk that is passed through, which shows its own vendor."""
    return queue.driver in _RAID_DRIVERS and not queue.model.startswith(("ATA", "NVMe"))


def _rotates_unscheduled(queue: DiskQueue) -> bool:
    return queue.is_rotational is True and queue.scheduler == "none" and _BETTER in queue.schedulers


def _set(facts: StorageFacts, queue: DiskQueue, attribute: str, old: str, new: str) -> Fix:
    """Now, and by a udev rule whenever the disk comes."""
    by = f'ATTRS{{wwid}}=="{queue.wwid}"' if queue.wwid else f'KERNEL=="{queue.name}"'
    rule = f'ACTION=="add|change", SUBSYSTEM=="block", ENV{{DEVTYPE}}=="disk", {by}, ATTR{{queue/{attribute}}}="{new}"'
    path = f"/etc/udev/rules.d/{FIX_FILES}{attribute.replace('_', '-')}-{queue.wwid or queue.name}.rules"
    file = f"/sys/block/{queue.name}/queue/{attribute}"
    do, undo = (f"echo {value} > {file}" for value in (new, old))
    steps: tuple[Step, ...] = (
        Write(path, facts.files.get(path), f"{rule}\n"),
        Command(("/bin/sh", "-c", do), ("/bin/sh", "-c", undo), file),
    )
    return (do, f"echo '{rule}' > {path}"), steps


def _lower(facts: StorageFacts, rate_bytes: int, settings: tuple[str, str]) -> Fix:
    """To what the disk writes in two seconds, and in the background from one on."""
    mib = 1 << 20
    background = max(rate_bytes // mib, 1) * mib
    texts = [f"vm.dirty_background_bytes={background}", f"vm.dirty_bytes={2 * background}"]
    steps: tuple[Step, ...] = (
        Write(_SYSCTL, facts.files.get(_SYSCTL), "".join(f"{each}\n" for each in texts)),
        Command(("sysctl", "-w", *texts), ("sysctl", "-w", *settings), "/proc/sys/vm/dirty_bytes"),
    )
    return (f"sysctl -w {' '.join(texts)}", f"printf '%s\\n' {' '.join(texts)} > {_SYSCTL}"), steps
