"""The table of the node's guests: what each stands on, and what a backup stands on."""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.host.volumes import Backup
from pvehook.rules.patients import Resources
from pvehook.watch import patients
from tests.watch.test_node_loop import wait_until
from tests.watch.watched_node import WITHIN_S, WatchedNode

VM = Backup(101, "qemu", "snapshot", "local", "/var/lib/vz/dump")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedNode]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    node = WatchedNode(root, monkeypatch)
    node.logical_volume("other", "vm-101-disk-0", "sdb")
    node.write("/etc/pve/qemu-server/101.conf", "scsi0: other:vm-101-disk-0\nide2: local:iso/debian.iso,media=cdrom\n")
    yield node
    shutil.rmtree(root)


def load(node: WatchedNode, backup: Backup = VM, job_id: str | None = "j") -> Resources:
    """What this backup stands on."""
    with node.watched() as watch:
        found: queue.SimpleQueue[Resources] = queue.SimpleQueue()
        watch._table.find_load(backup, job_id, found.put)
        return found.get(timeout=WITHIN_S)


def test_a_backup_stands_on_what_it_reads_and_where_it_writes(node: WatchedNode) -> None:
    assert load(node) == Resources(frozenset({"disk:sda", "disk:sdb"}))


def test_a_disk_that_is_not_backed_up_is_not_read(node: WatchedNode) -> None:
    node.write("/etc/pve/qemu-server/101.conf", "scsi0: other:vm-101-disk-0,backup=0\n")
    assert load(node) == Resources(frozenset({"disk:sda"}))


def test_an_archive_on_the_network_is_on_its_storage(node: WatchedNode) -> None:
    assert load(node, VM._replace(storeid="nas", dumpdir=None)) == Resources(frozenset({"disk:sdb", "storage:nas"}))


def test_a_fleecing_image_is_written_too(node: WatchedNode) -> None:
    node.logical_volume("fast", "vm-200-disk-0", "sda")
    node.write("/sys/block/dm-1/dm/name", "fast-vm--200--disk--0\n")
    node.write("/etc/pve/jobs.cfg", "vzdump: j\n\tfleecing enabled=1,storage=fast\n")
    found = load(node, VM._replace(storeid="nas", dumpdir=None))
    assert found == Resources(frozenset({"disk:sda", "disk:sdb", "storage:nas"}))


def test_whether_there_is_one_is_not_known_without_the_job(node: WatchedNode) -> None:
    node.write("/etc/pve/jobs.cfg", "vzdump: other-job\n\tfleecing enabled=1,storage=fast\n")
    found = load(node, job_id=None)
    assert found.names == {"disk:sda", "disk:sdb"}
    assert found.unknown == ("the fleecing image: whether the job has one is not known",)


def test_a_guests_firmware_and_its_cd_are_no_disks_that_it_waits_for(node: WatchedNode) -> None:
    node.write("/var/lib/vz/images/105/x", "")
    config = "efidisk0: other:vm-105-disk-1\nscsi0: local:105/a.qcow2\nide2: nas:iso/a.iso,media=cdrom\nide0: none\n"
    node.vm(105, config + "[snapshot]\nscsi1: other:vm-105-disk-2\n")
    with node.watched() as watch:
        wait_until(lambda: 105 in watch._table.guests and watch._table.guests[105].standing)
        standing = watch._table.guests[105].standing
    assert standing is not None
    assert standing.resources == Resources(frozenset({"disk:sda"}))
    assert (standing.devices, standing.only_devices) == ((), False)


def test_a_configuration_that_changes_is_read_again(node: WatchedNode) -> None:
    node.vm(105, "scsi0: nas:105/a.qcow2\n")
    with node.watched() as watch:
        wait_until(lambda: resources(watch._table, 105) == {"storage:nas"})
        node.write("/etc/pve/qemu-server/105.conf", "scsi0: nas:105/a.qcow2\nscsi1: other:vm-101-disk-0\n")
        wait_until(lambda: resources(watch._table, 105) == {"storage:nas", "disk:sdb"})


def resources(table: patients.GuestTable, vmid: int) -> frozenset[str]:
    guest = table.guests.get(vmid)
    return guest.standing.resources.names if guest is not None and guest.standing is not None else frozenset()


def test_a_configuration_that_does_not_answer_is_said_and_the_guest_is_watched(
    node: WatchedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patients, "READ_DEADLINE_S", 0.1)
    node.vm(105)
    path = node.root / "etc/pve/qemu-server/105.conf"
    path.unlink()
    os.mkfifo(path)  # whoever opens it waits for a writer
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_until(lambda: 105 in governor.known)
        standing = watch._table.guests[105].standing
        with open(path, "w"):
            pass
    assert standing is not None
    assert "answer" in standing.resources.unknown[0]


def test_no_more_guests_than_there_is_room_for(node: WatchedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patients, "MOST_GUESTS", 2)
    for vmid in (103, 104, 105):
        node.vm(vmid)
    with node.watched() as watch:
        wait_until(lambda: len(watch._table.guests) == 2)
        wait_until(lambda: "only the first 2 are watched" in node.logged())
