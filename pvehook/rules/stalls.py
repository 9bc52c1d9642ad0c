"""What counts as a stall, how bad a guest's night was, and why: pure, from the three views.

A stall is guest-visible time in which a guest that wanted to make progress could not.

`stalled_s`: seconds in which a disk request of the guest was on its way that took more than 1 s. `slowed_s`: the same
for more than 100 ms. Both are lower bounds. They come from looking twice a second at what QEMU has completed: a request
that took 3.2 s and was seen as completed at 02:14:07.5 covers 02:14:04.3 to 02:14:07.5; time that several requests
cover together counts once; of requests that completed between the same two samples only the slowest counts.

    a writer inside the guest        0.0 ......... 2.6 | 2.6 ....... 5.3 |        waited 2.6 s, then 2.7 s
    seen at 3.0 and 5.5                          2.6 s           2.7 s           stalled_s = 5.3

When it was completed is known to half a second, so each stretch is right to that. Requests still pending when the
backup ends are not counted. A frozen guest waits before its requests reach QEMU, so time frozen, from FROZEN_MS on, is
time stalled: `stalled_s` is at least that long. How far the two overlap is unknown, so they are not added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from pvehook.contract.latency import RequestCounters
from pvehook.contract.measured import Measured, value_of
from pvehook.rules.latency import NS_PER_S, Latency, count_from, middle_ns

STALLED_AFTER_S: Final = 1.0
SLOWED_AFTER_S: Final = 0.1

Severity = Literal["none", "slowed", "stalled", "locked-up", "unknown"]
SEVERITIES: Final[tuple[Severity, ...]] = ("unknown", "none", "slowed", "stalled", "locked-up")
"""From least to worst; `unknown` is not ranked."""

SLOWED_FROM_S: Final = 1.0
"""This much of `slowed_s` makes a night slowed."""
SILENT_FROM_S: Final = 10.0
"""A QEMU that does not answer for so long may have stood still with its guest. Proxmox's own commands take less. How
the guest was in that time nobody can say."""
CPU_PART: Final = 0.1
"""Of a vCPU's time: waiting for a CPU beyond this is worth a word."""
MEMORY_PART: Final = 0.05
"""Of the time: nothing could go on for lack of memory."""
FROZEN_MS: Final = 1000
FEW_READS: Final = 20
"""With fewer reads than this it is unknown whether reads were slow, too."""
MUCH_SLOWER: Final = 5.0
"""This many times slower is another kind of slow."""

LOCKUPS: Final = frozenset({"soft-lockup", "hard-lockup", "rcu-stall", "workqueue-lockup", "hung-task"})
"""Kinds of kernel lines (rules/kernel_lines.py) that report that something in this guest was stuck for 10 s or more."""


class PressureSeconds(NamedTuple):
    """Seconds during the backup in which something (`some`) or everything (`full`) waited."""

    some_s: float
    full_s: float


class KernelEvent(NamedTuple):
    """One line of a kernel's log that matters."""

    at_s: float
    """Seconds since the epoch."""
    kind: str
    text: str


class GuestView(NamedTuple):
    """The guest's own counters."""

    cpu: Measured[PressureSeconds]
    io: Measured[PressureSeconds]
    memory: Measured[PressureSeconds]
    steal_s: Measured[float]
    kernel: Measured[tuple[KernelEvent, ...]]
    kernel_missing: tuple[str, ...] = ()
    """What of its kernel's log was not seen, and why."""


class HypervisorView(NamedTuple):
    """QEMU's counters of the guest's disk requests, all disks together."""

    read: Latency
    write: Latency
    flush: Latency
    stalled_s: float
    slowed_s: float
    samples: int
    silence_ms: float
    """The longest time in which QEMU did not answer."""
    run_state: str
    their_histograms: tuple[str, ...] = ()
    """Disks whose histogram an administrator has armed: read, and left as it is."""
    not_armed: tuple[str, ...] = ()
    """Disks without a histogram, each with the reason."""


class HostView(NamedTuple):
    """The node's counters."""

    run_delay_s: Measured[float]
    """What all vCPUs together waited for a CPU."""
    worst_vcpu_s: Measured[float]
    io_full_s: Measured[float]
    """Of the whole node: nothing on it could go on for lack of a disk."""
    cpu_some_s: Measured[float]
    memory_full_s: Measured[float]
    guest_cpu: Measured[PressureSeconds]
    guest_memory: Measured[PressureSeconds]
    guest_io: Measured[PressureSeconds]
    """Containers only: of a VM's cgroup it would be wrong (facts/qemu.md)."""
    kernel: Measured[tuple[KernelEvent, ...]]
    agent_slowest_ms: Measured[float]
    """The longest that the guest's agent let a ping wait."""
    kernel_missing: tuple[str, ...] = ()
    """What of the node's log was not seen or is not kept, and why."""


