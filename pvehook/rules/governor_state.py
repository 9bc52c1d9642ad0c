"""What the governor knows of one backup from one look to the next: speeds, clocks, and what bounds the speed."""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

from pvehook.rules.governor_readings import Reading, Sample, in_mb_per_s

UNLIMITED: Final = 0
"""What QEMU takes for no limit."""
LEAST_BYTES_PER_S: Final = 1024 * 1024
"""QEMU copies in steps of up to 1 MiB: below one a second a limit is a stop."""

SETTLING_S: Final = 0.7
"""With 16 workers a lower limit acts after half a second (design/governor.md), and then what the guest has queued up
behind the backup has to go through."""
LONGEST_SETTLING_S: Final = 2.5
LATELY_SAMPLES: Final = 4
COME_DOWN: Final = 1.5
"""Times its limit: so near to that it has come down. It copies in steps of 1 MiB, so in short samples it is uneven."""

FREE_MEMORY_S: Final = 60.0
"""How far back the free speed is remembered."""
BURST: Final = 2.0
"""Times its limit: so fast only what was sent before the limit is copied."""
COPIES_ALONE: Final = 1.2
"""A backup this much above its limit consists of the guest's own first writes, which no limit stops."""
WINDOW_MARGIN: Final = 0.9
"""Of the time that is left until the window shuts."""

FIRST_CUT, LATER_CUT = 0.3, 0.5
"""The part of its speed at which the backup runs on trial; after a trial that failed, less is risked."""
FIRST_START_AGAIN_S: Final = 5.0
FIRST_REST_S, LONGEST_REST_S = 60.0, 900.0

Phase = Literal["starting", "free", "trying", "steering", "resting"]
Kind = Literal["none", "start", "slow", "steer", "free", "give-up", "deadline", "lost"]
Culprit = Literal["slow-target", "other-load"]


class Bounds(NamedTuple):
    """What does not change from one look to the next."""

    target_ms: float
    original_bytes_per_s: int
    """The administrator's `bwlimit`, UNLIMITED if there is none: the upper bound, and what is put back."""
    stretch_at_most: float
    was_idle: bool = False
    """The guest asked its disks for nearly nothing before: a few slow requests at once are no suffering yet."""
    window_closes_s: float | None = None
    """On the samples' clock; None: it does not close, or nobody minds."""


class Action(NamedTuple):
    """What to do now. `kind` none: nothing. The reason names what was seen, for an administrator."""

    kind: Kind
    bytes_per_s: int
    reason: str
    culprit: Culprit | None = None


class State(NamedTuple):
    """What one step leaves to the next. The first is `starting(bounds)`, or `State(bounds.original_bytes_per_s)` where
    the backup is not to begin slowly."""

    bytes_per_s: int
    phase: Phase = "free"
    began_s: float | None = None
    copied_bytes: int = 0
    copied_per_s: float = 0.0
    """Lately: over about a second."""
    felt_per_s: float = math.inf
    """The limit that was in force, on the same average."""
    free_bytes: float = 0.0
    free_s: float = 0.0
    gathered: tuple[Sample, ...] = ()
    """Samples that are not yet a reading."""
    since_change_s: float = math.inf
    sent_before: tuple[Sample, ...] = ()
    """Samples since the change, while that settles."""
    silent_s: float = 0.0
    busy_per_s: float = 0.0
    """Requests a second, lately; while it is silent, before that."""
    last_ms: float = 0.0
    idle_s: float = 0.0
    over: tuple[Reading, ...] = ()
    """Readings of a guest that suffers, one after the other."""
    before: Reading | None = None
    """How the guest was when the backup was cut, running free or at its start: what slowing is measured by."""
    from_start: bool = False
    """It is slowed since its start: it is not known how the guest would be if it ran free."""
    start_again_s: float = FIRST_START_AGAIN_S
    """After so long of being steered the start goes on."""
    tried: Reading | None = None
    """The last reading of a trial that goes on."""
    cut: float = FIRST_CUT
    error: float = 0.0
    knee_per_s: float = math.inf
    """The speed from which on it is raised with care."""
    over_s: float = 0.0
    """How long it has been over the target without a break."""
    unbound_s: float = 0.0
    steered_s: float = 0.0
    steered_ms: float = 0.0
    steered_copied: float = 0.0
    short_s: float = 0.0
    """How long it has not reached its limit while its guest suffered."""
    rest_s: float = FIRST_REST_S
    rests_until_s: float = 0.0
    said_deadline: bool = False
    has_settled: bool = False
    """While it is starting: what its workers had sent before the first limit has gone through."""


