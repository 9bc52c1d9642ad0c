"""What the governor's law knows from one sample to the next: a phase, and what outlasts phases."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pvehook.rules import governor_constants as c
from pvehook.rules.governor_readings import Bounds, Culprit, Reading, Sample, in_mb_per_s

Kind = Literal["start", "slow", "throttle", "release", "give-up", "deadline", "lost", "left-alone", "observe"]


class Action(NamedTuple):
    """A change of speed, or why there is none. The reason is for an administrator and holds the numbers that were seen;
    a step of the start or of throttling has none, it is in the record's chart."""

    kind: Kind
    bytes_per_s: int
    reason: str = ""
    culprit: Culprit | None = None


class Starting(NamedTuple):
    """The backup begins slowly and grows; after a trial it may do so again."""

    burst_is_over: bool = False
    """What the workers had sent before the first limit has gone through."""
    suffering: tuple[Reading, ...] = ()
    was_well: bool = False
    """While the backup was slower the guest was: what it feels now comes of the backup."""


class Watching(NamedTuple):
    """The backup runs at its own speed."""

    suffering: tuple[Reading, ...] = ()
    """Readings of a guest that suffers, without a break."""
    tried: Reading | None = None
    """A trial from the start of the backup came to this and did not help. It is judged as soon as it is seen how the
    guest is beside the free backup."""


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
    saturation_speed: float  # from here on the speed is raised with care
    above_target_s: float = 0.0  # without a break
    unbound_s: float = 0.0
    short_s: float = 0.0
    """The backup has not reached its limit for so long; and nobody suffers, or the guest does."""
    lasted_s: float = 0.0
    latency_ms: float = 0.0
    copied_per_s: float = 0.0
    """This and the latency: on average over some seconds."""


Phase = Starting | Watching | Resting | Trying | Throttling


class State(NamedTuple):
    """Of one backup."""

    bytes_per_s: int  # the limit
    phase: Phase = Watching()
    since_change_s: float = math.inf
    gathered: tuple[Sample, ...] = ()  # samples that are not a reading yet

    # How fast the backup is, and would be
    began_s: float | None = None
    copied_bytes: int = 0
    copied_per_s: float = 0.0  # over about a second
    limit_per_s: float = math.inf  # the limit, on the same average
    free_bytes: float = 0.0  # at its own speed, like the next
    free_s: float = 0.0

    # What the guest asks of its disks
    silent_s: float = 0.0
    requests_per_s: float = 0.0  # lately; while it is silent, before that
    latency_ms: float = 0.0
    idle_s: float = 0.0

    # What this backup's trials have taught
    cut: float = c.FIRST_CUT
    rest_s: float = c.FIRST_REST_S
    restart_s: float = c.FIRST_RESTART_S
    has_tried: bool = False
    deadline_reported: bool = False

    @property
    def has_settled(self) -> bool:
        return self.since_change_s > c.SETTLING_S

    @property
    def is_throttled(self) -> bool:
        """Slowed because its guest suffers; a backup that starts slowly is not."""
        return isinstance(self.phase, (Trying, Throttling))

    @property
    def free_per_s(self) -> float | None:
        """The backup's own speed; None: not seen yet."""
        return self.free_bytes / self.free_s if self.free_s > 0 and self.free_bytes > 0 else None

    def with_free(self, bytes_per_s: float) -> State:
        return self._replace(free_bytes=bytes_per_s, free_s=1.0)

    def changed(self, bytes_per_s: int, phase: Phase) -> State:
        """With another limit, whose effect has to be waited for."""
        return self._replace(bytes_per_s=bytes_per_s, phase=phase, gathered=(), since_change_s=0.0)

    def measured(self, sample: Sample) -> State:
        """With one more sample's speeds and times."""
        limit, period_s = self.bytes_per_s, max(sample.period_s, 1e-3)
        now = sample.copied_bytes / period_s
        weight, last = min(period_s, 1.0), float(limit or now)
        state = self._replace(
            since_change_s=self.since_change_s + period_s,
            began_s=sample.at_s - period_s if self.began_s is None else self.began_s,
            copied_bytes=self.copied_bytes + sample.copied_bytes,
            copied_per_s=self.copied_per_s + weight * (now - self.copied_per_s),
            limit_per_s=last if math.isinf(self.limit_per_s) else self.limit_per_s + weight * (last - self.limit_per_s),
        )
        is_burst = isinstance(self.phase, Starting) and not self.phase.burst_is_over and now > c.BURST * limit
        is_free = is_burst or (isinstance(self.phase, (Watching, Resting)) and state.has_settled)
        if is_free and (sample.copied_bytes or self.free_s):  # the first chunks take their time
            kept = 1.0 if self.free_s < c.FREE_MEMORY_S else 1 - period_s / c.FREE_MEMORY_S
            free_bytes, free_s = self.free_bytes * kept + sample.copied_bytes, self.free_s * kept + period_s
            state = state._replace(free_bytes=free_bytes, free_s=free_s)
        return state

    def lowest_speed(self, sample: Sample, bounds: Bounds) -> tuple[float, str]:
        """Below this the backup would not finish in time, or not at all; and why."""
        remaining = sample.remaining_bytes
        found = [(float(c.MIN_BYTES_PER_S), "1 MiB/s is the lowest speed that is set")]
        if self.free_per_s is not None and self.began_s is not None:
            alone_s = (self.copied_bytes + remaining) / self.free_per_s
            left_s = self.began_s + bounds.stretch_at_most * alone_s - sample.at_s
            why = f"it would take more than {bounds.stretch_at_most:g} times the {alone_s:.0f} s that it takes alone"
            found.append((_per_s(remaining, left_s), why))
        if bounds.window_closes_s is not None and bounds.over_by_s is not None:
            why = f"the window closes in {max(bounds.window_closes_s - sample.at_s, 0.0):.0f} s"
            why += f", and {bounds.night.others.in_words()}" if bounds.night.others is not None else ""
            found.append((_per_s(remaining, c.WINDOW_MARGIN * (bounds.over_by_s - sample.at_s)), why))
        # In a trial it may be what the workers had sent before the cut: one late sample shows all of it.
        is_settled = self.since_change_s > (c.LONGEST_SETTLING_S if isinstance(self.phase, Trying) else c.SETTLING_S)
        if is_settled and self.copied_per_s > c.COPIES_ALONE * self.limit_per_s:
            why = f"the guest's own first writes alone copy {in_mb_per_s(self.copied_per_s)}"
            found.append((c.COPIES_ALONE * self.copied_per_s, why))
        lowest, why = max(found, key=lambda each: each[0])
        return min(lowest, float(bounds.original_bytes_per_s or math.inf)), why


def _per_s(number_of_bytes: int, seconds: float) -> float:
    return number_of_bytes / seconds if seconds > 0 else math.inf
