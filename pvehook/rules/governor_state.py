"""What the governor's law knows from one sample to the next: a phase, and what outlasts phases."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pvehook.rules.governor_constants import (
    BURST,
    COPIES_ALONE,
    FIRST_CUT,
    FIRST_REST_S,
    FIRST_RESTART_S,
    FREE_MEMORY_S,
    IDLE_IN_FLIGHT,
    IDLE_REQUESTS_PER_S,
    MIN_BYTES_PER_S,
    SETTLING_S,
    WINDOW_MARGIN,
)
from pvehook.rules.governor_readings import Reading, Sample, in_mb_per_s

Kind = Literal["start", "slow", "throttle", "release", "give-up", "deadline", "lost"]
Culprit = Literal["slow-target", "other-load"]


class Bounds(NamedTuple):
    """What the guest and the administrator set; the law only reads it."""

    target_ms: float
    original_bytes_per_s: int
    """The administrator's `bwlimit`, UNLIMITED without one: the upper bound, and what is restored."""
    stretch_at_most: float
    starts_slowly: bool = True
    was_idle: bool = False
    """The guest sent its disks hardly any requests before: a few slow ones are no suffering yet."""
    window_closes_s: float | None = None
    """On the samples' clock; None: it does not close, or does not matter."""


def with_activity(bounds: Bounds, operations: int, total_ms: float, seconds: float) -> Bounds:
    """By what the guest asked of its disks before its backup. One that asked for little is not kept waiting by a slow
    start. On quick disks it may be busy all the same; only with few requests as well it was idle."""
    is_busy = total_ms / 1000 / seconds >= IDLE_IN_FLIGHT  # requests in flight, on average (Little's law)
    was_idle = not is_busy and operations / seconds < IDLE_REQUESTS_PER_S
    return bounds._replace(starts_slowly=is_busy, was_idle=was_idle)


class Action(NamedTuple):
    """A change of speed. The reason is for an administrator and holds the numbers that were seen; a step of the start
    or of throttling has none, it is in the record's chart."""

    kind: Kind
    bytes_per_s: int
    reason: str = ""
    culprit: Culprit | None = None


# Phases


class Starting(NamedTuple):
    """The backup begins slowly and grows; after a trial it may do so again."""

    burst_is_over: bool = False
    """What the workers had sent before the first limit has gone through."""
    suffering: tuple[Reading, ...] = ()


class Watching(NamedTuple):
    """The backup runs at its own speed."""

    suffering: tuple[Reading, ...] = ()
    """Readings of a guest that suffers, without a break."""


class Resting(NamedTuple):
    """The same after a trial that did not pay: no other until then."""

    until_s: float


class Trying(NamedTuple):
    """The guest suffers, and the backup is cut to see whether that helps."""

    before: Reading
    """The guest beside the uncut backup: what slowing is measured by."""
    from_start: bool
    """Cut while it started: the guest was never seen beside the free backup."""
    tried: Reading | None = None
    """The trial's last reading, where it goes on."""
    settling: tuple[Sample, ...] = ()


class Throttling(NamedTuple):
    """Slowing helps: the speed follows the guest's latency."""

    before: Reading
    from_start: bool
    error: float
    saturation_speed: float
    """From here on the speed is raised with care."""
    above_target_s: float = 0.0
    """Without a break."""
    unbound_s: float = 0.0
    """The backup has not reached its limit for so long, and nobody suffers,"""
    short_s: float = 0.0
    """or the guest does."""
    lasted_s: float = 0.0
    latency_ms: float = 0.0
    copied_per_s: float = 0.0
    """This and the latency: on average over some seconds."""


Phase = Starting | Watching | Resting | Trying | Throttling


# What outlasts phases


class Pace(NamedTuple):
    """How fast the backup is, and would be."""

    began_s: float | None = None
    copied_bytes: int = 0
    copied_per_s: float = 0.0
    """Over about a second."""
    limit_per_s: float = math.inf
    """The limit, on the same average."""
    free_bytes: float = 0.0
    free_s: float = 0.0

    @property
    def free_per_s(self) -> float | None:
        """At its own speed; None: not seen yet."""
        return self.free_bytes / self.free_s if self.free_s > 0 and self.free_bytes > 0 else None

    def with_free(self, bytes_per_s: float) -> Pace:
        return self._replace(free_bytes=bytes_per_s, free_s=1.0)


