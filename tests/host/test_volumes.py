"""Where a guest's volumes and the dump directory lie, for every kind of storage that Proxmox knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvehook.contract.disks import Location
from pvehook.contract.section_config import parse_sections
from pvehook.host import block
from pvehook.host.volumes import device_of_volume, locate_dump, locate_storage, locate_volume

if TYPE_CHECKING:
    from tests.host.conftest import BlockTree

STORAGES = parse_sections("""\
dir: local
\tpath /var/lib/vz

dir: renamed
\tpath /srv/store
\tcontent-dirs images=vm,backup=archive

btrfs: brick
\tpath /var/lib/vz

lvm: fat
\tvgname vg0

lvmthin: local-lvm
\tvgname vg0
\tthinpool data

zfspool: local-zfs
\tpool rpool/data

nfs: nas
\tpath /mnt/pve/nas
\tserver nas

cifs: win
\tpath /mnt/pve/win

rbd: ceph
\tpool rbd

zfs: faraway
\tpool tank

pbs: vault
\tserver 10.0.0.9

drbd: linstor
\tresourcegroup main
""")


@pytest.fixture
def machine(tree: BlockTree) -> BlockTree:
    """sda carries /, sdb the volume group vg0."""
    tree.device("sda", (8, 0), scheduler="[bfq] none", rotational="1")
    tree.device("sdb", (8, 16), scheduler="[none]", rotational="0")
    tree.device("dm-0", (253, 0), slaves=["sdb"])
    tree.write("/sys/block/dm-0/dm/name", "vg0-vm--101--disk--0\n")
    tree.place("/var/lib/vz/images/101", (8, 0))
    tree.place("/dev/vg0/vm-101-disk-0", (253, 0))
    return tree


def volume(tree: BlockTree, volid: str) -> Location:
    return locate_volume(tree.node, volid, STORAGES)


def names(where: Location) -> list[str]:
    return [disk.name for disk in where.disks]


@pytest.mark.parametrize(
    ("volid", "disk"),
    [
        ("local:101/vm-101-disk-0.qcow2", "sda"),
        ("local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2", "sda"),
        ("brick:101/vm-101-disk-0.raw", "sda"),
        ("fat:vm-101-disk-0", "sdb"),
        ("local-lvm:vm-101-disk-0", "sdb"),
        ("local-lvm:base-100-disk-0/vm-101-disk-0", "sdb"),
        ("/dev/vg0/vm-101-disk-0", "sdb"),
    ],
)
def test_a_local_volume_is_on_its_disk(machine: BlockTree, volid: str, disk: str) -> None:
    where = volume(machine, volid)
    assert (where.kind, names(where)) == ("disks", [disk])
    assert "volume group" not in where.detail  # the volume itself was found, not its neighbours


def test_a_logical_volume_that_is_not_active_is_told_by_its_group(machine: BlockTree) -> None:
    where = volume(machine, "local-lvm:vm-102-disk-0")
    assert names(where) == ["sdb"]
    assert "volume group vg0" in where.detail


def test_a_guest_without_a_directory_yet_is_where_its_storage_is(machine: BlockTree) -> None:
    machine.place("/var/lib/vz/images", (8, 0))
    assert names(volume(machine, "local:777/vm-777-disk-0.raw")) == ["sda"]


def test_a_storage_whose_path_is_gone_is_unknown(machine: BlockTree) -> None:
    where = volume(machine, "renamed:101/vm-101-disk-0.raw")
    assert where.kind == "unknown"
    assert "/srv/store/vm is not there" in where.detail


def test_renamed_content_directories_are_used(machine: BlockTree) -> None:
    machine.place("/srv/store/vm/101", (8, 0))
    machine.place("/srv/store/archive", (8, 16))
    assert names(volume(machine, "renamed:101/vm-101-disk-0.raw")) == ["sda"]
    assert names(locate_dump(machine.node, None, "renamed", STORAGES)) == ["sdb"]


def test_a_directory_storage_on_nfs_is_network_and_not_touched(
    machine: BlockTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mount("/var/lib/vz", "nfs4", "nas:/vz")

    def must_not_be_asked(path: str) -> tuple[int, int]:
        raise AssertionError(f"{path} was touched")

    monkeypatch.setattr(block, "device_of", must_not_be_asked)
    where = locate_volume(machine.node, "local:101/vm-101-disk-0.raw", STORAGES)
    assert where == Location("network", (), "dir storage local: nfs4 from nas:/vz")


def test_a_zfs_pool_keeps_vms_and_containers_alike(machine: BlockTree) -> None:
    for volid in ("local-zfs:vm-101-disk-0", "local-zfs:subvol-103-disk-0"):
        where = volume(machine, volid)
        assert where.kind == "zfs"
        assert "ZFS pool rpool" in where.detail


@pytest.mark.parametrize(
    ("volid", "said"),
    [
        ("nas:101/vm-101-disk-0.qcow2", "nfs storage nas"),
        ("win:101/vm-101-disk-0.qcow2", "cifs storage win"),
        ("ceph:vm-101-disk-0", "rbd storage ceph"),
        ("faraway:vm-101-disk-0", "zfs storage faraway"),
    ],
)
def test_a_network_storage_is_named(machine: BlockTree, volid: str, said: str) -> None:
    where = volume(machine, volid)
    assert where.kind == "network"
    assert said in where.detail


@pytest.mark.parametrize(
    ("volid", "said"),
    [
        ("linstor:pm-1_101", "drbd storage linstor"),
        ("nowhere:vm-101-disk-0", "storage nowhere is not configured"),
        ("none", "none is no volume"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_located_is_unknown_with_its_reason(machine: BlockTree, volid: str, said: str) -> None:
    where = volume(machine, volid)
    assert (where.kind, where.disks) == ("unknown", ())
    assert said in where.detail


def test_the_dump_directory_is_the_jobs_own_or_its_storages(machine: BlockTree) -> None:
    machine.place("/backup/dump", (8, 16))
    machine.place("/var/lib/vz/dump", (8, 0))
    by_directory = locate_dump(machine.node, "/backup/dump", None, STORAGES)
    by_storage = locate_dump(machine.node, None, "local", STORAGES)
    assert (names(by_directory), names(by_storage)) == (["sdb"], ["sda"])


def test_a_dump_directory_that_is_still_to_be_made_is_where_it_will_be(machine: BlockTree) -> None:
    machine.place("/backup", (8, 16))
    assert names(locate_dump(machine.node, "/backup/dump/", None, STORAGES)) == ["sdb"]


@pytest.mark.parametrize(("storeid", "said"), [("vault", "pbs storage vault"), ("nas", "nfs storage nas")])
def test_a_dump_to_the_network_is_named(machine: BlockTree, storeid: str, said: str) -> None:
    assert locate_dump(machine.node, None, storeid, STORAGES) == Location("network", (), said)


def test_a_dump_nobody_can_locate_is_unknown(machine: BlockTree) -> None:
    assert locate_dump(machine.node, None, None, STORAGES).kind == "unknown"
    assert locate_dump(machine.node, None, "fat", STORAGES).kind == "unknown"


@pytest.mark.parametrize("dumpdir", [".", "./dump", "dump/"])
def test_a_relative_dump_directory_is_somewhere_unknown(machine: BlockTree, dumpdir: str) -> None:
    """It is seen from where vzdump was started, which is not where the daemon is."""
    location = locate_dump(machine.node, dumpdir, None, STORAGES)
    assert location.kind == "unknown"
    assert "relative to the directory in which vzdump was started" in location.detail


@pytest.mark.parametrize(
    ("volid", "device"),
    [
        ("local-lvm:vm-101-disk-0", "dm-0"),
        ("local-lvm:base-100-disk-0/vm-101-disk-0", "dm-0"),
        ("/dev/vg0/vm-101-disk-0", "dm-0"),
        ("local-zfs:vm-101-disk-0", "zd16"),
        ("ceph:vm-101-disk-0", "rbd3"),
        ("local:110/vm-110-disk-0.raw", "loop4"),
        ("local:101/vm-101-disk-0.qcow2", None),
        ("local-zfs:subvol-110-disk-0", None),
        ("/mnt/bind", None),
        ("gone:vm-101-disk-0", None),
        ("none", None),
    ],
)
def test_the_block_device_that_is_the_guests_own(machine: BlockTree, volid: str, device: str | None) -> None:
    machine.device("zd16", (230, 16))
    machine.place("/dev/zvol/rpool/data/vm-101-disk-0", (230, 16))
    machine.device("rbd3", (252, 48))
    machine.place("/dev/rbd-pve/0f3c/rbd/vm-101-disk-0", (252, 48))
    machine.device("loop4", (7, 4))
    image = machine.node.path("/var/lib/vz/images/110/vm-110-disk-0.raw")
    machine.write("/sys/block/loop4/loop/backing_file", f"{image}\n")
    machine.place("/mnt/bind", (8, 0))
    assert device_of_volume(machine.node, volid, STORAGES) == device


def test_a_storage_as_a_whole(machine: BlockTree) -> None:
    machine.place("/var/lib/vz/images", (8, 0))
    assert names(locate_storage(machine.node, "local-lvm", STORAGES)) == ["sdb"]
    assert names(locate_storage(machine.node, "local", STORAGES)) == ["sda"]
    assert locate_storage(machine.node, "nas", STORAGES).kind == "network"
    assert locate_storage(machine.node, "", STORAGES).kind == "unknown"
