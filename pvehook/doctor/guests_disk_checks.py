"""PVH-407 to 410: how the VMs' disks are attached, and by which QEMU."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from pvehook.contract.debian_version import compare
from pvehook.contract.guest_config import boolean
from pvehook.contract.measured import Measured, value_of
from pvehook.contract.section_config import find_section
from pvehook.contract.text import printable
from pvehook.contract.vm_disks import SINGLE, VmDisk, why_no_io_uring
from pvehook.doctor.finding import Command, Finding, Severity
from pvehook.doctor.guest_look import QEMU_PACKAGE
from pvehook.doctor.guests_facts import GuestFacts, GuestsFacts

Findings: TypeAlias = Iterator[Finding]

_CACHE: Final = {
    "writeback": "its writes fill the node's page cache, as the archive's do, and wait with them for the disks",
    "unsafe": "its flushes are ignored: if the node crashes its filesystems are damaged",
    "writethrough": "each of its writes waits for a flush of the disk",
    "directsync": "each of its writes waits for a flush of the disk",
}
IO_THREADS_SOUND_FROM: Final = "8.1.5-3"
"""Before it a guest's I/O may get stuck for good (pve-qemu's changelog, 8.1.5-2 and 8.1.5-3)."""
_FILES: Final = ("dir", "nfs", "cifs", "btrfs", "cephfs", "glusterfs")
"""Types of storages whose images are files."""


def io_thread(facts: GuestsFacts) -> Findings:
    """Disks whose requests run in QEMU's main loop."""
    for guest in _vms(facts):
        without = [disk for disk in guest.disks if not disk.has_io_thread]
        if not without:
            continue
        keys = ", ".join(disk.key for disk in without)
        evidence = f"no I/O thread for {keys}: requests run in QEMU's main loop, as its monitor does"
        disks = _to_change(guest, without, lambda disk: not disk.has_io_thread)
        can = [disk for disk in disks if disk.bus in ("scsi", "virtio")]
        steps = [_change(guest, disk, disk.changed(iothread="1")) for disk in can]
        remedy = _sound_options(facts, guest, can)
        controllers = {disk.controller for disk in can if disk.bus == "scsi"} - {SINGLE}
        for controller in controllers:
            steps = []  # another controller may need drivers in the guest
            remedy.insert(0, f"qm set {guest.vmid} --scsihw {SINGLE}")
            if not controller.startswith("virtio"):
                evidence += f"; its controller is {printable(controller, 20)}, so it first needs virtio drivers"
        if old := [disk.key for disk in disks if disk.bus in ("ide", "sata")]:
            remedy.append(f"attach {', '.join(old)} as scsi with {SINGLE}: ide and sata have no I/O threads")
        if remedy and _is_unsound(facts.installed_qemu):
            steps = []
            remedy.insert(0, "apt update && apt full-upgrade    # this pve-qemu-kvm may hang with I/O threads")
        yield _finding(guest, "warning", evidence, remedy, steps)


def cache_mode(facts: GuestsFacts) -> Findings:
    """Disks with a cache mode by which the guest waits, or loses data. Which one it should be is not for `--fix`."""
    for guest in _vms(facts):
        faults = [(disk, why) for disk in guest.disks if (why := _bad_cache(facts, disk))]
        if not faults:
            continue
        seen = "; ".join(f"{disk.key} has cache={disk.cache}: {why}" for disk, why in faults)
        disks = _to_change(guest, [disk for disk, _ in faults], lambda disk: _bad_cache(facts, disk) is not None)
        yield _finding(guest, "warning", f"{seen}; expected no cache (`none`)", _sound_options(facts, guest, disks))


def aio(facts: GuestsFacts) -> Findings:
    """Disks whose `aio` was set to what does not suit their storage."""
    for guest in _vms(facts):
        faults = [(disk, why) for disk in guest.disks if (why := _bad_aio(facts, disk))]
        if not faults:
            continue
        seen = "; ".join(f"{disk.key} has aio={disk.aio} on storage {disk.storage_id}: {why}" for disk, why in faults)
        disks = _to_change(guest, [disk for disk, _ in faults], lambda disk: _bad_aio(facts, disk) is not None)
        steps = [_change(guest, disk, disk.changed(aio=None)) for disk in disks]
        evidence = f"{seen}; expected Proxmox's own choice"
        yield _finding(guest, "warning", evidence, _sound_options(facts, guest, disks), steps)


