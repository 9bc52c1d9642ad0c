"""What of the node itself makes guests stall, or hides it: its kernel, its memory, its time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Final

from pvehook.contract.debian_version import compare, version_of_kernel
from pvehook.contract.huge_pages import ENABLED
from pvehook.contract.measured import Broken, value_of
from pvehook.doctor.finding import Check, Finding, Group, Severity
from pvehook.doctor.host_facts import HostFacts, Memory, gather
from pvehook.records.figures import short_duration

END_OF_LIFE: Final = {"8": date(2026, 8, 31)}
"""Of the releases that pvehook runs on, the month's last day. Source: pve-faq.adoc of pve-docs at e5010dcea566."""

LOCKUPS: Final = ("hard-lockup", "soft-lockup", "rcu-stall", "workqueue-lockup", "hung-task")
DISK_TROUBLE: Final = ("storage-timeout", "storage-error")
RECENT_S: Final = 7 * 86400.0
"""What happened since is a warning, what is older a note."""
LONG_INTERRUPTS: Final = 10
"""The kernel allows 2.5 us at first and a quarter more after each line, so that many mean 18 us; a few lines in the
weeks after a boot are usual. Source: `perf_sample_event_took` in kernel/events/core.c of Linux."""
SWAPPED_BYTES: Final = 256 << 20
"""Both in swap now and read back since the boot: less is what the kernel puts there of what nobody uses."""
LEAST_AVAILABLE: Final = 0.05
WAITING: Final = 0.05
"""Of the last 300 s some process waited for memory."""
STOLEN: Final = 0.01
STOLEN_MUCH: Final = 0.05
_LESS_MEMORY: Final = ("free -h; give guests less memory, or the node more",)
_GIB: Final = 1 << 30


def pressure_off(facts: HostFacts) -> Iterator[Finding]:
    if facts.has_pressure:
        return
    if "psi=0" in facts.command_line:
        why = "the kernel's command line has psi=0"
        remedy: tuple[str, ...] = (
            "take psi=0 out of /etc/default/grub and run update-grub (with systemd-boot: /etc/kernel/cmdline and"
            " proxmox-boot-tool refresh)",
            "reboot",
        )
    else:
        why = "the running kernel does not keep it"
        remedy = ("boot a kernel of Proxmox VE, or add psi=1 to the kernel's command line",)
    yield Finding(
        "node", "warning", f"there is no /proc/pressure: {why}, so that a container's stalls are not seen", remedy
    )


def end_of_life(facts: HostFacts) -> Iterator[Finding]:
    version = value_of(facts.pve_manager) or ""
    major = version.partition(".")[0]
    end = END_OF_LIFE.get(major)
    if end is not None and facts.now.date() > end:
        evidence = f"Proxmox VE {version} gets no more updates since {end:%B %Y}, no fixes for backups either"
        following = int(major) + 1
        page = f"https://pve.proxmox.com/wiki/Upgrade_from_{major}_to_{following}"
        yield Finding("node", "warning", evidence, (f"pve{major}to{following} --full", page))


def older_kernel_runs(facts: HostFacts) -> Iterator[Finding]:
    runs = value_of(facts.kernel) or ""
    running, newest = version_of_kernel(runs), version_of_kernel(facts.newest_kernel)
    if facts.pinned or running is None or newest is None or compare(running, newest) >= 0:
        return
    evidence = f"{runs} runs, and {facts.newest_kernel} is installed: its fixes come with the next boot"
    yield Finding("node", "note", evidence, ("reboot",))


def lockups(facts: HostFacts) -> Iterator[Finding]:
    words = "what stops the node stops every guest"
    yield from _in_kernel_log(facts, LOCKUPS, words, "lockup|self-detected stall|detected stalls|blocked for more than")


def disk_trouble(facts: HostFacts) -> Iterator[Finding]:
    words = "everything on that disk or target stands still meanwhile"
    yield from _in_kernel_log(facts, DISK_TROUBLE, words, "abort|reset|timed out|timeout|i/o error|not responding")


def _in_kernel_log(facts: HostFacts, kinds: tuple[str, ...], words: str, pattern: str) -> Iterator[Finding]:
    events = value_of(facts.events)
    if events is None:
        return
    since = "since the boot" if events.is_whole else "in what the kernel's log still has"
    for kind in kinds:
        if (seen := events.by_kind.get(kind)) is not None:
            severity: Severity = "warning" if seen.last_ago_s < RECENT_S else "note"
            number = f"{seen.lines} line{'s' if seen.lines > 1 else ''}"
            evidence = f"{number} of kind {kind} {since}; {words}. The last, {_ago(seen.last_ago_s)}: {seen.last}"
            yield Finding("node", severity, evidence, (f"journalctl -k -b --grep '{pattern}'",))


def long_interrupts(facts: HostFacts) -> Iterator[Finding]:
    events = value_of(facts.events)
    seen = events.by_kind.get("long-interrupt") if events is not None else None
    if seen is not None and seen.lines >= LONG_INTERRUPTS:
        evidence = (
            f"{seen.lines} lines of the kernel say that interrupts took too long (under {LONG_INTERRUPTS} are usual):"
            " firmware, a hypervisor below or an overloaded CPU takes time from all guests."
            f" The last, {_ago(seen.last_ago_s)}: {seen.last}"
        )
        remedy = ("journalctl -k -b --grep 'took too long'", "update the firmware; power profile: performance")
        yield Finding("node", "note", evidence, remedy)


