"""How a VM's disks are attached, by its configuration."""

from __future__ import annotations

import pytest

from pvehook.contract.guest_config import options_after_restart, options_of
from pvehook.contract.section_config import Section
from pvehook.contract.vm_disks import VmDisk, vm_disks, why_no_io_uring

CONFIG = """\
scsihw: virtio-scsi-single
scsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G
scsi1: file=local-lvm:vm-101-disk-1,cache=writeback
virtio0: nas:101/vm-101-disk-2.qcow2,aio=threads,iothread=on
sata0: /dev/sdz
ide2: local:iso/debian.iso,media=cdrom
ide0: none,media=cdrom
efidisk0: local-lvm:vm-101-disk-3,size=4M
unused0: local-lvm:vm-101-disk-4

[PENDING]
delete: sata0,!unused0
scsi1: local-lvm:vm-101-disk-1

[snap]
scsi9: local-lvm:vm-101-disk-9
"""


def disks(text: str) -> dict[str, VmDisk]:
    return {each.key: each for each in vm_disks(options_of(text))}


def test_disks_are_told_with_their_settings_and_without_drives_that_are_none() -> None:
    found = disks(CONFIG)
    assert list(found) == ["scsi0", "scsi1", "virtio0", "sata0"]
    assert [each.has_io_thread for each in found.values()] == [True, False, True, False]
    assert [each.storage_id for each in found.values()] == ["local-lvm", "local-lvm", "nas", ""]
    assert (found["scsi1"].cache, found["virtio0"].aio) == ("writeback", "threads")


def test_a_scsi_disk_has_an_io_thread_on_its_own_controller_only() -> None:
    assert not disks(CONFIG.replace("virtio-scsi-single", "virtio-scsi-pci"))["scsi0"].has_io_thread
    without = disks(CONFIG.replace("scsihw: virtio-scsi-single\n", ""))
    assert (without["scsi0"].has_io_thread, without["scsi0"].controller) == (False, "lsi")
    assert without["virtio0"].has_io_thread


def test_the_changes_that_wait_for_a_restart() -> None:
    later = {each.key: each for each in vm_disks(options_after_restart(CONFIG))}
    assert list(later) == ["scsi0", "scsi1", "virtio0"]
    assert later["scsi1"].cache is None
    assert options_after_restart("agent: 1\n") == {"agent": "1"}


def test_an_option_is_changed_and_the_rest_of_it_stays() -> None:
    disk = disks(CONFIG)["scsi1"]
    assert disk.changed(iothread="1", cache=None) == "file=local-lvm:vm-101-disk-1,iothread=1"
    assert disks("scsi0: a:b,iothread=0,size=1G\n")["scsi0"].changed(iothread="1") == "a:b,size=1G,iothread=1"


@pytest.mark.parametrize(
    ("storage", "cache", "hangs"),
    [
        (Section("lvm", "x", {}), None, True),
        (Section("lvmthin", "x", {}), None, False),
        (Section("cifs", "x", {}), None, True),
        (Section("rbd", "x", {"krbd": "1"}), "writeback", True),
        (Section("rbd", "x", {"krbd": "1"}), None, False),
        (Section("rbd", "x", {}), "writeback", False),
        (None, None, False),
    ],
)
def test_where_proxmox_does_not_use_io_uring(storage: Section | None, cache: str | None, hangs: bool) -> None:
    assert (why_no_io_uring(storage, cache) is not None) is hangs
