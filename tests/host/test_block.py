"""From a path to its disks, on trees as the kernel shows them, and once on this machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvehook.contract.disks import Disk, Location
from pvehook.host import block
from pvehook.host.block import kernel_version, locate, locate_volume_group, locate_zpool
from pvehook.host.node import Node

if TYPE_CHECKING:
    from tests.host.conftest import BlockTree

HDD = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0"
HDD2 = "pci0000:00/0000:00:17.0/ata2/host1/target1:0:0/1:0:0:0"
DEADLINE = "none [mq-deadline] kyber bfq"


def look(tree: BlockTree, path: str) -> Location:
    return locate(tree.node, path)


def two_hard_disks(tree: BlockTree) -> None:
    """sda and sdb, each with one partition, as under a mirror."""
    for minor, name, under in ((0, "sda", HDD), (16, "sdb", HDD2)):
        disk = tree.device(name, (8, minor), under=under, scheduler=DEADLINE, rotational="1")
        tree.partition(disk, f"{name}1", (8, minor + 1))


def test_a_file_system_on_a_partition_is_on_that_partitions_disk(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.mount("/var/lib/vz", "ext4", "/dev/sda1")
    tree.place("/var/lib/vz/dump", (8, 1))
    where = look(tree, "/var/lib/vz/dump")
    assert where == Location("disks", (Disk("sda", "mq-deadline", "local"),), "ext4 on sda1")
    assert where.disks[0].kind == "disks"


def test_a_logical_volume_on_a_mirror_of_partitions_is_on_both_disks(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.device("md0", (9, 0), slaves=["sda1", "sdb1"], scheduler="none")
    tree.device("dm-4", (253, 4), slaves=["md0"], scheduler="none")
    tree.mount("/dev", "devtmpfs", "udev")
    where = look(tree, tree.place("/dev/pve/vm-101-disk-0", (253, 4)))
    assert [disk.name for disk in where.disks] == ["sda", "sdb"]
    assert {disk.scheduler for disk in where.disks} == {"mq-deadline"}
    assert where.detail == "dm-4"


def test_a_thin_volume_names_a_disk_once_that_carries_data_and_metadata(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.device("dm-0", (253, 0), slaves=["sda1"])  # pool's metadata
    tree.device("dm-1", (253, 1), slaves=["sda1"])  # pool's data
    tree.device("dm-2", (253, 2), slaves=["dm-0", "dm-1"])
    tree.device("dm-3", (253, 3), slaves=["dm-2"])
    assert [disk.name for disk in look(tree, tree.place("/dev/pve/thin", (253, 3))).disks] == ["sda"]


def test_an_encrypted_nvme_disk_without_a_scheduler(tree: BlockTree) -> None:
    tree.device(
        "nvme0n1", (259, 0), under="pci0000:00/0000:01:00.0/nvme/nvme0", scheduler="[none] mq-deadline", rotational="0"
    )
    tree.device("dm-0", (253, 0), slaves=["nvme0n1"])
    assert look(tree, tree.place("/srv", (253, 0))).disks == (Disk("nvme0n1", "none", "local"),)


def test_a_scheduler_file_without_brackets_and_none_at_all(tree: BlockTree) -> None:
    tree.device("sdc", (8, 32), scheduler="none")
    tree.device("sdd", (8, 48))
    assert look(tree, tree.place("/c", (8, 32))).disks[0].scheduler == "none"
    assert look(tree, tree.place("/d", (8, 48))).disks == (Disk("sdd", None, "local"),)


@pytest.mark.parametrize(
    ("name", "under", "transport"),
    [
        ("sdb", "platform/host3/session1/target3:0:0/3:0:0:0", "iscsi"),
        ("sdb", "pci0000:00/0000:03:00.0/host4/rport-4:0-1/target4:0:0/4:0:0:0", "fc"),
        ("rbd0", "rbd/0", "rbd"),
        ("nbd3", "virtual", "nbd"),
        ("drbd1000", "virtual", "drbd"),
    ],
)
def test_a_disk_of_another_machine_is_network(tree: BlockTree, name: str, under: str, transport: str) -> None:
    tree.device(name, (8, 16), under=under, scheduler=DEADLINE)
    tree.mount("/san", "ext4", f"/dev/{name}")
    where = look(tree, tree.place("/san", (8, 16)))
    assert where.kind == "network"
    assert where.disks == (Disk(name, "mq-deadline", transport),)


def test_nvme_over_tcp_is_network_with_and_without_native_multipath(tree: BlockTree) -> None:
    home = tree.device("nvme1n1", (259, 1), under="virtual/nvme-fabrics/ctl/nvme1", scheduler="[none]")
    tree.write("/sys/devices/virtual/nvme-fabrics/ctl/nvme1/transport", "tcp\n")
    (home / "device").symlink_to(home.parent.parent)
    assert look(tree, tree.place("/a", (259, 1))).disks[0].transport == "nvme-tcp"

    home = tree.device("nvme2n1", (259, 2), under="virtual/nvme-subsystem/nvme-subsys2", scheduler="[none]")
    tree.write("/sys/devices/virtual/nvme-subsystem/nvme-subsys2/nvme3/transport", "rdma\n")
    (home / "device").symlink_to(home.parent.parent)
    assert look(tree, tree.place("/b", (259, 2))).disks[0].transport == "nvme-rdma"


def test_a_local_nvme_disks_transport_is_local(tree: BlockTree) -> None:
    home = tree.device("nvme0n1", (259, 0), under="pci0000:00/nvme/nvme0", scheduler="[none]")
    tree.write("/sys/devices/pci0000:00/nvme/nvme0/transport", "pcie\n")
    (home / "device").symlink_to(home.parent.parent)
    assert look(tree, tree.place("/a", (259, 0))).disks[0].transport == "local"


def test_a_multipath_device_schedules_itself_and_keeps_its_paths_transport(tree: BlockTree) -> None:
    for number, name in enumerate(("sdb", "sdc")):
        session = f"platform/host{number}/session{number}/target"
        tree.device(name, (8, 16 * number), under=session, scheduler="[none]")
    tree.device("dm-0", (253, 0), slaves=["sdb", "sdc"], scheduler="[mq-deadline] none")
    tree.write("/sys/block/dm-0/dm/uuid", "mpath-36001405\n")
    assert look(tree, tree.place("/lun", (253, 0))).disks == (Disk("dm-0", "mq-deadline", "iscsi"),)


def test_a_volume_over_a_local_and_a_remote_disk_keeps_both(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.device("nbd0", (43, 0))
    tree.device("dm-0", (253, 0), slaves=["sda1", "nbd0"])
    where = look(tree, tree.place("/both", (253, 0)))
    assert where.kind == "disks"
    assert [(disk.name, disk.kind) for disk in where.disks] == [("nbd0", "network"), ("sda", "disks")]


@pytest.mark.parametrize(
    "fs_type", ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse.glusterfs", "fuse.sshfs"]
)
def test_a_network_file_system_is_named_and_never_touched(tree: BlockTree, fs_type: str) -> None:
    tree.mount("/", "ext4", "/dev/sda1")
    tree.mount("/mnt/pve/nas", fs_type, "nas:/export")
    # Nothing lies at that path: looking at it would raise, and on a dead server it would wait for ever.
    where = locate_untouched(tree, "/mnt/pve/nas/dump")
    assert where == Location("network", (), f"{fs_type} from nas:/export")


def locate_untouched(tree: BlockTree, path: str) -> Location:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "device_of", must_not_be_asked)
        return locate(tree.node, path)


def must_not_be_asked(path: str) -> tuple[int, int]:
    raise AssertionError(f"{path} was touched")


def test_a_link_into_a_network_file_system_is_followed_only_up_to_it(tree: BlockTree) -> None:
    tree.mount("/mnt/pve/nas", "nfs4", "nas:/export")
    (tree.root / "var/lib/vz").mkdir(parents=True)
    (tree.root / "var/lib/vz/dump").symlink_to(tree.root / "mnt/pve/nas/dump")
    (tree.root / "var/lib/vz/up").symlink_to("../../../mnt/pve/nas")
    assert locate_untouched(tree, "/var/lib/vz/dump/x").kind == "network"
    assert locate_untouched(tree, "/var/lib/vz/up/x").kind == "network"


def test_a_disk_mounted_below_autofs_is_found_without_mounting_anything(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.mount("/auto", "autofs", "auto.master")
    tree.mount("/auto/disk", "ext4", "/dev/sda1")
    tree.mount("/auto/nas", "nfs4", "nas:/export")
    tree.place("/auto/disk/dump", (8, 1))
    assert look(tree, "/auto/disk/dump").detail == "ext4 on sda1"
    assert locate_untouched(tree, "/auto/nas/dump").kind == "network"
    assert "not mounted" in locate_untouched(tree, "/auto/other/dump").detail


def test_nothing_inside_a_fuse_file_system_is_looked_at(tree: BlockTree) -> None:
    tree.mount("/merged", "fuse.mergerfs", "disks")
    tree.mount("/elsewhere", "nfs4", "nas:/export")
    (tree.root / "merged").mkdir()
    (tree.root / "merged/dump").symlink_to(tree.root / "elsewhere")
    where = locate_untouched(tree, "/merged/dump")
    assert (where.kind, "fuse.mergerfs" in where.detail) == ("unknown", True)


def test_links_in_a_circle_end(tree: BlockTree) -> None:
    (tree.root / "a").symlink_to(tree.root / "b")
    (tree.root / "b").symlink_to(tree.root / "a")
    where = look(tree, "/a")
    assert where.kind == "unknown"
    assert "symbolic links" in where.detail


def test_the_nearest_and_the_latest_mount_decides(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.mount("/mnt", "nfs4", "nas:/export")
    tree.mount("/mnt/usb disk", "autofs", "systemd-1")
    tree.mount("/mnt/usb disk", "xfs", "/dev/sdb1")
    tree.place("/mnt/usb disk/dump", (8, 17))
    tree.place("/mnt2", (8, 1))
    assert look(tree, "/mnt/usb disk/dump").detail == "xfs on sdb1"
    assert look(tree, "/mnt2").disks[0].name == "sda"  # begins like /mnt, is not below it


@pytest.mark.parametrize(
    ("fs_type", "said"),
    [("tmpfs", "tmpfs at"), ("overlay", "overlay at"), ("autofs", "not mounted"), ("fuse.mergerfs", "process")],
)
def test_what_has_no_disk_of_its_own_is_unknown_with_a_reason(
    tree: BlockTree, fs_type: str, said: str
) -> None:
    tree.mount("/dump", fs_type, "none")
    where = look(tree, tree.place("/dump", (0, 77)))
    assert (where.kind, where.disks) == ("unknown", ())
    assert said in where.detail


def test_a_path_that_is_not_there_is_unknown_or_what_the_caller_says(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.place("/srv", (8, 1))
    assert look(tree, "/srv/gone") == Location("unknown", (), "/srv/gone is not there")
    assert locate(tree.node, "/srv/gone", if_missing="/srv").kind == "disks"


def test_a_device_that_sys_does_not_show_is_unknown(tree: BlockTree) -> None:
    tree.mount("/x", "ext4", "/dev/sdz1")
    assert look(tree, tree.place("/x", (8, 999))).kind == "unknown"


def test_btrfs_is_on_all_its_devices_though_its_device_number_is_nobodys(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.mount("/pool", "btrfs", "/dev/sda1")
    for name in ("sda1", "sdb1"):
        tree.write(f"/sys/fs/btrfs/6f1c-22/devices/{name}/size", "1\n")
    where = look(tree, tree.place("/pool/images", (0, 55)))
    assert [disk.name for disk in where.disks] == ["sda", "sdb"]


def test_a_loop_device_is_on_what_its_file_is_on(tree: BlockTree) -> None:
    two_hard_disks(tree)
    tree.place("/images", (8, 17))
    tree.device("loop0", (7, 0), scheduler="[none]")
    # The kernel tells the file's path as this process knows it, the root of the tree included.
    tree.write("/sys/block/loop0/loop/backing_file", f"{tree.root}/images\n")
    tree.mount("/images", "ext4", "/dev/sdb1")
    where = look(tree, tree.place("/mounted", (7, 0)))
    assert [disk.name for disk in where.disks] == ["sdb"]
    assert where.detail == f"loop0 over {tree.root}/images: ext4 on sdb1"


def fake_zpool(tree: BlockTree, script: str) -> Path:
    tree.write("/usr/sbin/zpool", f"#!/bin/sh\n{script}\n")
    file = tree.root / "usr/sbin/zpool"
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_a_zvol_a_dataset_and_a_zvols_bare_device_are_zfs(tree: BlockTree) -> None:
    two_hard_disks(tree)
    fake_zpool(
        tree,
        'test "$*" = "list -vHPL -- rpool" || exit 1\n'
        'printf "rpool\\t1T\\t-\\n\\tmirror-0\\t1T\\n\\t/dev/sda1\\t1T\\n\\t/dev/sdb1\\t1T\\n"',
    )
    tree.mount("/rpool/data", "zfs", "rpool/data")
    tree.device("zd0", (230, 0))
    by_name = look(tree, "/dev/zvol/rpool/data/vm-101-disk-0")
    assert (by_name.kind, by_name.detail) == ("zfs", "ZFS pool rpool")
    assert [disk.name for disk in by_name.disks] == ["sda", "sdb"]
    assert look(tree, tree.place("/rpool/data/subvol-103-disk-0", (0, 60))) == by_name
    assert look(tree, tree.place("/dev/zd0", (230, 0))).kind == "zfs"


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_a_pool_without_an_answer_is_still_zfs_with_unknown_disks(
    tree: BlockTree, script: str | None
) -> None:
    if script:
        fake_zpool(tree, script)
    where = locate_zpool(tree.node, "tank")
    assert (where.kind, where.disks) == ("zfs", ())
    assert "unknown" in where.detail


def test_a_zpool_that_hangs_is_given_up(tree: BlockTree, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tree.root / "never"
    os.mkfifo(fifo)
    fake_zpool(tree, f'exec cat "{fifo}"')
    monkeypatch.setattr(block, "_ZPOOL_DEADLINE_S", 0.2)
    assert "unknown" in locate_zpool(tree.node, "tank").detail


def test_an_inactive_volumes_group_is_found_by_its_active_ones(tree: BlockTree) -> None:
    two_hard_disks(tree)
    for number, (name, slave) in enumerate({"pve--ssd-root": "sda1", "pve-data_tdata": "sdb1"}.items()):
        tree.device(f"dm-{number}", (253, number), slaves=[slave])
        tree.write(f"/sys/block/dm-{number}/dm/name", f"{name}\n")
    assert [disk.name for disk in locate_volume_group(tree.node, "pve").disks] == ["sdb"]
    assert [disk.name for disk in locate_volume_group(tree.node, "pve-ssd").disks] == ["sda"]
    assert locate_volume_group(tree.node, "elsewhere").kind == "unknown"


@pytest.mark.parametrize(
    ("release", "version"), [("6.8.12-4-pve\n", (6, 8)), ("7.0-rc1\n", (7, 0)), ("", None), ("odd\n", None)]
)
def test_kernel_version(tree: BlockTree, release: str, version: tuple[int, int] | None) -> None:
    tree.write("/proc/sys/kernel/osrelease", release)
    assert kernel_version(tree.node) == version


def test_this_machines_root_is_on_a_disk_that_sys_knows_or_honestly_unknown() -> None:
    where = locate(Node(), "/")
    assert where.detail
    if where.kind == "disks":
        for disk in where.disks:
            known = Path("/sys/class/block", disk.name, "queue/scheduler").read_text()
            assert disk.scheduler is None or disk.scheduler in known
    assert bool(where.disks) == (where.kind == "disks") or where.kind in ("zfs", "network")


def test_this_machines_proc_has_no_disk() -> None:
    assert locate(Node(), "/proc").kind == "unknown"
