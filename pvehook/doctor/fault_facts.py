"""What of the node the list of known faults (fault_atlas.py) is held against: versions, drivers, storages, VMs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.debian_version import compare, version_of_kernel
from pvehook.contract.guest_config import boolean, options_of, parse_agent_option, property_string
from pvehook.contract.measured import Absent, Broken
from pvehook.contract.vm_disks import vm_disks
from pvehook.contract.vzdump_config import parse_vzdump_config
from pvehook.doctor.finding import Sources
from pvehook.errors import NodeError
from pvehook.host.backup_jobs import jobs_of_node
from pvehook.host.guest_configs import read_guest_configs
from pvehook.host.mounts import read_mounts
from pvehook.host.node import Node
from pvehook.host.versions import installed_packages, read_versions
from pvehook.host.volumes import read_storages

READ_S: Final = 2.0

_VENDORS: Final = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
_VENDOR: Final = re.compile(r"^vendor_id\s*: (\S+)", re.MULTILINE)

T = TypeVar("T")


class FaultFacts(NamedTuple):
    versions: Mapping[str, str]
    """By package (`fault_atlas.PACKAGES`), as Debian spells them; `kernel` is the one that runs."""
    unknown: tuple[str, ...]
    """Why some of them, or some of the rest, are not known."""
    drivers: frozenset[str]
    """Of the kernel, loaded or built in."""
    cpu: str
    """`intel`, `amd`, or empty."""
    mounted: frozenset[str]
    """Types of the file systems."""
    numa_nodes: int
    storages: frozenset[str] | None
    """Types of those that are not disabled; None: not known, as below."""
    fleecing: bool | None
    """A job of this node or /etc/vzdump.conf turns it on."""
    vms: Mapping[int, frozenset[str]] | None
    """What each VM is, of `fault_atlas.GUESTS`."""


def gather(sources: Sources) -> FaultFacts:
    """Never raises."""
    node = sources.node
    unknown: list[str] = []
    versions = _versions(node, unknown)

    def known(what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (NodeError, OSError) as error:
            unknown.append(f"known faults that depend on {what}: {error}")
            return None

    storages = known("the storages", lambda: _storages(sources))
    fleecing = known("the backup jobs", lambda: _fleecing(sources))
    vms = known("the VMs", lambda: _vms(sources))
    return FaultFacts(
        versions,
        tuple(unknown),
        frozenset(_names(node, "/sys/module")),
        _cpu(node),
        frozenset(mount.fs_type for mount in read_mounts(node)),
        sum(re.fullmatch(r"node\d+", name) is not None for name in _names(node, "/sys/devices/system/node")),
        storages,
        fleecing,
        vms,
    )


def _versions(node: Node, unknown: list[str]) -> dict[str, str]:
    kernel = read_versions(node).kernel
    packages = installed_packages(node)
    found: dict[str, str] = {}
    if isinstance(kernel, (Absent, Broken)):
        unknown.append(f"known faults of the kernel: {kernel.why}")
    elif (version := version_of_kernel(kernel)) is None:
        unknown.append(f"known faults of the kernel: {kernel} is no kernel of Proxmox VE")
    else:
        found["kernel"] = version
    if isinstance(packages, (Absent, Broken)):
        unknown.append(f"known faults of Proxmox VE: {packages.why}")
        return found
    for name in ("pve-qemu-kvm", "qemu-server", "pve-manager"):
        try:
            compare(packages.get(name, ""), "0")
        except ValueError as error:
            why = str(error) if name in packages else "the package is not installed"
            unknown.append(f"known faults of {name}: {why}")
        else:
            found[name] = packages[name]
    return found


def _cpu(node: Node) -> str:
    vendor = _VENDOR.search(node.read("/proc/cpuinfo")[:4096].decode("ascii", errors="replace"))
    return _VENDORS.get(vendor[1], "") if vendor else ""


def _names(node: Node, directory: str) -> list[str]:
    try:
        return os.listdir(node.path(directory))
    except OSError:
        return []


def _storages(sources: Sources) -> frozenset[str]:
    storages = read_storages(sources.node, sources.reader)
    return frozenset(each.type for each in storages if not boolean(each.properties.get("disable")))


def _fleecing(sources: Sources) -> bool:
    text = sources.reader.text(sources.node.path("/etc/vzdump.conf"), sources.deadline.within(READ_S).left_s())
    jobs = jobs_of_node(sources.node, sources.reader, sources.node_name)
    return any(_fleeces(options) for options in (parse_vzdump_config(text or ""), *(job.options for job in jobs)))


def _fleeces(options: Mapping[str, str]) -> bool:
    enabled, _ = property_string(options.get("fleecing", ""), default_key="enabled")
    return boolean(enabled) is True


def _vms(sources: Sources) -> dict[int, frozenset[str]]:
    guests = read_guest_configs(sources.node, sources.reader, sources.deadline.within(READ_S).left_s())
    return {each.vmid: traits_of(options_of(each.text)) for each in guests if each.vmtype == "qemu"}


def traits_of(options: Mapping[str, str]) -> frozenset[str]:
    """What a VM is, of `fault_atlas.GUESTS`."""
    disks = vm_disks(options)
    ostype = options.get("ostype", "other")
    traits = {
        "agent": parse_agent_option(options.get("agent")).enabled,
        "iothread": any(disk.has_io_thread for disk in disks),
        "linux": ostype == "l26",
        "sata": any(disk.bus == "sata" for disk in disks),
        "tpm": "tpmstate0" in options,
        "virtio-blk-iothread": any(disk.bus == "virtio" and disk.has_io_thread for disk in disks),
        "virtio-scsi": any(disk.bus == "scsi" and disk.controller.startswith("virtio-scsi") for disk in disks),
        "windows": ostype in ("win10", "win11"),
    }
    return frozenset(name for name, is_so in traits.items() if is_so)
