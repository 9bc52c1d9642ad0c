"""A small node with jobs, guests on two volume groups and a NAS, for the checks of the group `vzdump`.

    node = VzdumpNode(tmp_path)                        sda rotates, with local-lvm; nvme0n1 does not, with fast
    node.job("nightly", "vmid 101", "storage nas")
    node.found("PVH-202")                              the findings of one check, after gathering everything
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pvehook.config.in_force import Configuration
from pvehook.deadline import Deadline
from pvehook.doctor.finding import Finding, Sources
from pvehook.doctor.vzdump_checks import CHECKS, GROUP
from pvehook.doctor.vzdump_facts import VzdumpFacts
from pvehook.host.node import HOOK
from pvehook.host.timely_files import TimelyReader
from tests.doctor.past_backups import back_up
from tests.host.conftest import BlockTree

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
"""A Tuesday."""

STORAGES = """lvmthin: local-lvm
\tthinpool data
\tvgname pve
\tcontent rootdir,images

lvmthin: fast
\tthinpool data
\tvgname fast
\tcontent images

nfs: nas
\tserver 10.0.0.9
\texport /e
\tpath /mnt/pve/nas
\tcontent backup

lvm: thick
\tvgname pve
\tcontent images

dir: dump
\tpath /dump
\tcontent backup
"""


class VzdumpNode(BlockTree):
    """The node is called pve1."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for disk, number, rotational in (("sda", (8, 0), "1"), ("nvme0n1", (259, 0), "0")):
            self.device(disk, number, under=f"pci/{disk}", scheduler="[none]", rotational=rotational)
        for name, number, mapped, disk in (
            ("dm-0", (253, 0), "pve-vm--101--disk--0", "sda"),
            ("dm-1", (253, 1), "fast-vm--102--disk--0", "nvme0n1"),
        ):
            home = self.device(name, number, slaves=[disk])
            (home / "dm").mkdir()
            (home / "dm/name").write_text(f"{mapped}\n")
        self.place("/dump", (8, 0))
        self.write("/etc/pvehook.yaml", 'window: {open: ["02:00-05:00"], timezone: UTC}\n')
        self.vzdump_conf()
        self.write("/etc/pve/storage.cfg", STORAGES)
        self.guest(101, "web", "scsi0: local-lvm:vm-101-disk-0,size=8G")
        self.guest(102, "db", "scsi0: fast:vm-102-disk-0,size=8G")
        self._jobs: list[str] = []

    def vzdump_conf(self, *lines: str) -> None:
        self.write("/etc/vzdump.conf", "\n".join([f"script: {HOOK}", "ionice: 8", *lines, ""]))

    def guest(self, vmid: int, name: str, *lines: str, kind: str = "qemu-server", node: str = "pve1") -> None:
        text = "\n".join([f"{'hostname' if kind == 'lxc' else 'name'}: {name}", *lines, ""])
        if node == "pve1":
            self.write(f"/etc/pve/{kind}/{vmid}.conf", text)
        self.write(f"/etc/pve/nodes/{node}/{kind}/{vmid}.conf", text)

    def job(self, job_id: str, *options: str, schedule: str = "02:00") -> None:
        self._jobs.append("\n\t".join([f"vzdump: {job_id}", f"schedule {schedule}", *options]) + "\n")
        self.write("/etc/pve/jobs.cfg", "\n".join(self._jobs))

    def task(self, kind: str, guest: str = "", pid: int = 4711) -> None:
        fields = " ".join(["1", *["0"] * 14, "0", "1", "0", "12648430", "0", "0"])
        self.write(f"/proc/{pid}/stat", f"{pid} (task UPID:pve1:) S {fields}\n")
        title = f"task UPID:pve1:{pid:08X}:00C0FFEE:6921B2F0:{kind}:{guest}:root@pam:"
        self.write(f"/proc/{pid}/cmdline", title + "\0")

    def backups(self, vmid: int, hours: float) -> None:
        """The last three nights'."""
        back_up(self.node, NOW, vmid, hours)

    def facts(self, vmids: tuple[int, ...] = ()) -> VzdumpFacts:
        in_force = Configuration(self.node, TimelyReader(), None, remembers=False).now()
        assert not in_force.problems
        until = Deadline.after(30)
        return GROUP.gather(Sources(self.node, "pve1", in_force, TimelyReader(), NOW, until, vmids))

    def found(self, check_id: str, vmids: tuple[int, ...] = ()) -> Sequence[Finding]:
        facts = self.facts(vmids)
        return [finding for check in CHECKS if check.id == check_id for finding in check.find(facts)]

    def missing(self) -> Sequence[str]:
        return GROUP.missing(self.facts())