def swap_on_zvol(facts: HostFacts) -> Iterator[Finding]:
    for place in facts.swaps:
        if place.on_zvol:
            evidence = (
                f"swap is on the zvol {place.swap.path}: ZFS needs memory to write there, which can block the node,"
                " often when a backup begins"
            )
            remedy = (f"swapoff {place.swap.path}", "take it out of /etc/fstab; a partition of a disk is safe")
            yield Finding("node", "warning", evidence, remedy)


def swap_beside_guests(facts: HostFacts) -> Iterator[Finding]:
    if facts.swapped_in_bytes < SWAPPED_BYTES:
        return
    for place in facts.swaps:
        if place.shared and place.swap.used_bytes >= SWAPPED_BYTES:
            disk, others = next(iter(place.shared.items()))
            evidence = (
                f"{place.swap.used_bytes / _GIB:.1f} GiB of memory is in swap {place.swap.path} on {disk}, the disk of"
                f" {' and '.join(others)}, and {facts.swapped_in_bytes / _GIB:.1f} GiB were read back since the boot:"
                " a backup makes that wait, and the other way round"
            )
            remedy = (*_LESS_MEMORY, "sysctl -w vm.swappiness=10")
            yield Finding("node", "note", evidence, remedy)


def memory_pressure(facts: HostFacts) -> Iterator[Finding]:
    memory = value_of(facts.memory)
    if memory is None or memory.total_bytes <= 0:
        return
    some, full = memory.waiting
    if some >= WAITING:
        evidence = (
            f"in {some:.0%} of the last five minutes a process waited for memory, in {full:.0%} all did (under"
            f" {WAITING:.0%} was expected); {_available(memory)}"
        )
        yield Finding("node", "warning", evidence, _LESS_MEMORY)
    elif memory.available_bytes < LEAST_AVAILABLE * memory.total_bytes:
        evidence = f"{_available(memory)}, under {LEAST_AVAILABLE:.0%}: a backup's page cache pushes others out"
        yield Finding("node", "note", evidence, _LESS_MEMORY)


def _available(memory: Memory) -> str:
    return f"{memory.available_bytes / _GIB:.1f} of {memory.total_bytes / _GIB:.1f} GiB of memory can be had"


def stolen_time(facts: HostFacts) -> Iterator[Finding]:
    stolen = value_of(facts.stolen)
    if stolen is not None and stolen >= STOLEN:
        evidence = (
            f"a hypervisor below this node took {stolen:.1%} of its CPU time since the boot: guests stall with no cause"
            " that this node could show"
        )
        severity: Severity = "warning" if stolen >= STOLEN_MUCH else "note"
        remedy = ("on the host below: give this VM cores of its own, or move others away",)
        yield Finding("node", severity, evidence, remedy)


def huge_pages(facts: HostFacts) -> Iterator[Finding]:
    if facts.huge_pages == "always" and facts.containers:
        evidence = (
            f"{ENABLED} is always (Proxmox VE's own is madvise), so that processes in containers may wait while the"
            f" kernel makes room for huge pages; {facts.containers} run{'s' if facts.containers == 1 else ''}"
        )
        now = f"echo madvise > {ENABLED}"
        yield Finding("node", "note", evidence, (now, "take transparent_hugepage=always off the kernel's command line"))


def missing(facts: HostFacts) -> tuple[str, ...]:
    """What could not be checked of the host; what it does not have needs no check."""
    parts = {
        "the kernel's log": facts.events,
        "the running kernel": facts.kernel,
        "the version of Proxmox VE": facts.pve_manager,
        "memory": facts.memory,
        "stolen CPU time": facts.stolen,
        "the node's huge pages": facts.huge_pages,
    }
    whys = (f"{what}: {part.why}" for what, part in parts.items() if isinstance(part, Broken))
    return (*whys, *facts.unknown)


def _ago(seconds: float) -> str:
    return f"{short_duration(seconds)} ago"


CHECKS: Final[tuple[Check[HostFacts], ...]] = (
    Check("PVH-501", "The kernel keeps no pressure information", pressure_off),
    Check("PVH-502", "This Proxmox VE gets no more updates", end_of_life),
    Check("PVH-503", "An older kernel runs than is installed", older_kernel_runs),
    Check("PVH-504", "The node's kernel reports lockups", lockups),
    Check("PVH-505", "The node's kernel reports disks that do not answer", disk_trouble),
    Check("PVH-506", "Interrupts take long", long_interrupts),
    Check("PVH-507", "Swap on a zvol", swap_on_zvol),
    Check("PVH-508", "Swap in use on the disks of guests or archives", swap_beside_guests),
    Check("PVH-509", "The node is short of memory", memory_pressure),
    Check("PVH-510", "A hypervisor below takes CPU time", stolen_time),
    Check("PVH-511", "Huge pages for every process of the node", huge_pages),
)

GROUP: Final = Group("host", gather, missing, CHECKS)