class Activity(NamedTuple):
    """What the guest asks of its disks."""

    silent_s: float = 0.0
    requests_per_s: float = 0.0
    """Lately; while it is silent, before that."""
    latency_ms: float = 0.0
    idle_s: float = 0.0


class Lessons(NamedTuple):
    """What this backup's trials have taught."""

    cut: float = FIRST_CUT
    rest_s: float = FIRST_REST_S
    restart_s: float = FIRST_RESTART_S
    has_tried: bool = False
    deadline_reported: bool = False


class State(NamedTuple):
    """Of one backup."""

    bytes_per_s: int
    """The limit."""
    phase: Phase = Watching()
    pace: Pace = Pace()
    activity: Activity = Activity()
    lessons: Lessons = Lessons()
    since_change_s: float = math.inf
    gathered: tuple[Sample, ...] = ()
    """Samples that are not a reading yet."""

    @property
    def has_settled(self) -> bool:
        return self.since_change_s > SETTLING_S

    def changed(self, bytes_per_s: int, phase: Phase) -> State:
        """With another limit, whose effect has to be waited for."""
        return self._replace(bytes_per_s=bytes_per_s, phase=phase, gathered=(), since_change_s=0.0)


def measured(state: State, sample: Sample) -> State:
    """With one more sample's speeds and times."""
    pace, limit, period_s = state.pace, state.bytes_per_s, max(sample.period_s, 1e-3)
    now = sample.copied_bytes / period_s
    weight = min(period_s, 1.0)
    last = float(limit or now)
    is_burst = isinstance(state.phase, Starting) and not state.phase.burst_is_over and now > BURST * limit
    state = state._replace(since_change_s=state.since_change_s + period_s)
    pace = pace._replace(
        began_s=sample.at_s - period_s if pace.began_s is None else pace.began_s,
        copied_bytes=pace.copied_bytes + sample.copied_bytes,
        copied_per_s=pace.copied_per_s + weight * (now - pace.copied_per_s),
        limit_per_s=last if math.isinf(pace.limit_per_s) else pace.limit_per_s + weight * (last - pace.limit_per_s),
    )
    is_free = is_burst or (isinstance(state.phase, (Watching, Resting)) and state.has_settled)
    if is_free and (sample.copied_bytes or pace.free_s):  # the first chunks take their time
        kept = 1.0 if pace.free_s < FREE_MEMORY_S else 1 - period_s / FREE_MEMORY_S
        free_bytes, free_s = pace.free_bytes * kept + sample.copied_bytes, pace.free_s * kept + period_s
        pace = pace._replace(free_bytes=free_bytes, free_s=free_s)
    return state._replace(pace=pace)


def lowest_speed(state: State, sample: Sample, bounds: Bounds) -> tuple[float, str]:
    """Below this the backup would not finish in time, or not at all; and why."""
    pace, remaining = state.pace, sample.remaining_bytes
    found = [(float(MIN_BYTES_PER_S), "1 MiB/s is the lowest speed that is set")]
    if pace.free_per_s is not None and pace.began_s is not None:
        alone_s = (pace.copied_bytes + remaining) / pace.free_per_s
        left_s = pace.began_s + bounds.stretch_at_most * alone_s - sample.at_s
        why = f"it would take more than {bounds.stretch_at_most:g} times the {alone_s:.0f} s that it takes alone"
        found.append((_per_s(remaining, left_s), why))
    if bounds.window_closes_s is not None:
        left_s = bounds.window_closes_s - sample.at_s
        found.append((_per_s(remaining, WINDOW_MARGIN * left_s), f"the window closes in {max(left_s, 0.0):.0f} s"))
    if state.has_settled and pace.copied_per_s > COPIES_ALONE * pace.limit_per_s:
        why = f"the guest's own first writes alone copy {in_mb_per_s(pace.copied_per_s)}"
        found.append((COPIES_ALONE * pace.copied_per_s, why))
    lowest, why = max(found, key=lambda each: each[0])
    return min(lowest, float(bounds.original_bytes_per_s or math.inf)), why


def within_bounds(speed: float, lowest: float, bounds: Bounds) -> int:
    speed = max(speed, lowest, float(MIN_BYTES_PER_S))
    return int(min(speed, float(bounds.original_bytes_per_s or math.inf)))


def _per_s(number_of_bytes: int, seconds: float) -> float:
    return number_of_bytes / seconds if seconds > 0 else math.inf
