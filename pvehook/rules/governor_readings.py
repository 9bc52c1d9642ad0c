"""What the governor decides by: samples of QEMU's counters, and readings made of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pvehook.contract.latency import REQUEST_KINDS, RequestCounters
from pvehook.rules.governor_constants import TAIL_PART
from pvehook.rules.latency import NS_PER_MS, NS_PER_S, latency_of, sum_of


class Sample(NamedTuple):
    """What happened since the sample before."""

    at_s: float
    """On a clock that only goes forward."""
    period_s: float
    completed: Mapping[str, RequestCounters]
    """By kind of request, all disks of the guest together (rules.latency.disks_between)."""
    copied_bytes: int
    """Progress of the backup's jobs, copy-before-write included."""
    remaining_bytes: int

    @property
    def operations(self) -> int:
        return sum(each.operations for each in self.completed.values())


class Reading(NamedTuple):
    """What several samples show together."""

    seconds: float
    operations: int
    latency_ms: float
    in_flight: float
    """Requests, on average (Little's law)."""
    copied_per_s: float
    read_ms: float | None
    write_ms: float | None
    is_silence: bool = False
    """A busy guest completed nothing: the latency is the age of what it waits for."""

    def __str__(self) -> str:
        if self.is_silence:
            return f"nothing of a busy guest was completed for {self.latency_ms / 1000:.1f} s"
        return f"its requests took {in_ms(self.latency_ms)} ({self.operations} in {self.seconds:.1f} s)"


def effective_latency_ms(mean_ms: float, p99_ms: float | None) -> float:
    """One figure for how long requests took: the mean, or a third of the p99 where that is more, so that a few which
    take a second among many quick ones are not lost."""
    return max(mean_ms, TAIL_PART * (p99_ms or 0.0))


def target_ms(baseline_ms: float | None, floor_ms: float, factor: float) -> float:
    """The latency that a guest is to keep: a multiple of what it had before. Without a baseline its disks are taken to
    be as slow as the floor."""
    return max(floor_ms, factor * (floor_ms if baseline_ms is None else baseline_ms))


def reading_of(samples: Sequence[Sample]) -> Reading:
    seconds = sum(each.period_s for each in samples)
    kinds = {kind: sum_of(each.completed[kind] for each in samples if kind in each.completed) for kind in REQUEST_KINDS}
    total = sum_of(kinds.values())
    latency = latency_of(total)
    return Reading(
        seconds=seconds,
        operations=total.operations,
        latency_ms=0.0 if latency.mean_ms is None else effective_latency_ms(latency.mean_ms, latency.p99_ms),
        in_flight=total.total_time_ns / NS_PER_S / max(seconds, 1e-3),
        copied_per_s=sum(each.copied_bytes for each in samples) / max(seconds, 1e-3),
        read_ms=_mean_ms(kinds["read"]),
        write_ms=_mean_ms(sum_of((kinds["write"], kinds["flush"]))),
    )


def together(readings: Sequence[Reading]) -> Reading:
    """One reading of several, each weighted by its seconds."""
    seconds = sum(each.seconds for each in readings)
    return readings[-1]._replace(
        seconds=seconds,
        operations=sum(each.operations for each in readings),
        latency_ms=sum(each.latency_ms * each.seconds for each in readings) / seconds,
        copied_per_s=sum(each.copied_per_s * each.seconds for each in readings) / seconds,
        is_silence=all(each.is_silence for each in readings),
    )


def _mean_ms(counters: RequestCounters) -> float | None:
    return counters.total_time_ns / counters.operations / NS_PER_MS if counters.operations else None


def in_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def in_mb_per_s(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