class Cause(NamedTuple):
    """Why a guest probably stalled, in words, with what speaks for it."""

    kind: Literal["slow-target", "shared-disks", "disks", "cpu", "freeze", "memory"]
    text: str
    evidence: str


class Verdict(NamedTuple):
    severity: Severity
    stalled_s: float | None
    """None if it could not be observed."""
    slowed_s: float | None
    causes: tuple[Cause, ...]


# Counting


class Count(NamedTuple):
    """The state of one counter of stalled seconds. Times are on any clock that only goes forward."""

    after_s: float
    total_s: float = 0.0
    run_began_s: float = 0.0
    """When the stretch of requests that follow each other began."""
    run_total_s: float = 0.0
    run_ended_s: float = float("-inf")


def count_stall(count: Count, at_s: float, since_s: float, completed: Mapping[str, RequestCounters]) -> Count:
    """The counter after one sample at `at_s`, with the requests that completed since `since_s`."""
    slowest_s = max((_slowest_s(each, count.after_s) for each in completed.values()), default=0.0)
    return count_wait(count, at_s, since_s, slowest_s)


def count_wait(count: Count, at_s: float, since_s: float, slowest_s: float) -> Count:
    """As `count_stall`, where it is known of one request that completed since `since_s` that it took that long."""
    if slowest_s < count.after_s:
        return count
    period_s = at_s - since_s
    began_s = at_s - slowest_s
    if began_s > count.run_ended_s + period_s:  # even a whole period earlier it began after the last one ended
        count = count._replace(run_began_s=began_s, run_total_s=0.0)
    # A stretch of requests that follow each other cannot have taken longer than from its beginning to now.
    room_s = at_s - count.run_began_s - count.run_total_s
    counted_s = min(slowest_s, max(room_s, 0.0))
    return count._replace(
        total_s=count.total_s + counted_s, run_total_s=count.run_total_s + counted_s, run_ended_s=at_s
    )


def _slowest_s(completed: RequestCounters, after_s: float) -> float:
    """How long the slowest request took, if it took longer than `after_s`; else 0."""
    histogram = completed.histogram
    if histogram is None:
        return 0.0
    slow = count_from(histogram, round(after_s * NS_PER_S))
    if not slow:
        return 0.0
    index = max(index for index, number in enumerate(histogram.counts) if number)
    middle_s = middle_ns(histogram, index) / NS_PER_S
    if slow > 1:
        return middle_s
    # A single slow one: the others took little beside it, so the sum of all gives its duration.
    all_ns = sum(number * middle_ns(histogram, each) for each, number in enumerate(histogram.counts) if number)
    exact_s = (completed.total_time_ns - all_ns) / NS_PER_S + middle_s
    bounds = histogram.boundaries_ns
    low_s = bounds[index - 1] / NS_PER_S
    high_s = bounds[index] / NS_PER_S if index < len(bounds) else float("inf")
    return exact_s if low_s <= exact_s <= high_s else middle_s


# Judging


class Seen(NamedTuple):
    """All that the verdict is made of."""

    duration_s: float
    vcpus: int
    guest: Measured[GuestView]
    hypervisor: Measured[HypervisorView]
    host: Measured[HostView]
    frozen_ms: int | None = None
    shares_disk: bool | None = None
    """Whether the archive is written to a disk that the guest's volumes lie on; None: not known."""
    baseline_write_ms: float | None = None
    """Mean of this guest's writes before its backup."""


def judge(seen: Seen) -> Verdict:
    stalled_s, slowed_s = _stalled_s(seen)
    if seen.frozen_ms is not None and seen.frozen_ms >= FROZEN_MS:  # known even where nothing else could be observed
        frozen_s = seen.frozen_ms / 1000
        stalled_s = max(stalled_s or 0.0, frozen_s)
        slowed_s = max(slowed_s, frozen_s) if slowed_s is not None else None
    hypervisor = value_of(seen.hypervisor)
    found = (_disk_cause(seen), _cpu_cause(seen), _freeze_cause(seen), _memory_cause(seen))
    causes = tuple(cause for cause in found if cause is not None)
    severity: Severity = "none"
    if lockups_of(seen.guest):
        severity = "locked-up"
    elif (stalled_s or 0.0) >= STALLED_AFTER_S:
        severity = "stalled"
    elif (slowed_s or 0.0) >= SLOWED_FROM_S or causes:
        severity = "slowed"
    elif stalled_s is None or (hypervisor is not None and hypervisor.silence_ms >= SILENT_FROM_S * 1000):
        severity = "unknown"
    return Verdict(severity, stalled_s, slowed_s, causes)


