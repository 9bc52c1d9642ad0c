"""Pressure stall information of the node, and of one guest's cgroup.

    /proc/pressure/io                                      the node
    /sys/fs/cgroup/qemu.slice/101.scope/cpu.pressure       all of VM 101 (source: QemuServer.pm of qemu-server)
    /sys/fs/cgroup/lxc/102/io.pressure                     all of container 102 (source: LXC.pm of pve-container)

**A VM's `io` is never given.** Its cgroup does not see QEMU's disk I/O with aio=io_uring (Proxmox's default) or native:
for a guest's fsync of 6.5 s it grew by 0 ms (facts/qemu.md); and on pve-qemu before 10.2.1-2 it shows near 100 % for an
idle disk with an I/O thread.

There is no file, which is no fault, with a kernel built without it, or without psi=1 where that is required (or
EOPNOTSUPP), with 0 in the cgroup's cgroup.pressure (since 6.1), and with cgroup v1. Source: kernel/sched/psi.c and
kernel/cgroup/cgroup.c of Linux.
"""

from __future__ import annotations

import errno
import os
import re

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pressure import RESOURCES, PressureTotals, Resource, parse_pressure
from pvehook.host.node import Node

_RECENT = re.compile(r"^(some|full) .*avg300=(\d{1,3}\.\d\d)", re.MULTILINE)
_LIMIT_BYTES = 4096  # two lines of some 60 bytes


def host_pressure(node: Node) -> dict[Resource, Measured[PressureTotals]]:
    """Stall times of the whole node since it was started."""
    if not os.path.isdir(node.path("/proc/pressure")):
        return dict.fromkeys(RESOURCES, Absent("the node's kernel keeps no pressure information (psi=1 turns it on)"))
    return {each: _read_totals(node.path(f"/proc/pressure/{each}")) for each in RESOURCES}


def guest_pressure(node: Node, vmid: int, vmtype: str | None) -> dict[Resource, Measured[PressureTotals]]:
    """Stall times of one guest's cgroup since the guest was started; a VM's `io` is always absent."""
    cgroup = f"/sys/fs/cgroup/lxc/{vmid}" if vmtype == "lxc" else f"/sys/fs/cgroup/qemu.slice/{vmid}.scope"
    directory = node.path(cgroup)
    if not os.path.isdir(directory):
        return dict.fromkeys(RESOURCES, Absent(f"guest {vmid} has no cgroup {cgroup}: it does not run"))
    found = {each: _read_totals(f"{directory}/{each}.pressure") for each in RESOURCES}
    if vmtype != "lxc":
        found["io"] = Absent("a VM's cgroup does not see what QEMU waits for its disks")
    return found


def recent_io_share(node: Node, vmid: int) -> tuple[float, float]:
    """The shares of the last 300 s in which some and all of a container waited for a disk, 0 to 1; 0 where the kernel
    does not tell."""
    return _recent_share(node, f"/sys/fs/cgroup/lxc/{vmid}/io.pressure")


def recent_memory_share(node: Node) -> tuple[float, float]:
    """The same of the whole node and of what waited for memory."""
    return _recent_share(node, "/proc/pressure/memory")


def _recent_share(node: Node, path: str) -> tuple[float, float]:
    text = node.read(path).decode("ascii", errors="replace")
    shares = {kind: float(percent) / 100 for kind, percent in _RECENT.findall(text)}
    return shares.get("some", 0.0), shares.get("full", 0.0)


def _read_totals(path: str) -> Measured[PressureTotals]:
    try:
        with open(path, "rb") as file:
            return parse_pressure(file.read(_LIMIT_BYTES).decode("ascii", errors="replace"))
    except OSError as error:
        # ENODEV: the cgroup was removed between our opening and our reading it.
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            return Absent(f"{path} is not there, or the kernel keeps no pressure information ({error.strerror})")
        return Broken(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        return Broken(f"{path}: {error}")
