"""PVH-407 to 410: how the VMs' disks are attached, and by which QEMU."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from pvehook.contract.guest_config import boolean
from pvehook.contract.measured import value_of
from pvehook.contract.section_config import Section, find_section
from pvehook.contract.text import printable
from pvehook.contract.vm_disks import SINGLE, VmDisk, why_no_io_uring
from pvehook.doctor.finding import Finding, Severity
from pvehook.doctor.guest_look import QEMU_PACKAGE
from pvehook.doctor.guests_facts import GuestFacts, GuestsFacts

Findings: TypeAlias = Iterator[Finding]

_CACHE: Final = {
    "writeback": "its writes fill the node's page cache, as the archive's do, and wait with them for the disks",
    "unsafe": "its flushes are ignored: if the node crashes its filesystems are damaged",
    "writethrough": "each of its writes waits for a flush of the disk",
    "directsync": "each of its writes waits for a flush of the disk",
}
_FILES: Final = ("dir", "nfs", "cifs", "btrfs", "cephfs", "glusterfs")
"""Types of storages whose images are files."""


class _Fault(NamedTuple):
    disk: VmDisk
    what: str
    option: str
    """The disk's option as it should be."""


def io_thread(facts: GuestsFacts) -> Findings:
    """Disks whose requests run in QEMU's main loop."""
    for guest in _vms(facts):
        without = [disk for disk in guest.disks if not disk.has_io_thread]
        if not without:
            continue
        keys = [disk.key for disk in without]
        evidence = f"no I/O thread for {', '.join(keys)}: requests run in QEMU's main loop, as its monitor does"
        later = {disk.key: disk for disk in guest.disks_after_restart}
        if all(key not in later or later[key].has_io_thread for key in keys):
            yield _waiting(guest, "warning", evidence)
            continue
        scsi = [disk for disk in without if disk.bus == "scsi"]
        can = [disk for disk in without if disk.bus in ("scsi", "virtio")]
        remedy = [_set(guest, disk.key, disk.changed(iothread="1")) for disk in can]
        if scsi and scsi[0].controller != SINGLE:
            remedy.insert(0, f"qm set {guest.vmid} --scsihw {SINGLE}")
            if not scsi[0].controller.startswith("virtio"):
                evidence += f"; its controller is {printable(scsi[0].controller, 20)}, so it first needs virtio drivers"
        old = [disk.key for disk in without if disk.bus in ("ide", "sata")]
        if old:
            remedy.append(f"attach {', '.join(old)} as scsi with {SINGLE}: ide and sata have no I/O threads")
        yield _finding(guest, "warning", evidence, remedy)


def cache_mode(facts: GuestsFacts) -> Findings:
    """Disks with a cache mode by which the guest waits, or loses data."""
    for guest in _vms(facts):
        if facts.storages is None:
            return  # `gather` reports it
        now, later = (_cached(disks, facts.storages) for disks in (guest.disks, guest.disks_after_restart))
        yield from _of_faults(guest, now, later, "expected no cache (`none`)")


def aio(facts: GuestsFacts) -> Findings:
    """Disks whose `aio` was set to what their storage does not stand."""
    for guest in _vms(facts):
        if facts.storages is None:
            return
        now, later = (_bad_aio(disks, facts.storages) for disks in (guest.disks, guest.disks_after_restart))
        yield from _of_faults(guest, now, later, "expected Proxmox's own choice")


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
        yield _finding(guest, "note", f"{evidence}: what was fixed since does not count for it yet", [])


def _vms(facts: GuestsFacts) -> Iterator[GuestFacts]:
    return (guest for guest in facts.guests if guest.vmtype == "qemu")


def _cached(disks: Sequence[VmDisk], storages: Sequence[Section]) -> list[_Fault]:
    found = []
    for disk in disks:
        if disk.cache not in _CACHE:
            continue
        storage = find_section(storages, disk.storage_id)
        if disk.cache == "writeback" and storage is not None and _caches_by_itself(storage):
            continue
        what = f"{disk.key} has cache={disk.cache}: {_CACHE[disk.cache]}"
        found.append(_Fault(disk, what, disk.changed(cache=None)))
    return found


def _caches_by_itself(storage: Section) -> bool:
    """librbd has a cache of its own, and does not use the node's page cache."""
    return storage.type == "rbd" and not boolean(storage.properties.get("krbd"))


def _bad_aio(disks: Sequence[VmDisk], storages: Sequence[Section]) -> list[_Fault]:
    found = []
    for disk in disks:
        storage = find_section(storages, disk.storage_id)
        if storage is None:
            continue
        why = why_no_io_uring(storage, disk.cache) if disk.aio == "io_uring" else None
        if disk.aio == "native" and storage.type in _FILES:
            why = "while the file grows it blocks the thread that submits"
        if why is not None:
            what = f"{disk.key} has aio={disk.aio} on storage {storage.id} ({storage.type}): {why}"
            found.append(_Fault(disk, what, disk.changed(aio=None)))
    return found


def _of_faults(guest: GuestFacts, now: list[_Fault], later: list[_Fault], expected: str) -> Findings:
    if not now:
        return
    evidence = f"{'; '.join(each.what for each in now)}; {expected}"
    if not later:
        yield _waiting(guest, "warning", evidence)
        return
    yield _finding(guest, "warning", evidence, [_set(guest, each.disk.key, each.option) for each in now])


def _set(guest: GuestFacts, key: str, option: str) -> str:
    return f"qm set {guest.vmid} --{key} {shlex.quote(printable(option, 1000))}"


def _waiting(guest: GuestFacts, severity: Severity, evidence: str) -> Finding:
    return _finding(guest, severity, f"{evidence}; it is changed, which waits for the VM's restart", [])


def _finding(guest: GuestFacts, severity: Severity, evidence: str, remedy: Sequence[str]) -> Finding:
    """Whatever it is, it takes a restart of the VM; of one that does not run now it is worth knowing only."""
    restart = (f"qm reboot {guest.vmid}",) if guest.runs or not remedy else ()
    return Finding(guest.title, severity if guest.runs else "note", evidence, (*remedy, *restart), vmid=guest.vmid)