def _stalled_s(seen: Seen) -> tuple[float | None, float | None]:
    """Of a VM what QEMU saw; of a container, which has no QEMU, the seconds in which all of it waited for a disk."""
    hypervisor, host = value_of(seen.hypervisor), value_of(seen.host)
    if hypervisor is not None:
        return hypervisor.stalled_s, hypervisor.slowed_s
    waited = value_of(host.guest_io) if host is not None else None
    return (waited.full_s, None) if waited is not None else (None, None)


def lockups_of(guest: Measured[GuestView]) -> list[KernelEvent]:
    """What a guest's own kernel reported; none where its log could not be read."""
    view = value_of(guest)
    events = value_of(view.kernel) if view is not None else None
    return [event for event in events or () if event.kind in LOCKUPS]


def _disk_cause(seen: Seen) -> Cause | None:
    """Copy-before-write holds up writes alone; a disk that is shared holds up reads as well."""
    hypervisor, host = value_of(seen.hypervisor), value_of(seen.host)
    if hypervisor is None:
        return _container_disk_cause(host)
    if hypervisor.slowed_s < SLOWED_FROM_S and hypervisor.stalled_s < STALLED_AFTER_S:
        return None
    writes = (hypervisor.write, hypervisor.flush)
    read_ms, write_ms, of = hypervisor.read.p99_ms, max(each.p99_ms or 0.0 for each in writes), "p99"
    if max(read_ms or 0.0, write_ms) < SLOWED_AFTER_S * 1000:  # most were quick: what was slow shows in the slowest
        read_ms, write_ms, of = hypervisor.read.max_ms, max(each.max_ms or 0.0 for each in writes), "the slowest"
    evidence = f"{of} of {hypervisor.read.operations} reads {_ms(read_ms)}, of writes {_ms(write_ms)}"
    if seen.baseline_write_ms is not None:
        evidence += f"; mean write before {_ms(seen.baseline_write_ms)}, during {_ms(hypervisor.write.mean_ms)}"
    if host is not None and (full_s := value_of(host.io_full_s)) is not None:
        evidence += f"; the node's disks kept everything waiting for {full_s:.1f} s"
    if seen.shares_disk:
        evidence += "; the archive is written to a disk of the guest's own"
    if read_ms is None or hypervisor.read.operations < FEW_READS:
        text = "disk latency: shared disks or a slow target, too few reads to tell them apart"
        return Cause("disks", text, evidence)
    if write_ms >= MUCH_SLOWER * read_ms:
        return Cause("slow-target", "slow target: each first write of the guest waits for the backup's copy", evidence)
    return Cause("shared-disks", "shared disks: the guest's requests queue behind the backup's", evidence)


def _container_disk_cause(host: HostView | None) -> Cause | None:
    waited = value_of(host.guest_io) if host is not None else None
    if waited is None or waited.full_s < SLOWED_FROM_S:
        return None
    evidence = f"all of the container waited for a disk for {waited.full_s:.1f} s, some of it for {waited.some_s:.1f} s"
    return Cause("shared-disks", "shared disks: the container's requests queue behind the backup's", evidence)


def _cpu_cause(seen: Seen) -> Cause | None:
    host, guest = value_of(seen.host), value_of(seen.guest)
    worst_s = value_of(host.worst_vcpu_s) if host is not None else None
    steal_s = value_of(guest.steal_s) if guest is not None else None
    most_s = max(worst_s or 0.0, (steal_s or 0.0) / max(seen.vcpus, 1))
    if most_s < SLOWED_FROM_S or most_s < CPU_PART * seen.duration_s:
        return None
    shown = [f"a vCPU waited {worst_s:.1f} s for a CPU of the node"] if worst_s is not None else []
    shown += [f"the guest counted {steal_s:.1f} s of stolen time"] if steal_s is not None else []
    return Cause("cpu", "CPU: the node had no CPU for it", f"{'; '.join(shown)}; in {seen.duration_s:.0f} s")


def _freeze_cause(seen: Seen) -> Cause | None:
    if seen.frozen_ms is None or seen.frozen_ms < FROZEN_MS:
        return None
    return Cause("freeze", "freeze: its filesystems were frozen", f"for {seen.frozen_ms / 1000:.1f} s")


def _memory_cause(seen: Seen) -> Cause | None:
    host, guest = value_of(seen.host), value_of(seen.guest)
    own = value_of(guest.memory) if guest is not None else None
    nodes_s = value_of(host.memory_full_s) if host is not None else None
    limit_s = max(MEMORY_PART * seen.duration_s, SLOWED_FROM_S)
    shown = [f"inside the guest everything waited {own.full_s:.1f} s"] if own and own.full_s >= limit_s else []
    shown += [f"on the node everything waited {nodes_s:.1f} s"] if nodes_s is not None and nodes_s >= limit_s else []
    return Cause("memory", "memory: it had to be freed first", "; ".join(shown)) if shown else None


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "unknown"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"
