"""What the governor decides by: samples of QEMU's counters, readings made of several, and whether a guest suffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pvehook.contract.latency import REQUEST_KINDS, RequestCounters
from pvehook.rules import governor_constants as c
from pvehook.rules.latency import NS_PER_S, latency_of, sum_of

Culprit = Literal["slow-target", "other-load"]


class Others(NamedTuple):
    """The guests that are still to come: of this run, and of those that wait for the node's lock."""

    guests: int
    need_s: float
    """All of them together (rules/budget.py)."""

    def in_words(self) -> str:
        some = "1 guest is" if self.guests == 1 else f"{self.guests} guests are"
        hours, minutes = divmod(math.ceil(self.need_s / 60), 60)
        return f"{some} still to come and {'needs' if self.guests == 1 else 'need'} {hours}h{minutes:02}"


class NightShare(NamedTuple):
    """What is forecast of this backup and of those behind it, when it begins."""

    others: Others | None = None
    """Who needs a part of the time until the window closes; None: nobody, or that is not known."""
    alone_s: float | None = None
    """How long this backup is expected to take if nobody slows it; None: not known."""


NOTHING_KNOWN: Final = NightShare()


class Bounds(NamedTuple):
    """What the guest and the administrator set."""

    target_ms: float
    original_bytes_per_s: int
    """The administrator's `bwlimit`, UNLIMITED without one: the upper bound, and what is restored."""
    stretch_at_most: float
    starts_slowly: bool = True
    was_idle: bool = False
    """The guest sent its disks hardly any requests before: a few slow ones are no suffering yet."""
    is_neighbours: bool = False
    """Of a guest beside the backup, which starts in small steps for it. That is a quarter of the stalled seconds, for a
    second or two at each start (tests/rules/node_model.py)."""
    window_closes_s: float | None = None
    """On the samples' clock; None: it does not close, or does not matter."""
    night: NightShare = NOTHING_KNOWN

    @property
    def over_by_s(self) -> float | None:
        """When the backup has to be over, so that those who are still to come have their time too."""
        if self.window_closes_s is None:
            return None
        return self.window_closes_s - (self.night.others.need_s if self.night.others is not None else 0.0)

    def has_time(self, at_s: float) -> bool:
        """At its start: whether it may take longer than it would alone."""
        alone_s = self.night.alone_s
        return self.over_by_s is None or alone_s is None or at_s + alone_s < self.over_by_s

    def with_activity(self, operations: int, total_ms: float, seconds: float) -> Bounds:
        """By what the guest asked of its disks before its backup. One that asked for little is not kept waiting by a
        slow start. On quick disks it may be busy all the same; only with few requests as well it was idle."""
        is_busy = total_ms / 1000 / seconds >= c.IDLE_IN_FLIGHT  # requests in flight, on average (Little's law)
        was_idle = not is_busy and operations / seconds < c.IDLE_REQUESTS_PER_S
        return self._replace(starts_slowly=is_busy, was_idle=was_idle)

    def limited(self, speed: float, lowest: float) -> int:
        """A speed that may be set."""
        speed = max(speed, lowest, float(c.MIN_BYTES_PER_S))
        return int(min(speed, float(self.original_bytes_per_s or math.inf)))


class Sample(NamedTuple):
    """What happened since the sample before."""

    at_s: float  # on a clock that only goes forward
    period_s: float
    completed: Mapping[str, RequestCounters]
    """By kind of request, all disks of the guest together (rules.latency.disks_between)."""
    copied_bytes: int
    """Progress of the backup's jobs, copy-before-write included."""
    remaining_bytes: int
    waits: bool | None = None
    """Whether requests were in flight at its end; None: that was not seen."""

    @property
    def operations(self) -> int:
        return sum(each.operations for each in self.completed.values())


class Reading(NamedTuple):
    """What several samples show together."""

    seconds: float
    operations: int
    latency_ms: float
    in_flight: float  # requests, on average (Little's law)
    copied_per_s: float
    read_ms: float | None
    write_ms: float | None
    is_silence: bool = False
    """A busy guest completed nothing: the latency is the age of what it waits for."""

    def __str__(self) -> str:
        if self.is_silence:
            return f"nothing of a busy guest was completed for {self.latency_ms / 1000:.1f} s"
        return f"its requests took {in_ms(self.latency_ms)} ({self.operations} in {self.seconds:.1f} s)"

    def suffers(self, bounds: Bounds) -> bool:
        return self.latency_ms > c.SUFFERS_ABOVE * bounds.target_ms and self.waits(bounds)

    def waits(self, bounds: Bounds) -> bool:
        """Longer than it is to, whether or not it suffers already."""
        return self.latency_ms > bounds.target_ms and self.in_flight >= c.SUFFERS_IN_FLIGHT

    def evidence(self, bounds: Bounds) -> float:
        """If the guest suffers. Three requests per second that take 0.3 s each are one in flight, by chance for some
        seconds: of a guest that was idle a reading counts for less."""
        is_clear = self.latency_ms > c.CLEARLY_ABOVE * bounds.target_ms and self.in_flight >= c.CLEARLY_IN_FLIGHT
        if bounds.was_idle:
            return c.IDLE_CLEAR_EVIDENCE if is_clear else c.IDLE_EVIDENCE
        return c.CLEAR_EVIDENCE if is_clear else c.EVIDENCE


def effective_latency_ms(mean_ms: float, p99_ms: float | None) -> float:
    """One figure for how long requests took: the mean, or a third of the p99 where that is more, so that a few which
    take a second among many quick ones are not lost."""
    return max(mean_ms, c.TAIL_PART * (p99_ms or 0.0))


def target_ms(baseline_ms: float | None, floor_ms: float, factor: float) -> float:
    """The latency that a guest is to keep. Without a baseline its disks are taken to be as slow as the floor."""
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
        read_ms=latency_of(kinds["read"]).mean_ms,
        write_ms=latency_of(sum_of((kinds["write"], kinds["flush"]))).mean_ms,
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


def in_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def in_mb_per_s(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
