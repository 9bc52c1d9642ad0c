"""The nodes that the doctor is tested on, and what it finds there.

    with clean_node(tmp_path, monkeypatch) as node:
        node.write("/etc/vzdump.conf", "ionice: 7\n")
        assert ids(node.diagnose()) == ["PVH-101", "PVH-109"]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pvehook.doctor.checks import Diagnosis
from tests.doctor.fixture_node import HUGE_PAGES, NOW, FixtureNode
from tests.doctor.past_backups import back_up

ALWAYS = {f"{HUGE_PAGES}/enabled": "[always] madvise never\n"}
SSD = "ATA Samsung SSD 870"
READ_COMMANDS = ("guest-file-open", "guest-file-read", "guest-file-close", "guest-file-seek", "guest-exec")
"""What qemu-ga of Red Hat and its relatives has switched off, among others."""


@contextmanager
def clean_node(root: Path, patch: pytest.MonkeyPatch) -> Iterator[FixtureNode]:
    """Proxmox VE 9 on NVMe disks, archives on a NAS with fleecing: nothing to find."""
    with ExitStack() as stack:
        node = FixtureNode(root, patch, stack)
        node.booted("pve1", "7.0.14-4-pve")
        node.packages(pve_manager="9.2.11", pve_qemu_kvm="11.0.2-1", qemu_server="9.2.9")
        node.memory(64, free_gib=24, dirty_bytes=1 << 30)
        node.disk("nvme0n1", (259, 0))
        node.disk("nvme1n1", (259, 1))
        node.file_systems((259, 0))
        node.installed(performance="max-workers=1")
        node.storages(
            local={"type": "dir", "path": "/var/lib/vz", "content": "iso,vztmpl,snippets"},
            fast={"type": "lvmthin", "vgname": "fast", "thinpool": "data", "content": "images,rootdir"},
            nas={"type": "nfs", "server": "10.0.0.9", "export": "/e", "path": "/mnt/pve/nas", "content": "backup"},
        )
        node.mount("/mnt/pve/nas", "nfs4", "10.0.0.9:/e", "rw,vers=4.2,hard,proto=tcp,timeo=600,retrans=2")
        (root / "mnt/pve/nas/dump").mkdir(parents=True)
        node.logical_volume(
            "fast", "data", ["nvme1n1"], 900, lv_attr="twi-aotz--", data_percent="41.0", metadata_percent="12.0"
        )
        for vmid, name in ((101, "web"), (102, "db")):
            node.vm(vmid, _linux(name, f"fast:vm-{vmid}-disk-0,discard=on,iothread=1,size=32G"))
            node.logical_volume("fast", f"vm-{vmid}-disk-0", ["nvme1n1"], lv_attr="Vwi-aotz--")
        node.container(103, {"hostname": "dns", "rootfs": "fast:vm-103-disk-0,size=8G", "ostype": "debian"})
        node.logical_volume("fast", "vm-103-disk-0", ["nvme1n1"], 8, lv_attr="Vwi-aotz--")
        nightly = {"schedule": "02:00", "all": "1", "mode": "snapshot", "storage": "nas"}
        node.jobs(nightly={**nightly, "fleecing": "enabled=1,storage=fast"})
        for vmid, vmtype in ((101, "qemu"), (102, "qemu"), (103, "lxc")):
            back_up(node.node, NOW, vmid, 0.5, vmtype=vmtype)
        yield node


@contextmanager
def busy_node(
    root: Path, patch: pytest.MonkeyPatch, *, guests: int, running: int, **traits: Any
) -> Iterator[FixtureNode]:
    """The clean node with many more VMs, from 200 on; `traits` of the agents of those that run."""
    with clean_node(root, patch) as node:
        for vmid in range(200, 200 + guests):
            options = _linux(f"vm{vmid}", f"fast:vm-{vmid}-disk-0,discard=on,iothread=1,size=32G")
            node.vm(vmid, options, runs=vmid < 200 + running, **traits)
            node.logical_volume("fast", f"vm-{vmid}-disk-0", ["nvme1n1"], lv_attr="Vwi-aotz--")
        yield node


@contextmanager
def first_node(root: Path, patch: pytest.MonkeyPatch) -> Iterator[FixtureNode]:
    """The setup that this project came from, after its upgrade to Proxmox VE 9: thick LVM on a hardware RAID, archives
    on the same disks and from there by rsync to a NAS, three guests with huge pages `always`, backups at 21:00."""
    with ExitStack() as stack:
        node = FixtureNode(root, patch, stack)
        node.booted("pve", "6.17.2-1-pve")
        node.packages(pve_manager="9.1.1", pve_qemu_kvm="10.1.2-3", qemu_server="9.0.30")
        node.memory(256, free_gib=180)
        raid, cache = "DELL PERC H730 Mini", "write through"
        node.disk("sda", (8, 0), is_rotational=True, driver="megaraid_sas", model=raid, wbt_us=0, write_cache=cache)
        node.file_systems((8, 0))
        node.installed()
        node.program("/usr/local/sbin/rsync-to-nas")
        node.write("/etc/pvehook.yaml", "chain: /usr/local/sbin/rsync-to-nas\n")
        node.storages(
            local={"type": "dir", "path": "/var/lib/vz", "content": "iso,vztmpl"},
            vms={"type": "lvm", "vgname": "vms", "content": "images,rootdir"},
            dump={"type": "dir", "path": "/backup", "content": "backup", "is_mountpoint": "1"},
        )
        backup = node.logical_volume("vms", "backup", ["sda"], 4000)
        node.mount("/backup", "ext4", "/dev/mapper/vms-backup")
        node.place("/backup", backup)
        node.place("/backup/dump", backup)
        guests: tuple[tuple[int, str, dict[str, Any]], ...] = (
            (101, "debian12", {"insides": ALWAYS}),
            (102, "gentoo", {"insides": ALWAYS, "os_id": "gentoo", "agent_version": "9.2.0"}),
            (103, "centos9", {"os_id": "centos", "agent_version": "9.1.0", "blocked": READ_COMMANDS}),
        )
        for vmid, name, traits in guests:
            options = _linux(name, f"vms:vm-{vmid}-disk-0,size=200G") | {"scsihw": "virtio-scsi-pci"}
            node.vm(vmid, options, **traits)
            node.logical_volume("vms", f"vm-{vmid}-disk-0", ["sda"], 200)
        for vmid in (101, 102, 103):
            back_up(node.node, NOW, vmid, 1.2, "evening")
        node.jobs(evening={"schedule": "21:00", "all": "1", "mode": "snapshot", "storage": "dump", "compress": "zstd"})
        yield node


@contextmanager
def pve8_node(root: Path, patch: pytest.MonkeyPatch) -> Iterator[FixtureNode]:
    """Proxmox VE 8 on two SSDs, a full thin pool, a soft NAS, jobs that grew over the years; pvehook displaced."""
    with ExitStack() as stack:
        node = FixtureNode(root, patch, stack)
        node.booted("old", "6.8.12-4-pve")
        kernel = {"proxmox-kernel-6.8.12-43-pve-signed": "6.8.12-43"}
        node.packages(pve_manager="8.3.0", pve_qemu_kvm="9.0.2-4", qemu_server="8.3.0", **kernel)
        node.memory(64, free_gib=4)
        node.disk("sda", (8, 0), scheduler="mq-deadline", driver="ahci", model=SSD)
        node.disk("sdb", (8, 16), scheduler="none", driver="ahci", model=SSD)
        node.file_systems((8, 0))
        node.installed(ionice="5", bwlimit="200000")
        node.program("/usr/local/bin/other-tool")
        node.replace("/etc/vzdump.conf", "/usr/local/lib/pvehook/hooks/vzdump-hook", "/usr/local/bin/other-tool")
        node.write("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/dm-0\tpartition\t8388604\t1048576\t-2\n")
        node.write("/proc/vmstat", "pswpin 500000\npswpout 700000\n")
        node.logical_volume("pve", "swap", ["sda"], 8)
        node.storages(
            local={"type": "dir", "path": "/var/lib/vz", "content": "iso,vztmpl,backup"},
            local_lvm={"type": "lvmthin", "vgname": "pve", "thinpool": "data", "content": "images,rootdir"},
            ssd={"type": "lvm", "vgname": "ssd", "content": "rootdir"},
            nas={"type": "nfs", "server": "10.0.0.9", "export": "/e", "path": "/mnt/pve/nas", "content": "backup"},
        )
        node.mount("/mnt/pve/nas", "nfs4", "10.0.0.9:/e", "rw,vers=4.2,soft,proto=tcp,timeo=150,retrans=3")
        (root / "mnt/pve/nas/dump").mkdir(parents=True)
        node.logical_volume(
            "pve", "data", ["sda"], 400, lv_attr="twi-aotz--", data_percent="93.1", metadata_percent="71.0"
        )
        for vmid, name, more in (
            (101, "mail", {"agent": "0"}),
            (102, "files", {"lock": "backup"}),
            (103, "sql", {"ostype": "win11"}),
        ):
            options = _linux(name, f"local-lvm:vm-{vmid}-disk-0,cache=writeback,size=64G") | more
            node.vm(vmid, options, runs=vmid != 102, os_id="mswindows" if vmid == 103 else "debian")
            node.logical_volume("pve", f"vm-{vmid}-disk-0", ["sda"], 64, lv_attr="Vwi-aotz--")
        node.container(105, {"hostname": "wiki", "rootfs": "ssd:vm-105-disk-0,size=8G", "ostype": "debian"})
        node.logical_volume("ssd", "vm-105-disk-0", ["sdb"], 8, lv_attr="owi-aos---")
        node.logical_volume(
            "ssd", "vzsnap-0", ["sdb"], 2, lv_attr="swi-a-s---", origin="vm-105-disk-0", data_percent="38.5"
        )
        node.vm(104, _linux("lab", "local-lvm:vm-104-disk-0,size=8G"), runs=False)
        node.jobs(
            nightly={"schedule": "02:30", "vmid": "101,103", "mode": "suspend", "storage": "nas", "maxfiles": "3"},
            local={"schedule": "sun 03:00", "vmid": "101,105", "storage": "local", "ionice": "7", "repeat-missed": "1"},
        )
        node.cron(["30 4 * * * root vzdump 102 --quiet 1 --script /root/gone.sh --storage nas"])
        yield node


def _linux(name: str, disk: str) -> dict[str, str]:
    controller = "virtio-scsi-single"
    return {"name": name, "agent": "1", "ostype": "l26", "scsihw": controller, "memory": "4096", "scsi0": disk}


def ids(diagnosis: Diagnosis) -> list[str]:
    return [each.check.id for each in diagnosis.found]


def evidence(diagnosis: Diagnosis, check: str) -> str:
    """`subject: evidence` of all findings of one check."""
    found = (each.finding for each in diagnosis.found if each.check.id == check)
    return "\n".join(f"{finding.subject}: {finding.evidence}" for finding in found)
