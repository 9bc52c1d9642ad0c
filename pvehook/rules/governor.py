"""How fast a guest's backup may run, so that the guest does not suffer from it: pure, one step for each look at QEMU.

    free      the backup runs at its own speed, and the guest is watched
    trying    the guest suffers: the backup is cut for a moment, to see whether that helps it
    steering  it did help: the speed is moved so that the guest's latency stays near its target
    resting   it did not help: the backup runs at its own speed again, and is left alone for a while

**Slowing must pay.** A backup at half the speed lasts twice as long. So that the guest waits less all in all, its
latency has to fall to half as well, or to the target. A neighbour's load on the same disks and a target that is slow by
itself do not pass this test, whatever the latency is; then the backup runs free.

**Who suffers.** Latency alone does not tell: a guest that writes one log line a second is not held up by 200 ms. So a
guest suffers when its requests take half as long again as the target, and on average nearly one is on its way at any
time.

**What bounds it from below.** The backup has to be done before the window shuts, and within `stretch_at_most` times the
time it would have taken alone; what is left to copy, over the time that is left, is the least speed. QEMU's limit also
counts the bytes that the guest's own first writes make it copy: where these alone reach the limit the background copy
stands still (design/governor.md), so the limit goes above what was seen. From above: the administrator's `bwlimit`.

The numbers of the controller are those of the prototypes (design/governor.md), tried again in tests/bench/governor.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from pvehook.contract.latency import RequestCounters
from pvehook.rules.latency import NS_PER_MS, NS_PER_S, latency_of, sum_of

UNLIMITED: Final = 0
"""What QEMU takes for no limit."""

LOST_AFTER_S: Final = 5.0
"""Without a look for this long nobody knows how the guest is: the original speed."""

SUFFERS_OVER: Final = 1.5
"""Times the target: a little over it is not worth a backup that takes twice as long."""
SUFFERS_FROM: Final = 0.9
"""Requests on their way at any time, on average."""
IDLE_BELOW: Final = 0.1
IDLE_AFTER_S: Final = 3.0
"""A guest that has left its disks alone this long is idle, and not stuck."""
TAIL_PART: Final = 1 / 3
"""A third of the p99 counts as latency where it is more than the mean: of an ordinary mixture of requests it is about
as much, and a few that take a second among many quick ones are not lost in the mean."""

ENOUGH_REQUESTS: Final = 8
"""Fewer are no average. A slow guest is looked at for longer instead."""
FEW_REQUESTS: Final = 4
YOUNG_S: Final = 2.0
"""In its first moments a backup that is felt is felt by all at once: then few requests tell enough."""
LONGEST_READING_S: Final = 2.0
CLEARLY_OVER, CLEARLY_WAITING = 2.0, 1.75
"""Times the target, and requests on their way: where both are passed there is no doubt."""
CLEAR_EVIDENCE, EVIDENCE, LITTLE_EVIDENCE = 1.0, 0.5, 0.25
"""What one reading counts for, clear, ordinary, and of few requests. With 1 in a row the backup is slowed on trial."""

SETTLING_S: Final = 0.7
"""With 16 workers a lower limit acts after half a second (design/governor.md), and then what the guest has queued up
behind the backup has to go through."""
LONGEST_SETTLING_S: Final = 2.5
LATELY_SAMPLES: Final = 4
COME_DOWN: Final = 1.5
"""Times its limit: so near to that it has come down. It copies in steps of 1 MiB, so in short samples it is uneven."""
TRYING_S: Final = 0.8
STILL_FALLING: Final = 0.8
LONGEST_TRIAL_S: Final = 4.0
"""A trial can go on as long as each of its readings is this much below the last one."""
TRYING_AGAIN_S: Final = 3.0
"""Longer, lest a pause in what others do on the disks be taken for a gain."""
FIRST_CUT, LATER_CUT = 0.3, 0.5
"""The part of its speed at which the backup runs on trial; after a trial that failed, less is risked."""
JUDGED_AFTER_S: Final = 5.0
"""So long a steered backup is given to reach its target, or to pay."""
FIRST_REST_S, LONGEST_REST_S = 60.0, 900.0

GAIN_P, GAIN_I = 0.3, 0.6
ERROR_LEAST, ERROR_MOST = -1.5, 0.35
KNEE_PART: Final = 0.85
"""Latency does not grow with the speed, it jumps, where the disks have no time left. A little below the speed at which
it did so last, the speed is raised with care."""
BEFORE_PART: Final = 0.75
"""The same, as long as only the speed is known at which it suffered."""
LEAST_KNEE_PART: Final = 0.6
"""Of the free speed: where it jumps far below that, others have a part in it, and the way back is to be short."""
CAREFUL_PER_S: Final = 0.02
KNEE_AGAIN_S: Final = 2.0
"""Until then what is over the target has queued up before the last cut."""
ROOM_BELOW: Final = 0.6
"""Of the target. Between this and the target the speed stays."""
ROOM: Final = 1.5
"""The limit is never further than this above the speed really reached, or it would not be felt when it is needed."""
UNBOUND_AFTER_S: Final = 2.0
"""A limit that the backup did not reach for this long is none, for as long as nothing changes."""
WORTH_SETTING: Final = 0.02
"""A change by less is not made."""
NEARLY_FREE: Final = 0.9
"""Where the least speed is this part of the free one, slowing has no room left."""
COPIES_ALONE: Final = 1.2
"""A backup this much above its limit consists of the guest's own first writes, which no limit stops."""
WINDOW_MARGIN: Final = 0.9
"""Of the time that is left until the window shuts."""
FREE_MEMORY_S: Final = 60.0
"""How far back the free speed is remembered."""
LEAST_BYTES_PER_S: Final = 1024 * 1024
"""QEMU copies in steps of up to 1 MiB: below one a second a limit is a stop."""

