"""What a guest's requests tell between two looks, and over several of them: what the governor decides by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pvehook.contract.latency import RequestCounters
from pvehook.rules.latency import NS_PER_MS, NS_PER_S, latency_of, sum_of

TAIL_PART: Final = 1 / 3
"""A third of the p99 counts as latency where it is more than the mean: of an ordinary mixture of requests it is about
as much, and a few that take a second among many quick ones are not lost in the mean."""


class Sample(NamedTuple):
    """What happened between two looks."""

    at_s: float
    """Of the later look, on a clock that only goes forward."""
    period_s: float
    completed: Mapping[str, RequestCounters]
    """By kind of request, all disks of the guest together (rules.latency.disks_between)."""
    copied_bytes: int
    """By which the jobs went on; what the guest's own first writes made them copy is in it."""
    remaining_bytes: int


class Reading(NamedTuple):
    """What several samples tell together."""

    seconds: float
    operations: int
    latency_ms: float
    on_their_way: float
    """Requests, on average (Little's law)."""
    copied_bytes_per_s: float
    read_ms: float | None
    write_ms: float | None
    is_silence: bool = False
    """Nothing was completed, by a guest that was busy: the latency is the age of what it waits for."""

    def in_words(self) -> str:
        if self.is_silence:
            return f"nothing of a busy guest was completed for {self.latency_ms / 1000:.1f} s"
        return f"its requests took {in_ms(self.latency_ms)} ({self.operations} in {self.seconds:.1f} s)"


def effective_latency_ms(completed: RequestCounters) -> float | None:
    """One figure for how long these requests took, before a backup and during it; None without a request."""
    latency = latency_of(completed)
    if latency.mean_ms is None:
        return None
    return max(latency.mean_ms, TAIL_PART * (latency.p99_ms or 0.0))


def target_ms(baseline_ms: float | None, floor_ms: float, factor: float) -> float:
    """The latency that a guest is to keep: a multiple of what it had before (`felt_ms`). A guest of which nothing is
    known is taken for one whose disks take as long as the floor."""
    return max(floor_ms, factor * (floor_ms if baseline_ms is None else baseline_ms))


def reading_of(samples: Sequence[Sample]) -> Reading:
    seconds = sum(each.period_s for each in samples)
    kinds = {kind: sum_of(each.completed[kind] for each in samples if kind in each.completed) for kind in _KINDS}
    all_kinds = sum_of(kinds.values())
    reads, writes = kinds["read"], sum_of((kinds["write"], kinds["flush"]))
    return Reading(
        seconds=seconds,
        operations=all_kinds.operations,
        latency_ms=effective_latency_ms(all_kinds) or 0.0,
        on_their_way=all_kinds.total_time_ns / NS_PER_S / max(seconds, 1e-3),
        copied_bytes_per_s=sum(each.copied_bytes for each in samples) / max(seconds, 1e-3),
        read_ms=_mean_ms(reads),
        write_ms=_mean_ms(writes),
    )


_KINDS: Final = ("read", "write", "flush")


def _mean_ms(counters: RequestCounters) -> float | None:
    return counters.total_time_ns / counters.operations / NS_PER_MS if counters.operations else None


def together(readings: Sequence[Reading]) -> Reading:
    """One reading of several, the later ones no more than the earlier."""
    seconds = sum(each.seconds for each in readings)
    return readings[-1]._replace(
        seconds=seconds,
        operations=sum(each.operations for each in readings),
        latency_ms=sum(each.latency_ms * each.seconds for each in readings) / seconds,
        copied_bytes_per_s=sum(each.copied_bytes_per_s * each.seconds for each in readings) / seconds,
        is_silence=all(each.is_silence for each in readings),
    )


def in_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def in_mb_per_s(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
