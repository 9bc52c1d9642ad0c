"""A whole node as a directory tree, as Proxmox VE has it: /etc/pve, /sys, /proc, dpkg's status, VMs with their sockets.

    node = FixtureNode(tmp_path, monkeypatch, stack)      sockets live as long as `stack`
    node.write("/etc/vzdump.conf", "ionice: 7\n")
    node.diagnose()

The three nodes of the tests are in fixture_nodes.py. What a group of checks reads of a node is added here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pvehook.config.in_force import Configuration
from pvehook.doctor.checks import Diagnosis, diagnose
from pvehook.host import block
from pvehook.host.node import HOOK, INSTALLED_UNDER
from pvehook.host.timely_files import TimelyReader
from tests.guest_files import SimulatedGuest
from tests.host.conftest import BlockTree

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=ZoneInfo("Europe/Vienna"))
BOOTED_S = 1_794_900_000
"""2026-11-17."""
GIB = 1 << 30
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"


class FixtureNode(BlockTree):
    """A node in a directory."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        super().__init__(root)
        patch.setattr(block, "device_of", self.device_of)
        self._stack = stack
        self._dm = 0
        self._volumes: list[dict[str, str]] = []
        for directory in ("var/run/qemu-server", "run/pvehook", "etc/pve/qemu-server", "etc/pve/lxc", "etc/pve/nodes"):
            os.makedirs(root / directory)

    def link(self, path: str, target: str) -> None:
        link = self.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def program(self, path: str, text: str = "#!/bin/sh\n") -> None:
        self.write(path, text)
        (self.root / path.lstrip("/")).chmod(0o755)

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def replace(self, path: str, old: str, new: str) -> None:
        text = self.read(path)
        assert old in text
        self.write(path, text.replace(old, new))

    def diagnose(self, *vmids: int) -> Diagnosis:
        """By all groups, at NOW."""
        in_force = Configuration(self.node, TimelyReader(), None, remembers=False).now()
        return diagnose(self.node, in_force, NOW, vmids)

    # Parts of a node

    def booted(self, name: str, kernel: str) -> None:
        self.write("/proc/sys/kernel/hostname", f"{name}\n")
        self.write("/proc/sys/kernel/osrelease", f"{kernel}\n")
        self.write("/proc/stat", f"cpu  1000 0 1000 100000 0 0 0 0 0 0\nbtime {BOOTED_S}\n")
        self.write("/proc/uptime", f"{NOW.timestamp() - BOOTED_S:.2f} 1000000.00\n")
        self.write("/proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\n\n")
        for resource in ("cpu", "io", "memory"):
            lines = ("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",) * 2
            self.write(f"/proc/pressure/{resource}", lines[0] + lines[1].replace("some", "full"))
        self.link("/etc/localtime", "/usr/share/zoneinfo/Europe/Vienna")

    def memory(self, total_gib: int, *, free_gib: int, dirty_bytes: int = 0) -> None:
        """`dirty_bytes` 0: the kernel's own ratio of 20 %."""
        sizes = {"MemTotal": total_gib, "MemFree": free_gib, "MemAvailable": free_gib + 2, "Active(file)": 1}
        sizes |= {"Inactive(file)": 1, "SwapTotal": 0, "SwapFree": 0}
        self.write("/proc/meminfo", "".join(f"{name}: {gib << 20:>12} kB\n" for name, gib in sizes.items()))
        vm = {"dirty_bytes": dirty_bytes, "dirty_background_bytes": dirty_bytes // 2, "swappiness": 60}
        vm |= {"dirty_ratio": 0 if dirty_bytes else 20, "dirty_background_ratio": 0 if dirty_bytes else 10}
        for name, value in vm.items():
            self.write(f"/proc/sys/vm/{name}", f"{value}\n")
        self.write("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")

    def packages(self, **versions: str) -> None:
        """dpkg's status; underscores stand for hyphens."""
        paragraphs = (
            f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nVersion: {version}\n"
            for name, version in versions.items()
        )
        self.write("/var/lib/dpkg/status", "\n".join(paragraphs))

    def installed(self, **vzdump_options: str) -> None:
        """pvehook as install.sh leaves it, with its socket listening."""
        self.program(HOOK, "#!/usr/bin/python3 -IS\n")
        self.write(f"{INSTALLED_UNDER}/pvehook/__init__.py", "")
        os.utime(self.root / INSTALLED_UNDER[1:] / "pvehook/__init__.py", (BOOTED_S - 86400, BOOTED_S - 86400))
        units = "/usr/local/lib/systemd/system"
        listening = ""
        for unit, socket in (
            ("pvehook.socket", self.node.hook_socket), ("pvehook-notify.socket", self.node.notify_socket)
        ):  # fmt: skip
            self.write(f"{units}/{unit}", f"[Socket]\nListenStream={socket.removeprefix(self.node.root)}\n")
            self.link(f"/etc/systemd/system/sockets.target.wants/{unit}", f"{units}/{unit}")
            listening += f"0000000000000000: 00000002 0 00010000 0001 01 21 {socket}\n"
        self.write("/proc/net/unix", listening)
        (self.root / "var/lib/pvehook").mkdir(parents=True)
        (self.root / "var/lib/pvehook").chmod(0o700)
        options = {"script": HOOK, "ionice": "8", **vzdump_options}
        lines = "".join(f"{key}: {value}\n" for key, value in options.items())
        self.write("/etc/vzdump.conf", f"# vzdump default settings\n{lines}")

    def disk(
        self,
        name: str,
        number: tuple[int, int],
        *,
        scheduler: str = "none",
        is_rotational: bool = False,
        driver: str = "",
        model: str = "",
        wbt_us: int | None = None,
        write_cache: str = "write back",
    ) -> None:
        """A local disk. Without `driver` it is an NVMe one."""
        offered = ("none", "mq-deadline", "kyber", "bfq")
        listed = " ".join(f"[{each}]" if each == scheduler else each for each in offered)
        host = number[1] // 16
        under = f"pci0000:00/host{host}/target{host}:0:0/{host}:0:0:0" if driver else f"pci0000:00/nvme/{name}"
        home = self.device(name, number, under=under, scheduler=listed, rotational=str(int(is_rotational)))
        (home / "queue/write_cache").write_text(f"{write_cache}\n")
        (home / "stat").write_text(" ".join(17 * ["0"]) + "\n")
        usual_us = 75_000 if is_rotational else 2_000
        (home / "queue/wbt_lat_usec").write_text(f"{usual_us if wbt_us is None else wbt_us}\n")
        if driver:
            self.write(f"/sys/class/scsi_host/host{host}/proc_name", f"{driver}\n")
            (self.root / f"sys/module/{driver}").mkdir(parents=True, exist_ok=True)
            vendor, _, product = model.partition(" ")
            self.write(f"/sys/block/{name}/device/vendor", f"{vendor}\n")
            self.write(f"/sys/block/{name}/device/model", f"{product}\n")

    def file_systems(self, root_disk: tuple[int, int]) -> None:
        """/ on one disk, and what is always there."""
        self.number["/"] = root_disk
        self.mount("/", "ext4", "/dev/mapper/pve-root")
        self.mount("/dev", "devtmpfs", "udev")
        self.mount("/etc/pve", "fuse", "/dev/fuse")
        self.place("/var/lib/vz/dump", root_disk)

    def logical_volume(
        self, group: str, name: str, disks: Sequence[str], size_gib: int = 32, **report: str
    ) -> tuple[int, int]:
        """A volume that is active, and its number; `report` as lvs(8) has it."""
        device, number = f"dm-{self._dm}", (252, self._dm)
        self._dm += 1
        home = self.device(device, number, slaves=disks)
        (home / "stat").write_text(" ".join(17 * ["0"]) + "\n")
        self.write(f"/sys/block/{device}/dm/name", f"{group}-{name.replace('-', '--')}\n")
        self.place(f"/dev/{group}/{name}", number)
        self.place(f"/dev/{device}", number)
        row = {"vg_name": group, "lv_name": name, "lv_attr": "-wi-ao----", "lv_size": str(size_gib * GIB), "origin": ""}
        row |= {"data_percent": "", "metadata_percent": "", "vg_free": str(200 * GIB)}
        self._volumes.append(row | report)
        answer = json.dumps({"report": [{"lv": self._volumes}]})
        self.program("/usr/sbin/lvs", f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
        return number

    def storages(self, **sections: Mapping[str, str]) -> None:
        """/etc/pve/storage.cfg: `nas={"type": "nfs", "path": ...}`; underscores stand for hyphens."""
        texts = []
        for name, options in sections.items():
            lines = "".join(f"\t{key} {value}\n" for key, value in options.items() if key != "type")
            texts.append(f"{options['type']}: {name.replace('_', '-')}\n{lines}")
        self.write("/etc/pve/storage.cfg", "\n".join(texts))

    def jobs(self, **sections: Mapping[str, str]) -> None:
        """/etc/pve/jobs.cfg."""
        texts = []
        for name, options in sections.items():
            lines = "".join(f"\t{key} {value}\n" for key, value in options.items())
            texts.append(f"vzdump: {name}\n{lines}")
        self.write("/etc/pve/jobs.cfg", "\n".join(texts))

    def vm(
        self,
        vmid: int,
        options: Mapping[str, str],
        *,
        insides: Mapping[str, str | None] = {},
        runs: bool = True,
        **traits: Any,
    ) -> SimulatedGuest | None:
        """A VM, with its processes and sockets if it runs. `insides`: files that its agent reads; None: not there."""
        self._config(f"/etc/pve/qemu-server/{vmid}.conf", options)
        if not runs:
            return None
        pid = 10_000 + vmid
        self.write(f"/var/run/qemu-server/{vmid}.pid", f"{pid}\n")
        self.write(f"/proc/{pid}/stat", f"{pid} (kvm) S 1 {'0 ' * 17}{100_000} 0\n")
        self.write(f"/proc/{pid}/cmdline", f"/usr/bin/kvm\0-id\0{vmid}\0-name\0{options['name']}\0")
        self.write(f"/proc/{pid}/cgroup", f"0::/qemu.slice/{vmid}.scope\n")
        self.link(f"/proc/{pid}/exe", "/usr/bin/qemu-system-x86_64")
        self.write(f"/sys/fs/cgroup/qemu.slice/{vmid}.scope/cgroup.procs", f"{pid}\n")
        sockets = str(self.root / "var/run/qemu-server")
        guest = self._stack.enter_context(SimulatedGuest(sockets, vmid, **traits))
        guest.files.contents |= {
            f"{HUGE_PAGES}/enabled": "always [madvise] never\n",
            f"{HUGE_PAGES}/defrag": "always defer defer+madvise [madvise] never\n",
            "/proc/sys/kernel/watchdog_thresh": "10\n",
            "/proc/sys/kernel/softlockup_panic": "0\n",
        }
        for path, text in insides.items():
            if text is None:
                guest.files.contents.pop(path, None)
            else:
                guest.files.contents[path] = text
        return guest

    def container(self, vmid: int, options: Mapping[str, str]) -> None:
        """One that runs."""
        self._config(f"/etc/pve/lxc/{vmid}.conf", options)
        (self.root / f"sys/fs/cgroup/lxc/{vmid}/ns").mkdir(parents=True)

    def cron(self, lines: Iterable[str]) -> None:
        """/etc/pve/vzdump.cron."""
        self.write("/etc/pve/vzdump.cron", "".join(f"{line}\n" for line in lines))

    def _config(self, path: str, options: Mapping[str, str]) -> None:
        self.write(path, "".join(f"{key}: {value}\n" for key, value in options.items()))
        name = self.read("/proc/sys/kernel/hostname").strip()
        self.write(f"/etc/pve/nodes/{name}{path.removeprefix('/etc/pve')}", "")