Phase = Literal["free", "trying", "steering", "resting"]
Kind = Literal["none", "slow", "steer", "free", "give-up", "deadline", "lost"]
Culprit = Literal["slow-target", "other-load"]


class Bounds(NamedTuple):
    """What does not change from one look to the next."""

    target_ms: float
    original_bytes_per_s: int
    """The administrator's `bwlimit`, UNLIMITED if there is none: the upper bound, and what is put back."""
    stretch_at_most: float
    window_closes_s: float | None = None
    """On the samples' clock; None: it does not close, or nobody minds."""


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


class Action(NamedTuple):
    """What to do now. `kind` none: nothing. The reason names what was seen, for an administrator."""

    kind: Kind
    bytes_per_s: int
    reason: str
    culprit: Culprit | None = None


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
        return f"its requests took {_ms(self.latency_ms)} ({self.operations} in {self.seconds:.1f} s)"


class State(NamedTuple):
    """What one step leaves to the next. `State(bounds.original_bytes_per_s)` is the first."""

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
    """How the guest was while the backup ran free: what slowing is measured by."""
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


def felt_ms(completed: RequestCounters) -> float | None:
    """One figure for how long these requests took, before a backup and during it; None without a request."""
    latency = latency_of(completed)
    if latency.mean_ms is None:
        return None
    return max(latency.mean_ms, TAIL_PART * (latency.p99_ms or 0.0))


def target_ms(baseline_ms: float | None, floor_ms: float, factor: float) -> float:
    """The latency that a guest is to keep: a multiple of what it had before (`felt_ms`). A guest of which nothing is
    known is taken for one whose disks take as long as the floor."""
    return max(floor_ms, factor * (floor_ms if baseline_ms is None else baseline_ms))


def step(state: State, sample: Sample, bounds: Bounds) -> tuple[State, Action]:
    """What follows from one more look."""
    if sample.period_s > LOST_AFTER_S:
        reason = f"no look at it for {sample.period_s:.0f} s"
        known = state._replace(gathered=(), over=(), silent_s=0.0, busy_per_s=0.0, idle_s=0.0)
        return _let_go(known, bounds, "lost", reason)
    state = _account(state, sample)
    state, reading = _read(state, sample, bounds)
    if reading is None:
        return state, Action("none", state.bytes_per_s, "")
    if state.phase in ("free", "resting"):
        return _watch(state, sample, bounds, reading)
    return _hold(state, sample, bounds, reading)


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
    if _settled(state) and state.copied_per_s > COPIES_ALONE * state.felt_per_s:
        alone = COPIES_ALONE * state.copied_per_s
        if alone > floor:
            floor, why = alone, f"the guest's own first writes alone copy {_speed(state.copied_per_s)}"
    if bounds.original_bytes_per_s:
        floor = min(floor, float(bounds.original_bytes_per_s))
    return floor, why


