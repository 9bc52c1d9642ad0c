"""What the host's checks go by: versions, the kernel's log since the boot, memory and swap, stolen time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.debian_version import version_of_kernel
from pvehook.contract.guest_config import boolean, split_list
from pvehook.contract.huge_pages import ENABLED, parse_choice
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.node_memory import Swap, available_bytes, parse_numbers, parse_swaps, steal_share
from pvehook.contract.section_config import Section
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.doctor.finding import Sources
from pvehook.errors import NodeError
from pvehook.host.block import locate
from pvehook.host.kernel_log import read_past_log
from pvehook.host.node import Node
from pvehook.host.pressure import recent_memory_share
from pvehook.host.processes import running_containers
from pvehook.host.versions import installed_packages, read_versions
from pvehook.host.volumes import locate_dump, locate_storage, read_storages
from pvehook.rules.kernel_lines import classify

T = TypeVar("T")

LOG_S: Final = 1.0
LINE_LIMIT: Final = 120
DISKS_S: Final = 5.0
"""For all storages and swaps together; without an answer by then, what is on the disks is not known."""
PINS: Final = ("/etc/kernel/proxmox-boot-pin", "/etc/kernel/next-boot-pin")
"""Where `proxmox-boot-tool kernel pin` writes the kernel that is to be booted."""
_PACKAGE: Final = re.compile(r"(?:proxmox|pve)-kernel-(.+-pve)(?:-signed)?")
_PAGE_BYTES: Final = 4096


class Seen(NamedTuple):
    """Lines of one kind in the kernel's log (rules/kernel_lines.py)."""

    lines: int
    last_ago_s: float
    last: str
    """Fit to be shown."""


class KernelEvents(NamedTuple):
    by_kind: Mapping[str, Seen]
    is_whole: bool
    """The log goes back to the boot."""
    uptime_s: float


class Memory(NamedTuple):
    total_bytes: int
    available_bytes: int
    waiting: tuple[float, float]
    """The shares of the last 300 s in which some and all processes waited for memory."""


class SwapPlace(NamedTuple):
    swap: Swap
    on_zvol: bool
    shared: Mapping[str, tuple[str, ...]]
    """Its disks on which there are guests or archives, and what: `storage local-lvm (guests)`."""


class HostFacts(NamedTuple):
    now: datetime
    kernel: Measured[str]
    pve_manager: Measured[str]
    newest_kernel: str
    """Installed, as `uname -r` would have it; empty: none is known."""
    pinned: str
    """The kernel that is to be booted by an administrator's choice; empty: none."""
    has_pressure: bool
    command_line: tuple[str, ...]
    """The kernel's."""
    events: Measured[KernelEvents]
    memory: Measured[Memory]
    swaps: tuple[SwapPlace, ...]
    swapped_in_bytes: int
    """Read back from swap since the boot."""
    stolen: Measured[float]
    """Share of the CPU time since the boot."""
    huge_pages: Measured[str]
    containers: int
    """That run."""
    unknown: tuple[str, ...]


def gather(sources: Sources) -> HostFacts:
    """Never raises."""
    node = sources.node
    kernel, pve_manager = read_versions(node)
    unknown: list[str] = []
    return HostFacts(
        sources.now,
        kernel,
        pve_manager,
        _newest_kernel(node),
        next((text for path in PINS if (text := _text(node, path))), ""),
        bool(_text(node, "/proc/pressure/cpu")),
        tuple(_text(node, "/proc/cmdline").split()),
        _events(node, sources.deadline.within(LOG_S)),
        _memory(node),
        _swaps(sources, unknown),
        parse_numbers(_text(node, "/proc/vmstat")).get("pswpin", 0) * _PAGE_BYTES,
        _measured(node, "/proc/stat", steal_share),
        _huge_pages(node),
        len(running_containers(node)),
        tuple(unknown),
    )


def _text(node: Node, path: str) -> str:
    return node.read(path).decode(errors="replace").strip()


def _measured(node: Node, path: str, parse: Callable[[str], T]) -> Measured[T]:
    text = _text(node, path)
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        return Broken(f"{path}: {error}" if text else f"{path} cannot be read")