def old_qemu(facts: GuestsFacts) -> Findings:
    """A VM that goes on with the QEMU of before an upgrade."""
    for guest in _vms(facts):
        if guest.look.running_qemu is None:
            continue
        running, installed = value_of(guest.look.running_qemu), value_of(facts.installed_qemu)
        if running is not None and running == installed:
            continue  # the same version was installed once more
        evidence = f"it runs {QEMU_PACKAGE} {running or 'of before an upgrade'}"
        evidence += f"; {installed} is installed" if installed else "; its program was replaced on the disk"
        evidence += ": what was fixed since does not count for it yet"
        yield Finding(guest.title, "note", evidence, (f"qm reboot {guest.vmid}",), vmid=guest.vmid)


def _vms(facts: GuestsFacts) -> Iterator[GuestFacts]:
    return (guest for guest in facts.guests if guest.vmtype == "qemu")


def _bad_cache(facts: GuestsFacts, disk: VmDisk) -> str | None:
    """What is wrong with it. Without the storages, which `gather` then reports, nothing is said."""
    if facts.storages is None or disk.cache not in _CACHE:
        return None
    storage = find_section(facts.storages, disk.storage_id)
    if disk.cache == "writeback" and storage is not None and storage.type == "rbd":
        # librbd has a cache of its own, and only krbd uses the node's page cache.
        return _CACHE[disk.cache] if boolean(storage.properties.get("krbd")) else None
    return _CACHE[disk.cache]


def _bad_aio(facts: GuestsFacts, disk: VmDisk) -> str | None:
    """As `_bad_cache`."""
    storage = find_section(facts.storages, disk.storage_id) if facts.storages is not None else None
    if storage is None:
        return None
    if disk.aio == "native" and storage.type in _FILES:
        return "while the file grows it blocks the thread that submits"
    return why_no_io_uring(storage, disk.cache) if disk.aio == "io_uring" else None


def _is_unsound(qemu: Measured[str]) -> bool:
    """Whether this QEMU is known to hang with I/O threads."""
    version = value_of(qemu)
    try:
        return version is not None and compare(version, IO_THREADS_SOUND_FROM) < 0
    except ValueError:
        return False


def _to_change(guest: GuestFacts, faulty: Sequence[VmDisk], is_faulty: Callable[[VmDisk], bool]) -> list[VmDisk]:
    """Those of the `faulty` that still are after the VM's restart, as they are then: what waits for it is not lost by
    another change. None: the restart is all that is missing."""
    later = {disk.key: disk for disk in guest.disks_after_restart}
    return [later[disk.key] for disk in faulty if disk.key in later and is_faulty(later[disk.key])]


def _sound_options(facts: GuestsFacts, guest: GuestFacts, disks: Sequence[VmDisk]) -> list[str]:
    """Commands that set right all that is wrong with these disks: typed one after the other for several checks, they
    take back nothing of each other."""
    commands = []
    for disk in disks:
        option: dict[str, str | None] = {"iothread": "1"} if disk.bus in ("scsi", "virtio") else {}
        option |= {"cache": None} if _bad_cache(facts, disk) else {}
        option |= {"aio": None} if _bad_aio(facts, disk) else {}
        commands.append(printable(shlex.join(_change(guest, disk, disk.changed(**option)).do), 1000))
    return commands


def _change(guest: GuestFacts, disk: VmDisk, option: str) -> Command:
    """Proxmox does it when the VM is started anew, so a VM that runs is not touched."""
    command = ("qm", "set", str(guest.vmid), f"--{disk.key}")
    return Command((*command, option), (*command, disk.text), f"/etc/pve/qemu-server/{guest.vmid}.conf", disk.key)


def _finding(
    guest: GuestFacts, severity: Severity, evidence: str, remedy: Sequence[str], steps: Sequence[Command] = ()
) -> Finding:
    """Whatever it is, it takes a restart of the VM; of one that does not run now it is worth knowing only."""
    if not remedy:
        evidence += "; it is changed, which waits for the VM's restart"
    restart = (f"qm reboot {guest.vmid}",) if guest.runs or not remedy else ()
    severity = severity if guest.runs else "note"
    return Finding(guest.title, severity, evidence, (*remedy, *restart), tuple(steps), guest.vmid)