def summary(state: State, sample: Sample) -> State:
    """Speeds and clocks."""
    period_s = max(sample.period_s, 1e-3)
    now = sample.copied_bytes / period_s
    weight = min(period_s, 1.0)
    felt = float(state.bytes_per_s or now)
    felt = felt if math.isinf(state.felt_per_s) else state.felt_per_s + weight * (felt - state.felt_per_s)
    state = state._replace(
        began_s=sample.at_s - period_s if state.began_s is None else state.began_s,
        copied_bytes=state.copied_bytes + sample.copied_bytes,
        copied_per_s=state.copied_per_s + weight * (now - state.copied_per_s),
        felt_per_s=felt,
        since_change_s=state.since_change_s + period_s,
    )
    is_burst = state.phase == "starting" and not state.has_settled and now > BURST * state.bytes_per_s
    is_free = is_burst or (state.phase in ("free", "resting") and settled(state))
    if is_free and (sample.copied_bytes or state.free_s):  # the first chunks take their time
        kept = 1.0 if state.free_s < FREE_MEMORY_S else 1 - period_s / FREE_MEMORY_S
        state = state._replace(
            free_bytes=state.free_bytes * kept + sample.copied_bytes, free_s=state.free_s * kept + period_s
        )
    return state


def free_bytes_per_s(state: State) -> float | None:
    """How fast the backup runs when nobody holds it; None: not seen yet."""
    return state.free_bytes / state.free_s if state.free_s > 0 and state.free_bytes > 0 else None


def least_speed(state: State, sample: Sample, bounds: Bounds) -> tuple[float, str]:
    """Below this the backup would not be done in time, and why."""
    floor, why = float(LEAST_BYTES_PER_S), "1 MiB/s is the least that is set"
    free = free_bytes_per_s(state)
    if free is not None and state.began_s is not None:
        alone_s = (state.copied_bytes + sample.remaining_bytes) / free
        left_s = state.began_s + bounds.stretch_at_most * alone_s - sample.at_s
        needed = _over(sample.remaining_bytes, left_s)
        if needed > floor:
            floor = needed
            why = f"it would take more than {bounds.stretch_at_most:g} times the {alone_s:.0f} s that it takes alone"
    if bounds.window_closes_s is not None:
        left_s = bounds.window_closes_s - sample.at_s
        needed = _over(sample.remaining_bytes, WINDOW_MARGIN * left_s)
        if needed > floor:
            floor, why = needed, f"the window shuts in {max(left_s, 0.0):.0f} s"
    if settled(state) and state.copied_per_s > COPIES_ALONE * state.felt_per_s:
        alone = COPIES_ALONE * state.copied_per_s
        if alone > floor:
            floor, why = alone, f"the guest's own first writes alone copy {in_mb_per_s(state.copied_per_s)}"
    if bounds.original_bytes_per_s:
        floor = min(floor, float(bounds.original_bytes_per_s))
    return floor, why


def has_come_down(state: State) -> bool:
    """Whether a backup on trial runs at its limit by now. What its workers had sent still keeps a slow disk busy."""
    if state.phase != "trying" or state.since_change_s > LONGEST_SETTLING_S:
        return True
    lately = state.sent_before[-LATELY_SAMPLES:]
    copied = sum(each.copied_bytes for each in lately)
    return copied <= COME_DOWN * state.bytes_per_s * sum(each.period_s for each in lately)


def changed(state: State, speed: int, *, settle: bool = True) -> State:
    if not settle:
        return state._replace(bytes_per_s=speed, gathered=())
    return state._replace(bytes_per_s=speed, gathered=(), sent_before=(), since_change_s=0.0)


def settled(state: State) -> bool:
    return state.since_change_s > SETTLING_S


def bounded(speed: float, floor: float, bounds: Bounds) -> int:
    speed = max(speed, floor, float(LEAST_BYTES_PER_S))
    if bounds.original_bytes_per_s:
        speed = min(speed, float(bounds.original_bytes_per_s))
    return int(speed)


def _over(number_of_bytes: int, seconds: float) -> float:
    return number_of_bytes / seconds if seconds > 0 else math.inf
