"""The group `storage`, on trees as nodes have them: each check where it should fire, and the same node set right."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pvehook.config.in_force import Configuration
from pvehook.contract.kernel_line import KernelLine
from pvehook.contract.section_config import Section
from pvehook.doctor.checks import Diagnosis, diagnose
from pvehook.doctor.finding import Command, Finding, Write
from pvehook.doctor.fixes import fix, unfix
from pvehook.doctor.storage_checks import CHECKS, GROUP
from pvehook.host import block, disk_queue
from pvehook.host.backup_target import why_pbs_is_silent
from pvehook.host.kernel_log import PastLog
from pvehook.host.timely_files import TimelyReader
from tests.host.conftest import BlockTree

NOW = datetime(2026, 11, 29, 10, 20, tzinfo=UTC)
GIB = 1 << 30

SATA = "pci0000:00/0000:00:17.0/ata1/host1/target1:0:0/1:0:0:0"
RAID = "pci0000:00/0000:03:00.0/host0/target0:2:0/0:2:0:0"
UNSCHEDULED, SCHEDULED = "[none] mq-deadline kyber bfq", "none [mq-deadline] kyber bfq"

STORAGES = (
    "dir: local\n\tpath /var/lib/vz\n\tcontent backup,iso\n\n"
    "lvm: fat\n\tvgname vg0\n\n"
    "lvmthin: thin\n\tvgname vg1\n\tthinpool data\n\n"
    "nfs: nas\n\tserver 10.0.0.9\n\texport /e\n\tpath /mnt/pve/nas\n\tcontent backup\n\toptions vers=4.2\n"
)
WEB = "name: web\nscsi0: fat:vm-101-disk-0,size=32G\n"
FILES = "arch: amd64\nhostname: files\nrootfs: fat:vm-103-disk-0,size=8G\n"


class Machine:
    """sda: /var/lib/vz, and volume group vg0 with the disks of VM 101 and CT 103. sdb: vg1. One job, all guests."""

    def __init__(self, tree: BlockTree) -> None:
        self.tree = tree
        self.job("storage local")
        self.write("/etc/pve/storage.cfg", STORAGES)
        self.write("/etc/pve/qemu-server/101.conf", WEB)
        self.write("/proc/sys/kernel/hostname", "pve1\n")
        self.write("/proc/sys/kernel/osrelease", "6.8.12-4-pve\n")
        self.write("/proc/sys/vm/dirty_bytes", f"{1 << 28}\n")
        self.write("/proc/sys/vm/dirty_ratio", "0\n")
        self.write("/proc/sys/vm/dirty_background_bytes", "0\n")
        self.write("/proc/sys/vm/dirty_background_ratio", "10\n")
        self.write("/var/lib/vz/dump/x", "")
        self.write("/mnt/pve/nas/dump/x", "")
        tree.mount("/", "ext4", "/dev/sda1")
        tree.mount("/mnt/pve/nas", "nfs4", "10.0.0.9:/e", "rw,vers=4.2,hard,proto=tcp,timeo=600,retrans=2")

    def write(self, path: str, text: str) -> None:
        self.tree.write(path, text)

    def job(self, *options: str) -> None:
        lines = ("schedule 02:30", "all 1", *options)
        self.write("/etc/pve/jobs.cfg", "vzdump: nightly\n" + "".join(f"\t{each}\n" for each in lines))

    def disk(self, name: str = "sda", under: str = SATA, scheduler: str = SCHEDULED, rotational: str = "1") -> None:
        """With `/` and vg0 on it."""
        self.tree.device(name, (8, 0), under=under, scheduler=scheduler, rotational=rotational)
        self.tree.device("dm-0", (253, 0), slaves=[name])
        self.write("/sys/block/dm-0/dm/name", "vg0-vm--101--disk--0\n")
        self.tree.number["/"] = (8, 0)
        self.tree.number["/var"] = (8, 0)
        for vmid in (101, 103):
            self.tree.place(f"/dev/vg0/vm-{vmid}-disk-0", (253, 0))
        self.queue(name, wbt_lat_usec="75000", write_cache="write back")

    def queue(self, name: str = "sda", **attributes: str) -> None:
        for attribute, text in attributes.items():
            self.write(f"/sys/block/{name}/queue/{attribute}", f"{text}\n")

    def container(self) -> None:
        self.write("/etc/pve/lxc/103.conf", FILES)

    def lvs(self, *volumes: dict[str, str]) -> None:
        defaults = {"vg_name": "vg1", "lv_size": str(1 << 40), "origin": "", "metadata_percent": "", "vg_free": "0"}
        report = json.dumps({"report": [{"lv": [{**defaults, **each} for each in volumes]}]})
        self.script("/usr/sbin/lvs", f"cat <<'END'\n{report}\nEND")

    def script(self, path: str, text: str) -> None:
        self.write(path, f"#!/bin/sh\n{text}\n")
        file = self.tree.root / path.lstrip("/")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def diagnosed(self, *vmids: int) -> Diagnosis:
        in_force = Configuration(self.tree.node, TimelyReader(), None, remembers=False).now()
        return diagnose(self.tree.node, in_force, NOW, vmids, (GROUP,))

    def found(self, check: str, *vmids: int) -> list[Finding]:
        return [each.finding for each in self.diagnosed(*vmids).found if each.check.id == check]

    def one(self, check: str, *vmids: int) -> Finding:
        (only,) = self.found(check, *vmids)
        return only


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    tree = BlockTree(tmp_path)
    monkeypatch.setattr(block, "device_of", tree.device_of)
    return Machine(tree)


def test_a_node_whose_backups_go_to_a_nas_and_whose_disks_are_set_well_has_no_finding(machine: Machine) -> None:
    machine.disk()
    machine.job("storage nas")
    machine.lvs({"lv_name": "data", "lv_attr": "twi-aotz--", "data_percent": "61.2", "metadata_percent": "2.1"})
    assert machine.diagnosed() == Diagnosis((), ())


def test_the_setup_that_this_project_came_from(machine: Machine) -> None:
    """Thick LVM on a hardware RAID, the dump directory on the same disks, no scheduler, huge dirty limits."""
    machine.disk(under=RAID, scheduler=UNSCHEDULED)
    machine.queue(write_cache="write through", wbt_lat_usec="0")
    machine.write("/sys/class/scsi_host/host0/proc_name", "megaraid_sas\n")
    machine.write("/sys/block/sda/device/vendor", "DELL    \n")
    machine.write("/sys/block/sda/device/model", "PERC H730 Mini  \n")
    machine.container()
    machine.write("/proc/sys/vm/dirty_bytes", "0\n")
    machine.write("/proc/sys/vm/dirty_ratio", "20\n")
    memory = "MemTotal: 131072000 kB\nMemFree: 1048576 kB\nActive(file): 2097152 kB\nInactive(file): 60000000 kB\n"
    machine.write("/proc/meminfo", memory)
    machine.lvs()
    seen = {each.check.id: each.finding.severity for each in machine.diagnosed().found}
    assert seen == {
        "PVH-301": "warning",
        "PVH-303": "note",
        "PVH-304": "warning",
        "PVH-305": "note",
        "PVH-306": "warning",
        "PVH-309": "note",
    }


# Archives on the guests' disks


def test_archives_on_the_guests_disks_name_the_guests_and_a_storage_elsewhere(machine: Machine) -> None:
    machine.disk()
    machine.container()
    only = machine.one("PVH-301")
    assert only.subject == "storage local"
    assert "written to sda (ext4 on sda)" in only.evidence
    assert "the disks of VM 101 web, CT 103 files" in only.evidence
    assert only.remedy == ("pvesh set /cluster/backup/nightly --storage nas",)


def test_a_dumpdir_of_vzdump_conf_counts_as_well_as_a_storage(machine: Machine) -> None:
    machine.disk()
    machine.job("storage nas")
    machine.write("/etc/vzdump.conf", "dumpdir: /var/lib/vz/dump\n")
    only = machine.one("PVH-301")
    assert only.subject == "/var/lib/vz/dump"
    assert only.remedy == ("in /etc/vzdump.conf: storage: nas",)


def test_other_disks_than_the_guests_are_no_finding(machine: Machine) -> None:
    machine.disk()
    machine.tree.device("sdc", (8, 32), scheduler=SCHEDULED, rotational="1")
    machine.tree.mount("/var/lib/vz", "ext4", "/dev/sdc1")
    machine.tree.number["/var/lib/vz"] = (8, 32)
    assert machine.found("PVH-301") == []


def test_with_the_pacer_off_the_bursts_are_said_to_be_not_paced(machine: Machine) -> None:
    machine.disk()
    assert "the pacer keeps the bursts small" in machine.one("PVH-301").evidence
    machine.write("/etc/pvehook.yaml", "pacer: {mode: off}\n")
    assert "not paced (pacer: off)" in machine.one("PVH-301").evidence


def test_a_disk_that_is_not_mounted_is_not_taken_for_the_one_below_its_mount_point(machine: Machine) -> None:
    machine.disk()
    storage = "dir: usb\n\tpath /var/lib/vz\n\tcontent backup\n\tis_mountpoint 1\n\nlvm: fat\n\tvgname vg0\n"
    machine.write("/etc/pve/storage.cfg", storage)
    machine.job("storage usb")
    assert [each.check.id for each in machine.diagnosed().found] == ["PVH-310"]


def test_the_disks_of_a_zfs_pool_are_compared_and_their_queues_left_to_zfs(machine: Machine) -> None:
    machine.disk(scheduler=UNSCHEDULED)
    machine.write("/etc/pve/storage.cfg", f"{STORAGES}\nzfspool: tank\n\tpool tank\n")
    machine.write("/etc/pve/qemu-server/101.conf", WEB.replace("fat:", "tank:"))
    assert "the disks under VM 101 web scsi0: zfspool storage tank: ZFS pool tank, its disks are unknown" in (
        machine.diagnosed().not_checked[0]
    )
    machine.script("/usr/sbin/zpool", r"printf 'tank\t1T\n\t/dev/sda\t1T\n'")
    assert "which also carries the disks of VM 101 web" in machine.one("PVH-301").evidence
    machine.job("storage nas")
    assert machine.found("PVH-303") == []


def test_asked_for_one_guest_it_is_told_of_that_one_alone(machine: Machine) -> None:
    machine.disk()
    machine.container()
    only = machine.one("PVH-301", 103)
    assert only.vmid == 103
    assert "VM 101" not in only.evidence


def test_a_job_of_other_nodes_and_one_that_takes_nobody_here_are_left_out(machine: Machine) -> None:
    machine.disk()
    for option in ("node pve2", "enabled 0"):
        machine.job("storage local", option)
        assert machine.diagnosed().found == ()
    machine.write("/etc/pve/jobs.cfg", "vzdump: other\n\tschedule 02:30\n\tvmid 777\n\tstorage local\n")
    assert machine.diagnosed().found == ()


def test_disks_that_are_not_known_are_said_to_be_not_checked_once_for_all_their_guests(machine: Machine) -> None:
    machine.disk()
    machine.job("storage nas")
    for vmid in (201, 202):
        machine.write(f"/etc/pve/qemu-server/{vmid}.conf", f"name: x\nscsi0: gone:vm-{vmid}-disk-0\n")
    assert machine.diagnosed().not_checked == (
        "the disks under VM 201 x scsi0, VM 202 x scsi0: storage gone is not configured",
        "thin pools and LVM snapshots: LVM is not installed",
    )


# Queues


def test_a_container_on_a_disk_that_ignores_the_idle_class(machine: Machine) -> None:
    machine.disk(scheduler=UNSCHEDULED, rotational="0")
    assert machine.found("PVH-302") == []  # of a VM nothing that reads is in the idle class
    machine.container()
    only = machine.one("PVH-302")
    assert (only.subject, only.severity) == ("disk sda", "note")
    assert "on it are CT 103 files" in only.evidence
    machine.write("/etc/pvehook.yaml", "io_priority: {mode: off}\n")
    assert machine.found("PVH-302") == []


@pytest.mark.parametrize("chosen", ["none [mq-deadline] kyber bfq", "none mq-deadline kyber [bfq]"])
def test_a_disk_that_honours_the_idle_class_is_no_finding(machine: Machine, chosen: str) -> None:
    machine.disk(scheduler=chosen, rotational="0")
    machine.container()
    assert machine.found("PVH-302") == []


def test_a_device_that_can_have_no_scheduler_and_an_nvme_disk_are_left_alone(machine: Machine) -> None:
    machine.disk("nvme0n1", "pci0000:00/nvme/nvme0", UNSCHEDULED, "0")
    machine.container()
    assert machine.found("PVH-302") == []
    machine.tree.write("/sys/block/nvme0n1/queue/scheduler", "none\n")
    machine.queue("nvme0n1", rotational="1")
    assert machine.found("PVH-303") == []


def test_the_scheduler_is_set_now_and_whenever_the_disk_comes_and_can_be_set_back(machine: Machine) -> None:
    machine.disk(scheduler=UNSCHEDULED)
    machine.write("/sys/block/sda/device/wwid", "naa.6848f690e936450025f4\n")
    write, command = machine.one("PVH-303").steps
    assert write == Write(
        "/etc/udev/rules.d/90-pvehook-scheduler-naa.6848f690e936450025f4.rules",
        None,
        'ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ATTRS{wwid}=="naa.6848f690e936450025f4", '
        'ATTR{queue/scheduler}="mq-deadline"\n',
    )
    assert isinstance(command, Command)
    file = "/sys/block/sda/queue/scheduler"
    assert command.do[-1] == f"echo mq-deadline > {file}"
    assert command.undo[-1] == f"echo none > {file}"
    assert command.path == file


def test_a_rule_of_an_earlier_fix_is_what_the_next_one_starts_from(machine: Machine) -> None:
    machine.disk(scheduler=UNSCHEDULED)
    path = "/etc/udev/rules.d/90-pvehook-scheduler-sda.rules"
    machine.write(path, "# mine\n")
    write, _ = machine.one("PVH-303").steps
    assert isinstance(write, Write)
    assert (write.path, write.old) == (path, "# mine\n")


def test_writeback_throttling_that_is_off(machine: Machine) -> None:
    machine.disk()
    assert machine.found("PVH-304") == []
    machine.queue(wbt_lat_usec="0")
    only = machine.one("PVH-304")
    assert only.remedy[0] == "echo 75000 > /sys/block/sda/queue/wbt_lat_usec"
    machine.queue(scheduler="none mq-deadline kyber [bfq]")  # which switches it off itself
    assert machine.found("PVH-304") == []


def test_writeback_throttling_that_a_faulty_kernel_never_set_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.disk()
    read = disk_queue.read_attribute

    def refuse(node: Any, path: str) -> bytes:
        if path.endswith("wbt_lat_usec"):
            raise OSError(22, os.strerror(22), path)
        return read(node, path)

    monkeypatch.setattr(disk_queue, "read_attribute", refuse)
    machine.write("/proc/sys/kernel/osrelease", "6.16.1-1-pve\n")
    only = machine.one("PVH-304")
    assert "kernel 6.16.1-1-pve may not switch it on by itself" in only.evidence
    assert only.steps == ()  # what cannot be read could not be taken back
    machine.write("/proc/sys/kernel/osrelease", "6.8.12-4-pve\n")
    assert "kernel" not in machine.one("PVH-304").evidence


def test_dirty_pages_for_longer_than_ten_seconds(machine: Machine) -> None:
    machine.disk()
    machine.write("/proc/sys/vm/dirty_bytes", f"{2 * GIB}\n")
    assert machine.found("PVH-305") == []
    machine.write("/proc/sys/vm/dirty_bytes", f"{12 * GIB}\n")
    only = machine.one("PVH-305")
    assert (only.subject, only.severity) == ("node", "note")
    assert "12 GiB may wait in the page cache to be written (vm.dirty_bytes=12884901888), 52 s" in only.evidence
    machine.write("/etc/pvehook.yaml", "pacer: {mode: off}\n")
    assert machine.one("PVH-305").severity == "warning"
    machine.job("storage nas")
    assert machine.found("PVH-305") == []


def test_the_dirty_limit_is_set_back_to_the_setting_that_counted(machine: Machine) -> None:
    machine.disk()
    machine.write("/proc/sys/vm/dirty_bytes", "0\n")
    machine.write("/proc/sys/vm/dirty_ratio", "20\n")
    machine.write("/proc/meminfo", "MemFree: 41943040 kB\nActive(file): 10485760 kB\nInactive(file): 10485760 kB\n")
    only = machine.one("PVH-305")
    assert "12 GiB may wait" in only.evidence
    write, command = only.steps
    assert isinstance(write, Write)
    assert write.new == "vm.dirty_background_bytes=249561088\nvm.dirty_bytes=499122176\n"
    assert isinstance(command, Command)
    assert command.undo == ("sysctl", "-w", "vm.dirty_background_ratio=10", "vm.dirty_ratio=20")


@pytest.mark.parametrize(
    ("driver", "vendor", "cache", "fires"),
    [
        ("megaraid_sas", "AVAGO", "write through", True),
        ("megaraid_sas", "AVAGO", "write back", False),
        ("megaraid_sas", "ATA", "write through", False),  # a disk that the controller passes through
        ("ahci", "ATA", "write through", False),
    ],
)
def test_a_raid_volume_that_says_write_through(
    machine: Machine, driver: str, vendor: str, cache: str, fires: bool
) -> None:
    machine.disk(under=RAID)
    machine.queue(write_cache=cache)
    machine.write("/sys/class/scsi_host/host0/proc_name", f"{driver}\n")
    machine.write("/sys/block/sda/device/vendor", f"{vendor}\n")
    machine.write("/sys/block/sda/device/model", "MR9361-8i\n")
    found = machine.found("PVH-309")
    assert bool(found) == fires
    assert all("The kernel cannot tell which" in each.evidence for each in found)


def test_a_controller_that_said_in_the_kernel_log_that_its_battery_is_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.disk()
    controller = "megaraid_sas 0000:03:00.0:"
    battery = f"{controller} 4711 (817263543s/0x0008/FATAL) - Battery has failed and cannot support data retention"
    later = f"{controller} 4712 (boot + 12s/0x0008/CRIT) - BBU Retention test failed!"
    others = f"{controller} 4713 (81726s/0x0002/CRIT) - VD 00/0 is now DEGRADED", f"{controller} FW now in Ready state"

    def log(*texts: str) -> None:
        past = PastLog(tuple(KernelLine(1, text) for text in texts), is_whole=True)
        monkeypatch.setattr("pvehook.doctor.storage_facts.read_past_log", lambda *_: past)

    log(battery, later, *others)
    only = machine.one("PVH-309")
    assert (only.subject, only.severity) == ("controller 0000:03:00.0", "warning")
    assert "has of it: BBU Retention test failed!" in only.evidence
    log(*others)
    assert machine.found("PVH-309") == []


# LVM


def test_a_container_on_thick_lvm_is_suspended_by_a_job_in_mode_snapshot(machine: Machine) -> None:
    machine.disk()
    machine.container()
    only = machine.one("PVH-306")
    assert (only.subject, only.vmid) == ("CT 103 files", 103)
    assert "rootfs on fat (lvm), so job nightly" in only.evidence
    machine.job("storage local", "mode stop")
    assert machine.found("PVH-306") == []


def test_a_container_on_a_thin_pool_is_snapshotted(machine: Machine) -> None:
    machine.disk()
    machine.write("/etc/pve/lxc/103.conf", FILES.replace("fat:", "thin:"))
    assert machine.found("PVH-306") == []


def test_a_snapshot_on_thick_lvm_and_one_that_ran_full(machine: Machine) -> None:
    machine.disk()
    thick = {"vg_name": "vg0", "lv_name": "vzsnap-0", "origin": "vm-101-disk-0", "lv_size": str(GIB)}
    machine.lvs({**thick, "lv_attr": "swi-a-s---", "data_percent": "41.7"})
    only = machine.one("PVH-307")
    assert (only.subject, only.severity) == ("LVM vg0/vzsnap-0", "warning")
    assert "of vg0/vm-101-disk-0 on thick LVM (42 % of its 1 GiB used)" in only.evidence
    machine.lvs({**thick, "lv_attr": "swi-I-s---", "data_percent": "100.00"})
    assert "(invalid)" in machine.one("PVH-307").evidence
    machine.lvs({**thick, "lv_attr": "Vwi-aotz--", "data_percent": "41.7"})  # a thin one costs little
    assert machine.found("PVH-307") == []


@pytest.mark.parametrize(
    ("data", "metadata", "attr", "severity", "said"),
    [
        ("89.9", "79.9", "twi-aotz--", None, ""),
        ("91.0", "10.0", "twi-aotz--", "warning", "data 91.0 % full, 92.2 GiB left"),
        ("97.5", "10.0", "twi-aotz--", "error", "data 97.5 % full"),
        ("50.0", "81.0", "twi-aotz--", "warning", "metadata 81.0 % full"),
        ("50.0", "96.0", "twi-aotz--", "error", "metadata 96.0 % full"),
        ("50.0", "10.0", "twi-aotzM-", "error", "read-only: its metadata is full or damaged"),
        ("", "", "twi---tz--", None, ""),
    ],
)
def test_a_thin_pool_that_fills_up(
    machine: Machine, data: str, metadata: str, attr: str, severity: str | None, said: str
) -> None:
    machine.disk()
    machine.lvs({"lv_name": "data", "lv_attr": attr, "data_percent": data, "metadata_percent": metadata})
    found = machine.found("PVH-308")
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(each.subject == "thin pool vg1/data" and said in each.evidence for each in found)


def test_a_volume_group_with_room_and_one_without_have_their_own_ways_out(machine: Machine) -> None:
    machine.disk()
    pool = {"lv_name": "data", "lv_attr": "twi-aotz--", "data_percent": "95", "metadata_percent": "95"}
    machine.lvs({**pool, "vg_free": str(100 * GIB)})
    assert machine.one("PVH-308").remedy[:2] == (
        "lvextend --poolmetadatasize +1G vg1/data",
        "lvextend -L +99G vg1/data",
    )
    machine.lvs(pool)
    assert machine.one("PVH-308").remedy[-1].startswith("vgextend vg1 /dev/DISK")


def test_an_lvs_that_fails_or_speaks_otherwise_is_not_checked(machine: Machine) -> None:
    machine.disk()
    machine.job("storage nas")
    for script, why in (("exit 5", "failed, or gave no answer within 3 s"), ("echo x", "no JSON")):
        machine.script("/usr/sbin/lvs", script)
        (line,) = machine.diagnosed().not_checked
        assert line.startswith("thin pools and LVM snapshots: /usr/sbin/lvs")
        assert why == "no JSON" or why in line


def test_a_dirty_limit_that_cannot_be_read_is_not_checked(machine: Machine) -> None:
    machine.disk()
    machine.write("/proc/sys/vm/dirty_bytes", "?\n")
    assert "how much may wait to be written: /proc/sys/vm/dirty_* cannot be read" in machine.diagnosed().not_checked


# Targets


@pytest.mark.parametrize(
    ("storage", "said", "remedy"),
    [
        ("dir: usb\n\tpath /u\n\tcontent backup\n\tdisable 1\n", "is disabled", "pvesm set usb --disable 0"),
        ("nfs: usb\n\tpath /u\n\tserver n\n", "(content images)", "pvesm set usb --content images,backup"),
        ("dir: usb\n\tpath /u\n\tcontent backup\n\tnodes pve2\n", "not available", "pvesm set usb --nodes pve2,pve1"),
        ("", "does not exist", "pvesh set /cluster/backup/nightly --storage OTHER"),
        (
            "dir: usb\n\tpath /u\n\tcontent backup\n\tis_mountpoint 1\n",
            "nothing is mounted at /u",
            "findmnt --target /u",
        ),
    ],
)
def test_a_storage_that_proxmox_refuses(machine: Machine, storage: str, said: str, remedy: str) -> None:
    machine.disk()
    machine.write("/etc/pve/storage.cfg", storage)
    machine.job("storage usb")
    only = machine.one("PVH-310")
    assert (only.subject, only.severity) == ("storage usb", "error")
    assert said in only.evidence
    assert only.remedy[0].startswith(remedy)


def test_a_dumpdir_that_is_not_there(machine: Machine) -> None:
    machine.disk()
    machine.job("dumpdir /var/lib/nowhere")
    only = machine.one("PVH-310")
    assert "dumpdir /var/lib/nowhere does not exist; job nightly writes there" in only.evidence


def test_a_nas_that_is_not_mounted_and_one_that_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.disk()
    machine.job("storage nas")
    assert machine.found("PVH-310") == []
    released = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("pvehook.host.backup_target.os.statvfs", lambda _: released.wait())
        patch.setattr("pvehook.doctor.storage_facts._TARGET_S", 0.05)
        only = machine.one("PVH-310")
        released.set()
    assert only.severity == "error"
    assert "it does not answer: /mnt/pve/nas did not answer within" in only.evidence
    machine.write("/proc/self/mountinfo", "")
    only = machine.one("PVH-310")
    assert (only.severity, "not mounted now" in only.evidence) == ("warning", True)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_backup_server_that_listens_and_one_that_does_not(server: socket.socket) -> None:
    port = server.getsockname()[1]
    pbs = Section("pbs", "vault", {"server": "127.0.0.1", "port": str(port)})
    assert why_pbs_is_silent(pbs, 5.0) is None
    server.close()
    assert why_pbs_is_silent(pbs, 5.0) == f"127.0.0.1 port {port}: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("fs_type", "options", "severity"),
    [
        ("nfs4", "rw,vers=4.2,soft,timeo=600,retrans=2", "warning"),
        ("nfs", "rw,softerr", "warning"),
        ("nfs4", "rw,hard,softreval", None),
        ("cifs", "rw,vers=3.1.1,soft", "note"),
        ("cifs", "rw,hard", None),
        ("ext4", "rw,soft", None),
    ],
)
def test_a_soft_mount(machine: Machine, fs_type: str, options: str, severity: str | None) -> None:
    machine.disk()
    machine.job("storage nas")
    machine.tree.mount("/mnt/pve/nas", fs_type, "10.0.0.9:/e", options)
    found = machine.found("PVH-311")
    assert [each.severity for each in found] == ([severity] if severity else [])
    if fs_type == "nfs4" and found:
        assert "mounted soft (timeo=600, retrans=2)" in found[0].evidence
    for each in found:
        assert each.remedy[0] == "pvesm set nas --options vers=4.2,hard"
        assert each.remedy[1].startswith("umount /mnt/pve/nas  #")


# All of them


def test_every_check_has_a_page_of_its_own() -> None:
    pages = Path(__file__).parents[2] / "docs" / "checks"
    for check in CHECKS:
        text = (pages / f"{check.id}.md").read_text()
        assert text.startswith(f"# {check.id}: {check.title}\n"), check.id
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## What",
            "## Why",
            "## Evidence",
            "## Remedy",
        ], check.id




def test_what_a_fix_sets_is_taken_back_by_the_doctors_own_means(machine: Machine) -> None:
    """The kernel is played: it shows the scheduler that was written to it in brackets."""
    machine.disk(scheduler=UNSCHEDULED)
    (found,) = (each for each in machine.diagnosed().found if each.check.id == "PVH-303")
    node, rule = machine.tree.node, machine.tree.root / "etc/udev/rules.d/90-pvehook-scheduler-sda.rules"

    def run(command: Sequence[str]) -> None:
        text, path = command[-1].removeprefix("echo ").split(" > ")
        machine.write(path, f"{UNSCHEDULED.replace('[none]', 'none').replace(text, f'[{text}]')}\n")

    assert fix(node, found, run, NOW.timestamp()).is_done
    assert 'ATTR{queue/scheduler}="mq-deadline"' in rule.read_text()
    assert machine.found("PVH-303") == []
    assert all(each.is_done for each in unfix(node, "PVH-303", (), run))
    assert not rule.exists()
    assert [each.subject for each in machine.found("PVH-303")] == ["disk sda"]
