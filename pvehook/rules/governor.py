"""How fast a guest's backup may run, so that the guest does not suffer from it: pure, one step for each look at QEMU.

    starting  the backup is held at first and grows faster, until the guest feels it or the disks give no more
    free      the backup runs at its own speed, and the guest is watched
    trying    the guest suffers: the backup is cut for a moment, to see whether that helps it
    steering  it did help: the speed is moved so that the guest's latency stays near its target
    resting   it did not help: the backup runs at its own speed again, and is left alone for a while

**Slowing must pay.** A backup at half the speed lasts twice as long. So that the guest waits less all in all, its
latency has to fall to half as well, or to the target. A neighbour's load on the same disks and a target that is slow by
itself do not pass this test, whatever the latency is; then the backup runs free.

**The start.** A backup at full speed has filled the disks' queues before its guest can be seen to suffer, and then they
take their time to run empty: a second or two in which the guest stands still, each night. So it begins slowly. Where
that is felt, it was slowed before anybody saw how the guest would be beside the free backup, on the word of a few
requests, and maybe far below what the disks can do: so after some seconds it grows once more, and again after twelve
times as long.

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
from typing import Final

from pvehook.rules.governor_readings import Reading, Sample, in_mb_per_s, in_ms, reading_of, together
from pvehook.rules.governor_state import (
    COME_DOWN,
    FIRST_CUT,
    FIRST_REST_S,
    LATER_CUT,
    LEAST_BYTES_PER_S,
    LONGEST_REST_S,
    Action,
    Bounds,
    Culprit,
    Kind,
    State,
    bounded,
    changed,
    free_bytes_per_s,
    has_come_down,
    least_speed,
    settled,
    summary,
)

LOST_AFTER_S: Final = 5.0
"""Without a look for this long nobody knows how the guest is: the original speed."""

CLOCK_S: Final = 1e-6
"""Less is rounding."""

SUFFERS_OVER: Final = 1.5
"""Times the target: a little over it is not worth a backup that takes twice as long."""
SUFFERS_FROM: Final = 0.9
"""Requests on their way at any time, on average."""
IDLE_BELOW: Final = 0.1
SELDOM_PER_S: Final = 5.0
"""Requests on their way, and requests a second. A guest with less of both is idle. With less of the first alone it may
be busy on quick disks, as it is again as soon as its backup is slowed."""
IDLE_AFTER_S: Final = 3.0
"""A guest that has left its disks alone this long is idle, and not stuck."""

ENOUGH_REQUESTS: Final = 8
"""Fewer are no average. A slow guest is looked at for longer instead."""
LONGEST_READING_S: Final = 2.0
CLEARLY_OVER, CLEARLY_WAITING = 2.0, 1.75
"""Times the target, and requests on their way: where both are passed there is no doubt."""
CLEAR_EVIDENCE, EVIDENCE = 1.0, 0.5
IDLE_CLEAR_EVIDENCE, IDLE_EVIDENCE = 0.5, 0.2
"""What one reading counts for. With 1 in a row the backup is slowed on trial. The second two of a guest that was idle
before: three requests a second that take 0.3 s each are one at any time, by chance for some seconds."""

START_BYTES_PER_S: Final = 16 * 1024 * 1024
START_SETTLING_S: Final = 1.5
"""At most: what the workers had sent before the first limit has to go through."""
START_READING_S, QUIET_READING_S = 0.2, 0.3
"""The second where the guest asks for little."""
FEW_REQUESTS: Final = 4
"""Enough while it starts, where a mistake costs little."""
GROWTH, CAREFUL_GROWTH, LAST_GROWTH = 2.0, 1.4, 1.25
"""From one reading to the next: while the guest has room, when it has little left, and when it has none."""
LEAST_OF_BURST: Final = 0.6
"""So much of the burst a backup reaches at least when it is free."""
START_LATER: Final = 12.0
"""Times as long, between one start and the next."""
AT_ONCE_OVER: Final = 1.8
"""Times the target: less has to be seen twice."""
AT_ONCE_MS: Final = 30.0
"""The same, where the target is so short that one slow request among twenty is over it."""
NOT_REACHED: Final = 1 / 3
"""A start that is no faster than this part of its limit gets no more from the disks."""
FREE_IS_KNOWN_S: Final = 5.0
"""Sooner the free speed is a guess: in the first moments the guest has not queued up yet."""

TRYING_S: Final = 0.8
STILL_FALLING: Final = 0.8
LONGEST_TRIAL_S: Final = 4.0
"""A trial can go on as long as each of its readings is this much below the last one."""
TRYING_AGAIN_S: Final = 3.0
"""Longer, lest a pause in what others do on the disks be taken for a gain."""
NEVER_GOOD_MS: Final = 100.0
"""Where others make a guest wait so long that this is within its target, being there is no success."""
JUDGED_AFTER_S: Final = 5.0
"""So long a steered backup is given to reach its target, or to pay."""

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
SHORT_AFTER_S: Final = 5.0
"""A backup that did not reach its limit for so long gets no more. For less, others may have been in its way."""
WORTH_SETTING: Final = 0.02
"""A change by less is not made."""
NEARLY_FREE: Final = 0.9
"""Where the least speed is this part of the free one, slowing has no room left."""


def step(state: State, sample: Sample, bounds: Bounds) -> tuple[State, Action]:
    """What follows from one more look."""
    if sample.period_s > LOST_AFTER_S:
        reason = f"no look at it for {sample.period_s:.0f} s"
        known = state._replace(gathered=(), over=(), silent_s=0.0, busy_per_s=0.0, idle_s=0.0)
        return _let_go(known, bounds, "lost", reason)
    state = summary(state, sample)
    if state.phase == "starting":
        return _start(state, sample, bounds)
    state, reading = _read(state, sample, bounds)
    if reading is None:
        return state, Action("none", state.bytes_per_s, "")
    if state.phase in ("free", "resting"):
        return _watch(state, sample, bounds, reading)
    return _hold(state, sample, bounds, reading)


# Looking


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
    if not settled(state) or not has_come_down(state):
        # What is completed now was sent before the change, so it tells more of how it was.
        return state._replace(sent_before=(*state.sent_before, sample)), None
    gathered = (*state.gathered, sample)
    reading = reading_of(gathered)
    wanted_s = _trial_s(state) if state.phase == "trying" else 0.0
    enough = reading.operations >= ENOUGH_REQUESTS and reading.seconds >= wanted_s
    if not enough and reading.seconds < max(LONGEST_READING_S, wanted_s):
        return state._replace(gathered=gathered), None
    is_seldom = reading.operations < SELDOM_PER_S * reading.seconds
    idle_s = state.idle_s + reading.seconds if is_seldom and reading.on_their_way < IDLE_BELOW else 0.0
    return state._replace(gathered=(), idle_s=idle_s, last_ms=reading.latency_ms), reading


def _trial_s(state: State) -> float:
    return TRYING_S if state.cut == FIRST_CUT else TRYING_AGAIN_S


def _is_stuck(state: State, bounds: Bounds) -> bool:
    """Silent all at once, after slow requests: it waits. Silent after quick ones, or for long: it has nothing to do."""
    missing = state.busy_per_s * state.silent_s
    return missing >= ENOUGH_REQUESTS and state.silent_s < IDLE_AFTER_S and state.last_ms > bounds.target_ms


# Deciding, one function for each phase


def starting(bounds: Bounds) -> State:
    """The first state of a backup that has just begun, of a guest that is to be spared the burst."""
    original = bounds.original_bytes_per_s
    if original and original <= START_BYTES_PER_S:
        return State(original)
    return State(START_BYTES_PER_S, phase="starting", since_change_s=0.0)


def _start(state: State, sample: Sample, bounds: Bounds) -> tuple[State, Action]:
    """starting: faster with each reading, until the guest feels it or the disks give no more."""
    state = state._replace(gathered=(*state.gathered, sample))
    nothing = Action("none", state.bytes_per_s, "")
    if not state.has_settled:
        return (state._replace(gathered=(), has_settled=True) if _burst_is_over(state) else state), nothing
    reading = reading_of(state.gathered)
    is_again = state.before is not None
    enough = ENOUGH_REQUESTS if is_again else FEW_REQUESTS
    if reading.seconds < (START_READING_S if reading.operations >= enough else QUIET_READING_S) - CLOCK_S:
        return state, nothing
    state = state._replace(gathered=(), last_ms=reading.latency_ms)
    original = bounds.original_bytes_per_s
    if _suffers(reading, bounds):
        if not state.over and reading.latency_ms < max(AT_ONCE_OVER * bounds.target_ms, AT_ONCE_MS):
            return state._replace(over=(reading,)), nothing  # once may be chance
        if is_again or state.bytes_per_s > START_BYTES_PER_S:
            return _slow_on_trial(state._replace(from_start=True), sample, bounds, reading)
        if state.since_change_s < START_SETTLING_S:
            return state, nothing  # it may be the burst that it still feels
        faster = original  # it is not the backup that it feels, or it will show
    else:
        faster = int(_growth(state, reading, bounds) * state.bytes_per_s)
        gets_no_more = reading.copied_bytes_per_s < NOT_REACHED * state.bytes_per_s
        if gets_no_more or (original and faster >= original):
            faster = original
    if faster == original:
        state = state._replace(phase="free")
    return changed(state, faster)._replace(over=()), Action("start", faster, "")


def _start_again(state: State, bounds: Bounds) -> tuple[State, Action]:
    """A start that a few slow requests have ended, which may have been chance, or somebody else's doing. It goes on
    from where it is steered to, until it is felt again; each time it is left alone for longer."""
    faster = bounded(LAST_GROWTH * state.bytes_per_s, LEAST_BYTES_PER_S, bounds)
    state = changed(state, faster)._replace(phase="starting", start_again_s=START_LATER * state.start_again_s)
    return state, Action("start", faster, "")


def _growth(state: State, reading: Reading, bounds: Bounds) -> float:
    """In careful steps it is noticed sooner where the disks have no time left, and their queues do not fill at once."""
    if reading.latency_ms > bounds.target_ms or state.before is not None:
        return LAST_GROWTH
    return GROWTH if reading.latency_ms < ROOM_BELOW * bounds.target_ms else CAREFUL_GROWTH


def _burst_is_over(state: State) -> bool:
    if state.since_change_s > START_SETTLING_S:
        return True
    lately = state.gathered[-2:]
    copied = sum(each.copied_bytes for each in lately)
    return len(lately) == 2 and copied <= COME_DOWN * state.bytes_per_s * sum(each.period_s for each in lately)


def _watch(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> tuple[State, Action]:
    """free and resting: does the guest suffer?"""
    nothing = Action("none", state.bytes_per_s, "")
    if sample.at_s < state.rests_until_s:
        return state, nothing
    state = state._replace(phase="free")
    if not _suffers(reading, bounds):
        return state._replace(over=()), nothing
    over = (*state.over, reading)
    state = state._replace(over=over)
    if sum(_evidence(each, bounds) for each in over) < 1:
        return state, nothing
    return _slow_on_trial(state._replace(from_start=False), sample, bounds, together(over))


def _slow_on_trial(state: State, sample: Sample, bounds: Bounds, before: Reading) -> tuple[State, Action]:
    """The guest suffers: the backup is cut, unless it has no time for that."""
    reached = before.copied_bytes_per_s
    floor, why = least_speed(state, sample, bounds)
    seen = f"{before.in_words()}, target {in_ms(bounds.target_ms)}, with its backup at {in_mb_per_s(reached)}"
    if floor >= NEARLY_FREE * max(reached, free_bytes_per_s(state) or 0.0):
        original = bounds.original_bytes_per_s
        state = state._replace(phase="free", bytes_per_s=original)  # as it was, unless it is starting
        if state.said_deadline:
            return state, Action("none", original, "")
        reason = f"{seen}; it is not slowed, {why}"
        return state._replace(said_deadline=True), Action("deadline", original, reason)
    if state.before is None and state.free_s < FREE_IS_KNOWN_S:
        # The burst was faster than it will be beside the guest, and while it starts it is held.
        burst = (free_bytes_per_s(state) if state.from_start else None) or reached
        state = state._replace(free_bytes=max((burst + reached) / 2, LEAST_OF_BURST * burst), free_s=1.0)
    elif state.phase == "starting":
        state = state._replace(free_bytes=((free_bytes_per_s(state) or reached) + reached) / 2, free_s=1.0)
    speed = bounded(state.cut * reached, LEAST_BYTES_PER_S, bounds)  # a moment does not spoil the night
    state = changed(state, speed)._replace(phase="trying", before=before, tried=None, over=(), steered_s=0.0)
    return state, Action("slow", speed, f"{seen}; slowed to {in_mb_per_s(speed)} to see whether that helps")


def _suffers(reading: Reading, bounds: Bounds) -> bool:
    return reading.latency_ms > SUFFERS_OVER * bounds.target_ms and reading.on_their_way >= SUFFERS_FROM


def _evidence(reading: Reading, bounds: Bounds) -> float:
    """Of a reading of a guest that suffers."""
    is_clear = reading.latency_ms > CLEARLY_OVER * bounds.target_ms and reading.on_their_way >= CLEARLY_WAITING
    if bounds.was_idle:
        return IDLE_CLEAR_EVIDENCE if is_clear else IDLE_EVIDENCE
    return CLEAR_EVIDENCE if is_clear else EVIDENCE


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
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    if not _pays(state, reading.latency_ms, reading.copied_bytes_per_s, bounds, tried=state.cut):
        is_falling = reading.latency_ms < STILL_FALLING * (state.tried or before).latency_ms
        # Where reads wait too, what the guest has queued up has to go through first. A slow target shows at once.
        is_open = is_falling or _culprit(before, reading, bounds) == "other-load"
        if is_open and state.since_change_s < LONGEST_TRIAL_S:
            return state._replace(tried=reading), Action("none", state.bytes_per_s, "")
        return _give_up(state, sample, bounds, reading)
    speed = bounded(_steered(state, reading, bounds)[0], floor, bounds)
    state = _begin_to_steer(changed(state, speed), bounds, reading, BEFORE_PART * before.copied_bytes_per_s)
    reason = (
        f"{reading.in_words()} with its backup at {in_mb_per_s(reading.copied_bytes_per_s)} and "
        f"{in_ms(before.latency_ms)} before, target {in_ms(bounds.target_ms)}: slowing helps, {in_mb_per_s(speed)}"
    )
    return state, Action("steer", speed, reason)


def _begin_to_steer(state: State, bounds: Bounds, reading: Reading, saturation_speed: float) -> State:
    error = _error(reading, bounds)
    return state._replace(
        phase="steering",
        error=error,
        knee_per_s=saturation_speed,
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
    if state.from_start and state.steered_s >= state.start_again_s:
        return _start_again(state, bounds)
    if state.steered_s >= JUDGED_AFTER_S and not _pays(state, state.steered_ms, state.steered_copied, bounds):
        return _give_up(state, sample, bounds, reading)
    reached = reading.copied_bytes_per_s
    wanted, error = _steered(state, reading, bounds)
    within = reading.latency_ms <= bounds.target_ms
    unbound_s = state.unbound_s + reading.seconds if within and reached * ROOM < wanted else 0.0
    state = state._replace(error=error, unbound_s=unbound_s)
    if unbound_s >= UNBOUND_AFTER_S:
        reason = f"{reading.in_words()}, target {in_ms(bounds.target_ms)}; its backup does not reach its limit any more"
        return _let_go(state._replace(rest_s=FIRST_REST_S), bounds, "free", reason)
    short_s = state.short_s + reading.seconds if not within and reached < NEARLY_FREE * state.bytes_per_s else 0.0
    state = state._replace(short_s=short_s)
    if short_s >= SHORT_AFTER_S:
        # So this is all that it gets, limit or not: more was seen only where it read nothing but holes.
        state = state._replace(free_bytes=reached, free_s=1.0, short_s=0.0)
    state, wanted = _mind_the_knee(state, reading, wanted, bounds, within=within)
    speed = bounded(min(wanted, max(ROOM * reached, float(LEAST_BYTES_PER_S))), floor, bounds)
    if abs(speed - state.bytes_per_s) < WORTH_SETTING * state.bytes_per_s:
        return state, Action("none", state.bytes_per_s, "")
    at_floor = f"; not slower, {why}" if speed == int(floor) and wanted < floor else ""
    seen = f"{reading.in_words()}, target {in_ms(bounds.target_ms)}, backup at {in_mb_per_s(reached)}"
    reason = f"{seen}: {in_mb_per_s(speed)}{at_floor}"
    return changed(state, speed, settle=False), Action("steer", speed, reason)


def _give_up(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> tuple[State, Action]:
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    rest_s = FIRST_REST_S if state.steered_s > FIRST_REST_S else state.rest_s  # it did pay for long
    seen = f"{reading.in_words()} with its backup at {in_mb_per_s(reading.copied_bytes_per_s)}"
    if state.from_start:
        reason = f"{seen}, slowed since its start; free, to see how it is then"
        return _let_go(state._replace(from_start=False), bounds, "free", reason)
    culprit = _culprit(before, reading, bounds)
    why = {
        "slow-target": "its reads are quick and its writes wait, so it is the backup's target that is slow",
        "other-load": "there is other load on the same disks, or they are slow by themselves",
    }[culprit]
    seen += f", {in_ms(before.latency_ms)} at {in_mb_per_s(before.copied_bytes_per_s)}"
    reason = f"{seen}: slowing does not pay; {why}; free again for {rest_s:.0f} s"
    state = state._replace(rests_until_s=sample.at_s + rest_s, rest_s=min(2 * rest_s, LONGEST_REST_S), cut=LATER_CUT)
    state, action = _let_go(state, bounds, "give-up", reason)
    return state._replace(phase="resting"), action._replace(culprit=culprit)


def _let_go(state: State, bounds: Bounds, kind: Kind, reason: str) -> tuple[State, Action]:
    """Back to the original speed."""
    held = state.phase in ("trying", "steering")
    speed = bounds.original_bytes_per_s
    state = changed(state, speed)._replace(phase="free", over=(), idle_s=0.0, unbound_s=0.0)
    return state, Action(kind if held else "none", speed, reason if held else "")


def _pays(state: State, latency_ms: float, copied_per_s: float, bounds: Bounds, tried: float | None = None) -> bool:
    """Whether the guest is better off by more than the backup lasts longer."""
    before = state.before
    assert before is not None  # noqa: S101  (set when the trial began)
    # Slowed since its start it was never seen at its worst, so what is near the target is good enough.
    good_ms = bounds.target_ms * (SUFFERS_OVER if state.from_start else 1.0)
    if latency_ms <= min(good_ms, NEVER_GOOD_MS):
        return True
    part = copied_per_s / before.copied_bytes_per_s if before.copied_bytes_per_s > 0 else 1.0
    if tried is not None:
        part = max(part, tried)  # what is still in QEMU's queue may have gone through in the trial
    return part < 1 and latency_ms <= before.latency_ms * part


def _culprit(before: Reading, now: Reading, bounds: Bounds) -> Culprit:
    """Copy-before-write holds up writes alone; disks that are shared hold up reads as well. Others who use them pause
    now and then, so both readings have to say the same."""
    for reading in (before, now):
        quick_reads = reading.read_ms is not None and reading.read_ms <= bounds.target_ms
        slow_writes = reading.write_ms is not None and reading.write_ms > bounds.target_ms
        if not (quick_reads and slow_writes):
            return "other-load"
    return "slow-target"


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
            saturation_speed = KNEE_PART * min(reading.copied_bytes_per_s, state.bytes_per_s)
            state = state._replace(knee_per_s=max(saturation_speed, LEAST_KNEE_PART * (free_bytes_per_s(state) or 0.0)))
        return state._replace(over_s=over_s), min(wanted, state.knee_per_s)
    if reading.latency_ms > ROOM_BELOW * bounds.target_ms:
        return state._replace(over_s=0.0), min(wanted, float(state.bytes_per_s))
    saturation_speed = state.knee_per_s * (1 + CAREFUL_PER_S * reading.seconds)
    cautious = min(wanted, max(saturation_speed, state.bytes_per_s))
    return state._replace(over_s=0.0, knee_per_s=saturation_speed), cautious


def _follow(state: State, reading: Reading) -> State:
    """What steering has come to, on average over some seconds."""
    steered_s = state.steered_s + reading.seconds
    weight = min(reading.seconds / min(steered_s, JUDGED_AFTER_S), 1.0)
    return state._replace(
        steered_s=steered_s,
        steered_ms=state.steered_ms + weight * (reading.latency_ms - state.steered_ms),
        steered_copied=state.steered_copied + weight * (reading.copied_bytes_per_s - state.steered_copied),
    )