def _huge_pages(node: Node) -> Measured[str]:
    if not os.path.exists(node.path(ENABLED)):
        return Absent("this kernel has none")
    return _measured(node, ENABLED, parse_choice)


def _newest_kernel(node: Node) -> str:
    packages = installed_packages(node)
    if isinstance(packages, (Absent, Broken)):
        return ""
    releases = [match[1] for name in packages if (match := _PACKAGE.fullmatch(name))]
    return max((each for each in releases if version_of_kernel(each)), key=_numbers, default="")


def _numbers(release: str) -> list[int]:
    """Of `6.17.4-2-pve`: 6, 17, 4, 2."""
    return [int(each) for each in re.findall(r"\d+", release)]


def _events(node: Node, deadline: Deadline) -> Measured[KernelEvents]:
    log = read_past_log(node, deadline)
    if isinstance(log, (Absent, Broken)):
        return log
    try:
        uptime_s = float(_text(node, "/proc/uptime").split()[0])
    except (IndexError, ValueError):
        return Broken("/proc/uptime cannot be read")
    seen: dict[str, Seen] = {}
    for line in log.lines:
        kind = classify(line.text)
        if kind is not None:
            lines = seen[kind].lines + 1 if kind in seen else 1
            seen[kind] = Seen(lines, max(uptime_s - line.at_us / 1e6, 0.0), printable(line.text, LINE_LIMIT))
    return KernelEvents(seen, log.is_whole, uptime_s)


def _memory(node: Node) -> Measured[Memory]:
    arcstats = parse_numbers(_text(node, "/proc/spl/kstat/zfs/arcstats"))

    def parse(text: str) -> Memory:
        meminfo = parse_numbers(text)
        return Memory(meminfo["MemTotal"] * 1024, available_bytes(meminfo, arcstats), recent_memory_share(node))

    return _measured(node, "/proc/meminfo", parse)


def _swaps(sources: Sources, unknown: list[str]) -> tuple[SwapPlace, ...]:
    """The disks are asked for only where something is swapped out."""
    swaps = parse_swaps(_text(sources.node, "/proc/swaps"))
    shared: Mapping[Swap, Mapping[str, tuple[str, ...]]] = {}
    used = [swap for swap in swaps if swap.used_bytes and not _is_zvol(swap)]
    if used:
        try:
            storages = read_storages(sources.node, sources.reader)
            shared = sources.reader.within(
                sources.deadline.within(DISKS_S).left_s(),
                "the disks of the storages",
                lambda: _shared(sources, used, storages),
            )
        except (NodeError, OSError) as error:
            unknown.append(f"whether swap is on the guests' disks: {error}")
    return tuple(SwapPlace(swap, _is_zvol(swap), shared.get(swap, {})) for swap in swaps)


def _is_zvol(swap: Swap) -> bool:
    return re.fullmatch(r"/dev/(?:zd\d+|zvol/.+)", swap.path) is not None


def _shared(sources: Sources, swaps: list[Swap], storages: list[Section]) -> dict[Swap, dict[str, tuple[str, ...]]]:
    """What is on the disks of each swap, by disk."""
    node = sources.node
    on_disks: dict[str, list[str]] = {}
    for storage in storages:
        nodes = split_list(storage.properties.get("nodes", sources.node_name))
        if boolean(storage.properties.get("disable")) or sources.node_name not in nodes:
            continue
        content = {*split_list(storage.properties.get("content", "images,rootdir"))}
        if content & {"images", "rootdir"}:
            for disk in locate_storage(node, storage.id, storages).disks:
                on_disks.setdefault(disk.name, []).append(f"storage {storage.id} (guests)")
        if "backup" in content:
            for disk in locate_dump(node, None, storage.id, storages).disks:
                on_disks.setdefault(disk.name, []).append(f"storage {storage.id} (archives)")
    return {
        swap: {
            disk.name: tuple(on_disks[disk.name]) for disk in locate(node, swap.path).disks if disk.name in on_disks
        }
        for swap in swaps
    }
