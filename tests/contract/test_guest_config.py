"""Guest configurations as qemu-server and pve-container write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.guest_config import GuestConfig, Volume, parse_container, parse_vm

VM = """\
#A web server%3A do not touch
agent: 1,freeze-fs-on-backup=0
bios: ovmf
boot: order=scsi0;ide2
efidisk0: local-lvm:vm-101-disk-1,efitype=4m,size=4M
ide0: local-lvm:vm-101-cloudinit,media=cdrom
ide2: none,media=cdrom
name: web
onboot: 1
ostype: l26
scsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G
scsi1: file=nas:101/vm-101-disk-0.qcow2,backup=0,size=1T
scsihw: virtio-scsi-single
tpmstate0: local-lvm:vm-101-disk-2,size=4M,version=v2.0
unused0: local-lvm:vm-101-disk-9
virtio3: /dev/disk/by-id/ata-X,backup=no
vmgenid: 4b1f

[before]
name: old-name
scsi7: local-lvm:vm-101-disk-7,size=1G
"""

CONTAINER = """\
hostname: mail
mp0: local-lvm:vm-103-disk-1,mp=/var/mail,backup=1,size=8G
mp1: local-lvm:vm-103-disk-2,mp=/var/cache,size=8G
mp2: /mnt/share,mp=/share,backup=1
mp3: volume=local-lvm:vm-103-disk-3,mp=/srv,backup=yes
ostype: debian
rootfs: local-lvm:vm-103-disk-0,size=8G
lxc.apparmor.profile: unconfined

[snap]
rootfs: elsewhere:vm-103-disk-0
"""


def volume(config: GuestConfig, key: str) -> Volume:
    return next(volume for volume in config.volumes if volume.key == key)


def test_a_vms_facts_come_from_before_its_snapshots() -> None:
    config = parse_vm(VM)
    assert (config.name, config.agent) == ("web", "1,freeze-fs-on-backup=0")
    assert "scsi7" not in {volume.key for volume in config.volumes}


def test_volumes_are_drives_and_nothing_that_merely_looks_like_one() -> None:
    assert [volume.key for volume in parse_vm(VM).volumes] == [
        "efidisk0",
        "ide0",
        "ide2",
        "scsi0",
        "scsi1",
        "tpmstate0",
        "virtio3",
    ]


def test_a_drive_is_backed_up_unless_it_says_no_or_is_a_cdrom() -> None:
    config = parse_vm(VM)
    assert volume(config, "scsi0") == Volume("scsi0", "local-lvm:vm-101-disk-0", backup=True, is_cdrom=False)
    assert volume(config, "scsi1") == Volume("scsi1", "nas:101/vm-101-disk-0.qcow2", False, False)
    assert volume(config, "virtio3") == Volume("virtio3", "/dev/disk/by-id/ata-X", False, False)
    assert volume(config, "ide2") == Volume("ide2", "none", False, is_cdrom=True)
    assert volume(config, "ide0").is_cdrom
    assert volume(config, "tpmstate0").backup


def test_an_efi_disk_is_backed_up_only_under_ovmf() -> None:
    assert volume(parse_vm(VM), "efidisk0").backup
    assert not volume(parse_vm(VM.replace("bios: ovmf\n", "")), "efidisk0").backup


def test_a_container_backs_up_its_root_and_what_asks_for_it() -> None:
    config = parse_container(CONTAINER)
    assert (config.name, config.agent) == ("mail", None)
    assert {volume.key: volume.backup for volume in config.volumes} == {
        "mp0": True,
        "mp1": False,
        "mp2": False,  # a bind mount, whatever its flag says
        "mp3": True,
        "rootfs": True,
    }
    assert volume(config, "rootfs").volume == "local-lvm:vm-103-disk-0"
    assert volume(config, "mp3").volume == "local-lvm:vm-103-disk-3"


def test_tags_are_taken_as_proxmox_splits_them_and_in_lower_case() -> None:
    assert parse_vm("tags: web;Db\n").tags == ("web", "db")
    assert parse_container("tags: web, db ;;x\n").tags == ("web", "db", "x")
    assert parse_vm("tags:\n").tags == ()


def test_what_is_not_written_is_none_and_not_a_default() -> None:
    assert parse_vm("") == GuestConfig(name=None, agent=None, tags=(), volumes=(), lock=None, io_threads=None)


def test_a_drive_may_name_its_volume_by_the_alias() -> None:
    assert parse_vm("scsi0: volume=nas:101/a.qcow2,size=8G\n").volumes[0].volume == "nas:101/a.qcow2"


def test_a_key_that_does_not_begin_its_line_is_none() -> None:
    assert parse_vm(" agent: 1\nname : web\n\u2028onboot: 1\n") == parse_vm("")


@given(st.text(alphabet=st.sampled_from("scsi01mp=:,[]# \n/é\x00"), max_size=200))
def test_no_text_raises_and_only_drives_become_volumes(text: str) -> None:
    for config in (parse_vm(text), parse_container(text)):
        assert all(volume.key[-1].isdigit() or volume.key == "rootfs" for volume in config.volumes)


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("scsihw: virtio-scsi-single\nscsi0: a:1,iothread=1\n", True),
        ("scsihw: virtio-scsi-pci\nscsi0: a:1,iothread=1\n", False),  # ignored with this controller
        ("scsihw: virtio-scsi-single\nscsi0: a:1,iothread=1\nscsi1: a:2\n", False),
        ("virtio0: a:1,iothread=1\nide2: none,media=cdrom\n", True),
        ("virtio0: a:1\n", False),
        ("sata0: a:1\n", None),
    ],
)
def test_whether_each_disk_has_an_io_thread_of_its_own(text: str, threads: bool | None) -> None:
    assert parse_vm(text).io_threads is threads


def test_a_key_begins_in_the_first_column_and_its_colon_touches_it() -> None:
    config = parse_vm("agent: 1\n agent: 0\nname : a\n scsi1: local-lvm:vm-101-disk-1\n")
    assert (config.agent, config.name, config.volumes) == ("1", None, ())


def test_volume_is_another_name_of_a_drives_file() -> None:
    (drive,) = parse_vm("scsi0: volume=local-lvm:vm-101-disk-0,size=8G\n").volumes
    assert drive.volume == "local-lvm:vm-101-disk-0"


def test_what_a_guest_is_locked_for() -> None:
    assert parse_vm("lock: backup\nname: a\n").lock == "backup"
    assert parse_container("hostname: a\n[snap]\nlock: backup\n").lock is None