# Looking


def _account(state: State, sample: Sample) -> State:
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
    is_free = state.phase in ("free", "resting") and _settled(state)
    if is_free and (sample.copied_bytes or state.free_s):  # the first chunks take their time
        kept = 1.0 if state.free_s < FREE_MEMORY_S else 1 - period_s / FREE_MEMORY_S
        state = state._replace(
            free_bytes=state.free_bytes * kept + sample.copied_bytes, free_s=state.free_s * kept + period_s
        )
    return state


def _read(state: State, sample: Sample, bounds: Bounds) -> tuple[State, Reading | None]:
    """A reading as soon as there is enough for one."""
    completed = sum(each.operations for each in sample.completed.values())
    if completed:
        weight = min(sample.period_s / LONGEST_READING_S, 1.0)
        busy = state.busy_per_s + weight * (completed / max(sample.period_s, 1e-3) - state.busy_per_s)
        state = state._replace(silent_s=0.0, busy_per_s=busy)
    else:
        state = state._replace(silent_s=state.silent_s + sample.period_s)
        if _is_stuck(state, bounds):
            reading = Reading(state.silent_s, 0, state.silent_s * 1000, 1.0, state.copied_per_s, None, None, True)
            return state._replace(gathered=(), idle_s=0.0), reading
    if not _settled(state) or not _has_come_down(state):
        # What is completed now was sent before the change, so it tells more of how it was.
        return state._replace(sent_before=(*state.sent_before, sample)), None
    gathered = (*state.gathered, sample)
    reading = _reading(gathered)
    wanted_s = _trial_s(state) if state.phase == "trying" else 0.0
    enough = reading.operations >= _enough(state, sample) and reading.seconds >= wanted_s
    if not enough and reading.seconds < max(LONGEST_READING_S, wanted_s):
        return state._replace(gathered=gathered), None
    idle_s = state.idle_s + reading.seconds if reading.on_their_way < IDLE_BELOW else 0.0
    return state._replace(gathered=(), idle_s=idle_s, last_ms=reading.latency_ms), reading


def _has_come_down(state: State) -> bool:
    """Whether a backup on trial runs at its limit by now. What its workers had sent still keeps a slow disk busy."""
    if state.phase != "trying" or state.since_change_s > LONGEST_SETTLING_S:
        return True
    lately = state.sent_before[-LATELY_SAMPLES:]
    copied = sum(each.copied_bytes for each in lately)
    return copied <= COME_DOWN * state.bytes_per_s * sum(each.period_s for each in lately)


def _enough(state: State, sample: Sample) -> int:
    is_young = state.began_s is not None and sample.at_s - state.began_s < YOUNG_S
    return FEW_REQUESTS if is_young else ENOUGH_REQUESTS


def _trial_s(state: State) -> float:
    return TRYING_S if state.cut == FIRST_CUT else TRYING_AGAIN_S


def _is_stuck(state: State, bounds: Bounds) -> bool:
    """Silent all at once, after slow requests: it waits. Silent after quick ones, or for long: it has nothing to do."""
    missing = state.busy_per_s * state.silent_s
    return missing >= ENOUGH_REQUESTS and state.silent_s < IDLE_AFTER_S and state.last_ms > bounds.target_ms


def _reading(samples: tuple[Sample, ...]) -> Reading:
    seconds = sum(each.period_s for each in samples)
    kinds = {kind: sum_of(each.completed[kind] for each in samples if kind in each.completed) for kind in _KINDS}
    together = sum_of(kinds.values())
    reads, writes = kinds["read"], sum_of((kinds["write"], kinds["flush"]))
    return Reading(
        seconds=seconds,
        operations=together.operations,
        latency_ms=felt_ms(together) or 0.0,
        on_their_way=together.total_time_ns / NS_PER_S / max(seconds, 1e-3),
        copied_bytes_per_s=sum(each.copied_bytes for each in samples) / max(seconds, 1e-3),
        read_ms=_mean_ms(reads),
        write_ms=_mean_ms(writes),
    )


