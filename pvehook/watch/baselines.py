"""How a guest was before its backup, or before the first backup of another guest in this run.

    job-start      its histograms are armed and its counters read     node_watch.py
    a backup       what was counted in between is its baseline

The first guest of a run has hardly any time before it. Then the baselines of its last backups count, and for its own
backup, where there are none, the mean since the VM was started, which has no percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pvehook.contract.latency import REQUEST_KINDS, DiskCounters, RequestCounters
from pvehook.contract.measured import Absent, Measured
from pvehook.records.stall_record import Baseline
from pvehook.rules.latency import NS_PER_MS, disks_between, latency_of, sum_of
from pvehook.watch.disk_sampler import went_back

LEAST_S = 20.0
"""A shorter time before its backup says little about a guest."""


class FirstReading(NamedTuple):
    """A guest's counters when its histograms were armed, and when that was, on the monotonic clock."""

    at_s: float
    disks: tuple[DiskCounters, ...]


def baseline_before(
    first: FirstReading | None, at_s: float, disks: Sequence[DiskCounters], past: Baseline | None
) -> Measured[Baseline]:
    """How the guest was before `disks` were read. `past` is of its last backups."""
    if first is not None:
        completed = disks_between(first.disks, disks)
        if at_s - first.at_s >= LEAST_S and any(each.operations for each in completed.values()):
            return _baseline(at_s - first.at_s, "before", completed)
    return past if past is not None else Absent("it was not seen before, and has no backup before this one")


def mean_since_start(disks: Sequence[DiskCounters]) -> Measured[Baseline]:
    """Where nothing else is known."""
    since_start: dict[str, RequestCounters] = {
        kind: sum_of(getattr(disk, kind)._replace(histogram=None) for disk in disks) for kind in REQUEST_KINDS
    }
    if not any(each.operations for each in since_start.values()):
        return Absent("its disks have not been used since it was started")
    return _baseline(0.0, "since-start", since_start)


def of_last_backups(past: Sequence[Baseline]) -> Baseline | None:
    """The middle one of the baselines of a guest's last backups."""
    if not past:
        return None
    return sorted(past, key=lambda each: each.write.mean_ms or 0.0)[len(past) // 2]._replace(source="history")


def requests_between(
    first: FirstReading | None, at_s: float, disks: Sequence[DiskCounters]
) -> tuple[int, float, float] | None:
    """How many requests the guest has made since it was armed, the milliseconds that they took together, and for how
    many seconds it has been armed. None: it was not, or it was started anew since."""
    if first is None or went_back(first.disks, disks):
        return None
    completed = disks_between(first.disks, disks).values()
    total_ms = sum(each.total_time_ns for each in completed) / NS_PER_MS
    return sum(each.operations for each in completed), total_ms, at_s - first.at_s


def _baseline(
    lasted_s: float, source: Literal["before", "since-start"], completed: Mapping[str, RequestCounters]
) -> Baseline:
    return Baseline(
        lasted_s,
        source,
        read=latency_of(completed["read"]),
        write=latency_of(completed["write"]),
        flush=latency_of(completed["flush"]),
        p99_ms=latency_of(sum_of(completed.values())).p99_ms,
    )