_KINDS: Final = ("read", "write", "flush")


def _mean_ms(counters: RequestCounters) -> float | None:
    return counters.total_time_ns / counters.operations / NS_PER_MS if counters.operations else None


# Deciding, one function for each phase


def _watch(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> tuple[State, Action]:
    """free and resting: does the guest suffer?"""
    nothing = Action("none", state.bytes_per_s, "")
    if sample.at_s < state.rests_until_s:
        return state, nothing
    state = state._replace(phase="free")
    if reading.latency_ms <= SUFFERS_OVER * bounds.target_ms or reading.on_their_way < SUFFERS_FROM:
        return state._replace(over=()), nothing
    over = (*state.over, reading)
    state = state._replace(over=over)
    if sum(_evidence(each, bounds) for each in over) < 1:
        return state, nothing
    before = _together(over)
    reached = before.copied_bytes_per_s
    floor, why = least_speed(state, sample, bounds)
    seen = f"{before.in_words()}, target {_ms(bounds.target_ms)}, with its backup at {_speed(reached)}"
    if floor >= NEARLY_FREE * max(reached, free_bytes_per_s(state) or 0.0):
        if state.said_deadline:
            return state, nothing
        reason = f"{seen}; it is not slowed, {why}"
        return state._replace(said_deadline=True), Action("deadline", state.bytes_per_s, reason)
    speed = _within(state.cut * reached, LEAST_BYTES_PER_S, bounds)  # a moment does not spoil the night
    state = _changed(state, speed)._replace(phase="trying", before=before, tried=None, over=(), steered_s=0.0)
    return state, Action("slow", speed, f"{seen}; slowed to {_speed(speed)} to see whether that helps")


def _evidence(reading: Reading, bounds: Bounds) -> float:
    """Of a reading of a guest that suffers."""
    if reading.latency_ms > CLEARLY_OVER * bounds.target_ms and reading.on_their_way >= CLEARLY_WAITING:
        return CLEAR_EVIDENCE
    return EVIDENCE if reading.operations >= ENOUGH_REQUESTS or reading.is_silence else LITTLE_EVIDENCE


def _hold(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> tuple[State, Action]:
    """trying and steering: unless there is no more reason or no more time for it."""
    if state.idle_s >= IDLE_AFTER_S:
        return _let_go(state, bounds, "free", f"the guest is idle for {state.idle_s:.0f} s")
    floor, why = least_speed(state, sample, bounds)
    free = free_bytes_per_s(state)
    if free is not None and floor >= NEARLY_FREE * free:
        return _let_go(state._replace(said_deadline=True), bounds, "deadline", f"not slowed any more: {why}")
    if state.phase == "trying":
        return _try(state, sample, bounds, reading, floor)
    return _steer(state, sample, bounds, reading, floor, why)


def _try(state: State, sample: Sample, bounds: Bounds, reading: Reading, floor: float) -> tuple[State, Action]:
    """trying: did it help?"""
    state = _complete_before(state)
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    if not _pays(before, reading.latency_ms, reading.copied_bytes_per_s, bounds, tried=state.cut):
        is_falling = reading.latency_ms < STILL_FALLING * (state.tried or before).latency_ms
        # Where reads wait too, what the guest has queued up has to go through first. A slow target shows at once.
        is_open = is_falling or _culprit(reading, bounds) == "other-load"
        if is_open and state.since_change_s < LONGEST_TRIAL_S:
            return state._replace(tried=reading), Action("none", state.bytes_per_s, "")
        return _give_up(state, sample, bounds, reading)
    speed = _within(_steered(state, reading, bounds)[0], floor, bounds)
    state = _begin_to_steer(_changed(state, speed), bounds, reading, BEFORE_PART * before.copied_bytes_per_s)
    reason = (
        f"{reading.in_words()} with its backup at {_speed(reading.copied_bytes_per_s)} and "
        f"{_ms(before.latency_ms)} before, target {_ms(bounds.target_ms)}: slowing helps, {_speed(speed)}"
    )
    return state, Action("steer", speed, reason)


def _complete_before(state: State) -> State:
    """A reading of the first moments knows quick requests only: the slow ones were still on their way."""
    if not state.sent_before or state.before is None:
        return state
    latency_ms = max(state.before.latency_ms, _reading(state.sent_before).latency_ms)
    return state._replace(before=state.before._replace(latency_ms=latency_ms), sent_before=())


def _begin_to_steer(state: State, bounds: Bounds, reading: Reading, knee: float) -> State:
    error = _error(reading, bounds)
    return state._replace(
        phase="steering",
        error=error,
        knee_per_s=knee,
        over_s=0.0,
        unbound_s=0.0,
        short_s=0.0,
        steered_s=0.0,
        steered_ms=0.0,
    )


def _steer(
    state: State, sample: Sample, bounds: Bounds, reading: Reading, floor: float, why: str
) -> tuple[State, Action]:
    """steering: a little faster or slower, or an end of it."""
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    state = _follow(state, reading)
    if state.steered_s >= JUDGED_AFTER_S and not _pays(before, state.steered_ms, state.steered_copied, bounds):
        return _give_up(state, sample, bounds, reading)
    reached = reading.copied_bytes_per_s
    wanted, error = _steered(state, reading, bounds)
    within = reading.latency_ms <= bounds.target_ms
    unbound_s = state.unbound_s + reading.seconds if within and reached * ROOM < wanted else 0.0
    state = state._replace(error=error, unbound_s=unbound_s)
    if unbound_s >= UNBOUND_AFTER_S:
        reason = f"{reading.in_words()}, target {_ms(bounds.target_ms)}; its backup does not reach its limit any more"
        return _let_go(state._replace(rest_s=FIRST_REST_S), bounds, "free", reason)
    short_s = state.short_s + reading.seconds if not within and reached < NEARLY_FREE * state.bytes_per_s else 0.0
    state = state._replace(short_s=short_s)
    if short_s >= UNBOUND_AFTER_S:
        # So this is all that it gets, limit or not: more was seen only where it read nothing but holes.
        state = state._replace(free_bytes=reached, free_s=1.0, short_s=0.0)
    state, wanted = _mind_the_knee(state, reading, wanted, bounds, within=within)
    speed = _within(min(wanted, max(ROOM * reached, float(LEAST_BYTES_PER_S))), floor, bounds)
    if abs(speed - state.bytes_per_s) < WORTH_SETTING * state.bytes_per_s:
        return state, Action("none", state.bytes_per_s, "")
    at_floor = f"; not slower, {why}" if speed == int(floor) and wanted < floor else ""
    reason = f"{reading.in_words()}, target {_ms(bounds.target_ms)}, backup at {_speed(reached)}: {_speed(speed)}"
    return _changed(state, speed, settle=False), Action("steer", speed, reason + at_floor)


def _give_up(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> tuple[State, Action]:
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    rest_s = FIRST_REST_S if state.steered_s > FIRST_REST_S else state.rest_s  # it did pay for long
    culprit = _culprit(reading, bounds)
    why = {
        "slow-target": "its reads are quick and its writes wait, so it is the backup's target that is slow",
        "other-load": "there is other load on the same disks, or they are slow by themselves",
    }[culprit]
    reason = (
        f"{reading.in_words()} with its backup at {_speed(reading.copied_bytes_per_s)}, {_ms(before.latency_ms)} at "
        f"{_speed(before.copied_bytes_per_s)}: slowing does not pay; {why}; free again for {rest_s:.0f} s"
    )
    state = state._replace(rests_until_s=sample.at_s + rest_s, rest_s=min(2 * rest_s, LONGEST_REST_S), cut=LATER_CUT)
    state, action = _let_go(state, bounds, "give-up", reason)
    return state._replace(phase="resting"), action._replace(culprit=culprit)


def _let_go(state: State, bounds: Bounds, kind: Kind, reason: str) -> tuple[State, Action]:
    """Back to the original speed."""
    held = state.phase in ("trying", "steering")
    speed = bounds.original_bytes_per_s
    state = _changed(state, speed)._replace(phase="free", over=(), idle_s=0.0, unbound_s=0.0)
    return state, Action(kind if held else "none", speed, reason if held else "")


def _pays(before: Reading, latency_ms: float, copied_per_s: float, bounds: Bounds, tried: float | None = None) -> bool:
    """Whether the guest is better off by more than the backup lasts longer."""
    if latency_ms <= bounds.target_ms:
        return True
    part = copied_per_s / before.copied_bytes_per_s if before.copied_bytes_per_s > 0 else 1.0
    if tried is not None:
        part = max(part, tried)  # what is still in QEMU's queue may have gone through in the trial
    return part < 1 and latency_ms <= before.latency_ms * part


def _culprit(reading: Reading, bounds: Bounds) -> Culprit:
    """Copy-before-write holds up writes alone; disks that are shared hold up reads as well."""
    quick_reads = reading.read_ms is not None and reading.read_ms <= bounds.target_ms
    slow_writes = reading.write_ms is not None and reading.write_ms > bounds.target_ms
    return "slow-target" if quick_reads and slow_writes else "other-load"


# The controller


def _error(reading: Reading, bounds: Bounds) -> float:
    """Above 0: the guest has room. In logarithms, because latency grows by factors."""
    error = math.log(bounds.target_ms / max(reading.latency_ms, 1e-3))
    return min(max(error, ERROR_LEAST), ERROR_MOST)


def _steered(state: State, reading: Reading, bounds: Bounds) -> tuple[float, float]:
    """PI: the speed that is wanted now, and the error it comes from."""
    error = _error(reading, bounds)
    before = state.error if state.phase == "steering" else error
    change = GAIN_P * (error - before) + GAIN_I * error * min(reading.seconds, 1.0)
    return state.bytes_per_s * math.exp(change), error


def _mind_the_knee(
    state: State, reading: Reading, wanted: float, bounds: Bounds, *, within: bool
) -> tuple[State, float]:
    """Down: below where it jumped, at once. Up: to there quickly, from there on with care, and not without room."""
    if not within:
        over_s = state.over_s + reading.seconds
        if state.over_s == 0 or over_s > KNEE_AGAIN_S:
            knee = KNEE_PART * min(reading.copied_bytes_per_s, state.bytes_per_s)
            state = state._replace(knee_per_s=max(knee, LEAST_KNEE_PART * (free_bytes_per_s(state) or 0.0)))
        return state._replace(over_s=over_s), min(wanted, state.knee_per_s)
    if reading.latency_ms > ROOM_BELOW * bounds.target_ms:
        return state._replace(over_s=0.0), min(wanted, float(state.bytes_per_s))
    knee = state.knee_per_s * (1 + CAREFUL_PER_S * reading.seconds)
    return state._replace(over_s=0.0, knee_per_s=knee), min(wanted, max(knee, state.bytes_per_s))


def _follow(state: State, reading: Reading) -> State:
    """What steering has come to, on average over some seconds."""
    steered_s = state.steered_s + reading.seconds
    weight = min(reading.seconds / min(steered_s, JUDGED_AFTER_S), 1.0)
    return state._replace(
        steered_s=steered_s,
        steered_ms=state.steered_ms + weight * (reading.latency_ms - state.steered_ms),
        steered_copied=state.steered_copied + weight * (reading.copied_bytes_per_s - state.steered_copied),
    )


def _together(readings: tuple[Reading, ...]) -> Reading:
    """One reading of several, the later ones no more than the earlier."""
    seconds = sum(each.seconds for each in readings)
    return readings[-1]._replace(
        seconds=seconds,
        operations=sum(each.operations for each in readings),
        latency_ms=sum(each.latency_ms * each.seconds for each in readings) / seconds,
        copied_bytes_per_s=sum(each.copied_bytes_per_s * each.seconds for each in readings) / seconds,
        is_silence=all(each.is_silence for each in readings),
    )


def _changed(state: State, speed: int, *, settle: bool = True) -> State:
    if not settle:
        return state._replace(bytes_per_s=speed, gathered=())
    return state._replace(bytes_per_s=speed, gathered=(), sent_before=(), since_change_s=0.0)


def _settled(state: State) -> bool:
    return state.since_change_s > SETTLING_S


def _within(speed: float, floor: float, bounds: Bounds) -> int:
    speed = max(speed, floor, float(LEAST_BYTES_PER_S))
    if bounds.original_bytes_per_s:
        speed = min(speed, float(bounds.original_bytes_per_s))
    return int(speed)


def _over(number_of_bytes: int, seconds: float) -> float:
    return number_of_bytes / seconds if seconds > 0 else math.inf


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def _speed(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
