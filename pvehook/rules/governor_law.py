"""How fast a guest's backup may run, so that the guest does not suffer from it: pure, one step per sample of QEMU.

                  ┌────────────── each later start waits 40 times as long ──────────────┐
                  ▼                                                                     │
    Starting ── the guest suffers ──▶ Trying ── slowing helps ──▶ Throttling ───────────┤
       │                                ▲  │                          │                 │
       │ nobody suffers                 │  └── it does not pay ──▶ Resting, 1-15 min    │ (slowed since its start)
       ▼                                │                             │
    Watching ──── the guest suffers ────┘ ◀───────────────────────────┘
       ▲
       └── from every phase: the guest is idle, no time is left, no samples come: the original speed

**Latency** L of a reading is max(mean, p99 / 3) of all requests of the guest. **Target** T is max(floor, factor × the
guest's own L before its backup). A guest **suffers** when L > 1.5 T and 0.9 requests are in flight on average: latency
alone does not tell, because a guest that writes one log line a second is not held up by 200 ms.

**Starting.** A backup at full speed fills the disks' queues before its guest can be seen to suffer, and the guest
stands still for a second or two. So a busy guest's backup begins at 16 MiB/s and grows by 2, 1.4 or 1.25 with each
reading, until the guest suffers or the disks give no more. For a neighbour's sake it grows by 1.05 or 1.4, and stays
where two readings in a row are above the target.

**Trying.** Slowing must pay. A backup at the part p of its speed lasts 1/p times as long, so that the guest waits less
in total only if its latency falls below p times what it was, or to the target. A neighbour's load on the same disks
and a slow target do not pass this test, and then the backup runs at its own speed. What the guest feels at full speed
is not known where the backup was slowed since its start; so after some seconds it starts to grow once more, and a trial
from the start that did not help is judged when that is seen. What a neighbour feels that has just come on is not known
either: its trial begins with the first requests that wait. So a backup slowed for it is judged late, while it is faster
than it was in the trial, and no suffering any more is good enough.

**Throttling.** A PI controller on the logarithm, because latency grows by factors:

    e = ln(T / L), within -1.5 and 0.35
    speed ← speed × exp(0.3 (e - e of the reading before) + 0.6 e × the reading's seconds, at most 1)

Latency jumps at the speed where the disks are saturated. So the speed falls below the last such speed at once, rises
to it quickly, and above it by 2 % per second at most. It never exceeds 1.5 times the speed reached.

**Bounds.** At most the administrator's `bwlimit`. At least the highest of: what is left to copy over the time that is
left, until the window closes and until `stretch_at_most` times the time it would have taken alone; 1.2 times the
guest's own first writes, which QEMU counts but no limit stops; 1 MiB/s.

The numbers and what they were measured from are in governor_constants.py, the phases' types in governor_state.py.
"""

from __future__ import annotations

import math

from pvehook.rules import governor_constants as c
from pvehook.rules.governor_readings import Bounds, Culprit, Reading, Sample, in_mb_per_s, in_ms, reading_of, together
from pvehook.rules.governor_state import Action, Resting, Starting, State, Throttling, Trying, Watching

Next = tuple[State, Action | None]  # the state after a sample, and the change of speed that it asks for


def first_state(bounds: Bounds) -> State:
    """Of a backup that has just begun."""
    original = bounds.original_bytes_per_s
    if not bounds.starts_slowly or 0 < original <= c.START_BYTES_PER_S:
        return State(original)
    return State(c.START_BYTES_PER_S, Starting(), since_change_s=0.0)


def advance(state: State, sample: Sample, bounds: Bounds) -> Next:
    """One more sample."""
    if sample.period_s > c.LOST_AFTER_S:
        return _lost(state, sample, bounds)
    state = state.measured(sample)
    if isinstance(state.phase, Starting):
        return _start(state, state.phase, sample, bounds)
    state, reading = _read(state, sample, bounds)
    if reading is None:
        return state, None
    phase = state.phase
    if isinstance(phase, (Trying, Throttling)):
        return _hold(state, phase, sample, bounds, reading)
    if isinstance(phase, Resting) and sample.at_s < phase.until_s:
        return state, None
    return _watch(state, sample, bounds, reading)


def released(state: State, bounds: Bounds) -> State:
    """Back to the original speed."""
    phase = state.phase if isinstance(state.phase, Resting) else Watching()
    return state.changed(bounds.original_bytes_per_s, phase)._replace(idle_s=0.0)


def _release(state: State, bounds: Bounds, reason: str) -> Next:
    return released(state, bounds), Action("release", bounds.original_bytes_per_s, reason)


def _lost(state: State, sample: Sample, bounds: Bounds) -> Next:
    action = Action("lost", bounds.original_bytes_per_s, f"no sample for {sample.period_s:.0f} s")
    state = state._replace(silent_s=0.0, requests_per_s=0.0)
    return released(state, bounds), action if state.is_throttled else None


def _read(state: State, sample: Sample, bounds: Bounds) -> tuple[State, Reading | None]:
    """A reading as soon as there are samples enough for one."""
    if sample.operations:
        weight = min(sample.period_s / c.LONGEST_READING_S, 1.0)
        per_s = sample.operations / max(sample.period_s, 1e-3)
        lately = state.requests_per_s + weight * (per_s - state.requests_per_s)
        state = state._replace(silent_s=0.0, requests_per_s=lately)
    else:
        silent_s = state.silent_s + sample.period_s
        state = state._replace(silent_s=silent_s)
        missing = state.requests_per_s * silent_s
        # Silent all at once, after slow requests: it waits. After quick ones, or for long: it has nothing to do.
        may_wait = silent_s < c.IDLE_AFTER_S and state.latency_ms > bounds.target_ms and sample.waits is not False
        if missing >= c.MIN_REQUESTS and may_wait:
            reading = Reading(silent_s, 0, silent_s * 1000, 1.0, state.copied_per_s, None, None, is_silence=True)
            return state._replace(gathered=(), idle_s=0.0), reading
    phase, has_settled, wanted_s = state.phase, state.has_settled, 0.0
    if isinstance(phase, Trying):
        wanted_s = c.TRIAL_S if state.cut == c.FIRST_CUT else c.LATER_TRIAL_S
        if state.since_change_s <= c.LONGEST_SETTLING_S:  # what its workers had sent still keeps a slow disk busy
            has_settled = has_settled and _copied_slowly(state, phase.settling)
        if not has_settled:
            state = state._replace(phase=phase._replace(settling=(*phase.settling, sample)[-c.COME_DOWN_SAMPLES :]))
    if not has_settled:
        return state, None  # what is completed now was sent before the change, so it tells more of how it was
    gathered = (*state.gathered, sample)
    reading = reading_of(gathered)
    is_idle = reading.operations < c.IDLE_REQUESTS_PER_S * reading.seconds and reading.in_flight < c.IDLE_IN_FLIGHT
    enough = reading.operations >= c.MIN_REQUESTS and reading.seconds >= wanted_s
    longest_s = c.LONGEST_IDLE_READING_S if is_idle else c.LONGEST_READING_S
    if not enough and reading.seconds < max(longest_s, wanted_s) - c.ROUNDING_S:
        return state._replace(gathered=gathered), None
    idle_s = state.idle_s + reading.seconds if is_idle else 0.0
    return state._replace(gathered=(), idle_s=idle_s, latency_ms=reading.latency_ms), reading


def _copied_slowly(state: State, samples: tuple[Sample, ...]) -> bool:
    seconds = sum(each.period_s for each in samples)
    return sum(each.copied_bytes for each in samples) <= c.COME_DOWN * state.bytes_per_s * seconds


def _start(state: State, phase: Starting, sample: Sample, bounds: Bounds) -> Next:
    """Faster with each reading, until the guest suffers or the disks give no more."""
    state = state._replace(gathered=(*state.gathered, sample))
    if not phase.burst_is_over:
        has_come_down = len(state.gathered) > 1 and _copied_slowly(state, state.gathered[-2:])
        if has_come_down or state.since_change_s > c.START_SETTLING_S:
            state = state._replace(gathered=(), phase=Starting(burst_is_over=True))
        return state, None
    reading = reading_of(state.gathered)
    is_restart = state.has_tried
    enough = reading.operations >= (c.MIN_REQUESTS if is_restart else c.START_REQUESTS)
    if reading.seconds < (c.START_READING_S if enough else c.QUIET_READING_S) - c.ROUNDING_S:
        return state, None
    state = state._replace(gathered=(), latency_ms=reading.latency_ms)
    is_faster = is_restart or state.bytes_per_s > c.START_BYTES_PER_S
    if reading.suffers(bounds) or (phase.was_well and bounds.is_neighbours and reading.waits(bounds)):
        return _start_is_felt(state, phase, sample, bounds, reading, is_faster)
    speed, original = int(_growth(state, reading, bounds) * state.bytes_per_s), bounds.original_bytes_per_s
    gets_no_more = reading.copied_per_s < c.NOT_REACHED * state.bytes_per_s
    if gets_no_more or 0 < original <= speed:
        speed = original
    was_well = phase.was_well or reading.latency_ms <= bounds.target_ms
    after = Watching() if speed == original else Starting(True, was_well=was_well)
    return state.changed(speed, after), Action("start", speed)


def _start_is_felt(
    state: State, phase: Starting, sample: Sample, bounds: Bounds, reading: Reading, is_faster: bool
) -> Next:
    """The guest waits. `is_faster`: than at the start's beginning."""
    suffers, original = reading.suffers(bounds), bounds.original_bytes_per_s
    is_clear = suffers and reading.latency_ms >= max(c.AT_ONCE_ABOVE * bounds.target_ms, c.AT_ONCE_MS)
    if not phase.suffering and (bounds.was_idle or not is_clear):
        return state._replace(phase=phase._replace(suffering=(reading,))), None  # once may be chance
    if is_faster:
        return _slow_on_trial(state, sample, bounds, reading) if suffers else _stay(state, reading, bounds)
    if state.since_change_s < c.START_SETTLING_S:
        return state, None  # it may be the burst that it still feels
    # It is not the backup that it feels, or it will show.
    return state.changed(original, Watching()), Action("start", original)


def _growth(state: State, reading: Reading, bounds: Bounds) -> float:
    """In careful steps it is noticed sooner that the disks are saturated, and their queues do not fill at once."""
    if bounds.is_neighbours:
        return c.CAREFUL_GROWTH if reading.latency_ms < c.FAR_BELOW * bounds.target_ms else c.NEIGHBOURS_GROWTH
    if reading.latency_ms > bounds.target_ms or state.has_tried:
        return c.LAST_GROWTH
    return c.GROWTH if reading.latency_ms < c.ROOM_BELOW * bounds.target_ms else c.CAREFUL_GROWTH


def _stay(state: State, reading: Reading, bounds: Bounds) -> Next:
    """The start ends without a trial: a step more, and the neighbour would suffer."""
    reached = reading.copied_per_s
    # That it was no faster is the start's doing, so it could be faster than that.
    state = _with_free(state, c.MORE_THAN_REACHED * reached, from_start=True)._replace(has_tried=True)
    speed = bounds.limited(min(float(state.bytes_per_s), c.HEADROOM * reached), c.MIN_BYTES_PER_S)
    seen = f"{reading}, target {in_ms(bounds.target_ms)}, with the backup at {in_mb_per_s(reached)}"
    throttling = Throttling(reading, from_start=True, error=_error(reading, bounds), saturation_speed=reached)
    return state.changed(speed, throttling), Action("slow", speed, f"{seen}; kept at that speed")


def _with_free(state: State, reached: float, from_start: bool) -> State:
    """With what is taken for the backup's own speed when it is slowed."""
    free = state.free_per_s
    if not state.has_tried and state.free_s < c.FREE_KNOWN_S:
        # The burst was faster than the backup will be beside the guest, and while it starts it is slowed.
        burst = (free if from_start else None) or reached
        return state.with_free(max((burst + reached) / 2, c.MIN_BURST_PART * burst))
    return state.with_free(((free or reached) + reached) / 2) if from_start else state


def _watch(state: State, sample: Sample, bounds: Bounds, reading: Reading) -> Next:
    phase = state.phase if isinstance(state.phase, Watching) else Watching()
    suffering = (*phase.suffering, reading)[-c.SUFFERING_KEPT :] if reading.suffers(bounds) else ()
    state = state._replace(phase=Watching(suffering, phase.tried if suffering else None))
    if sum(each.evidence(bounds) for each in suffering) < 1:
        return state, None
    before = together(suffering)
    if phase.tried is not None and phase.tried.latency_ms > c.HALVED * before.latency_ms:
        return _give_up(state, Trying(before, from_start=False), sample, bounds, phase.tried)
    return _slow_on_trial(state, sample, bounds, before)


def _slow_on_trial(state: State, sample: Sample, bounds: Bounds, before: Reading) -> Next:
    """The guest suffers: the backup is cut, unless it has no time for that."""
    reached, free, from_start = before.copied_per_s, state.free_per_s, isinstance(state.phase, Starting)
    lowest, why = state.lowest_speed(sample, bounds)
    seen = f"{before}, target {in_ms(bounds.target_ms)}, with the backup at {in_mb_per_s(reached)}"
    if lowest >= c.NEARLY * max(reached, free or 0.0):
        original = bounds.original_bytes_per_s
        suffering = state.phase.suffering if isinstance(state.phase, (Starting, Watching)) else ()
        action = Action("deadline", original, f"{seen}; not slowed: {why}")
        after = state._replace(bytes_per_s=original, phase=Watching(suffering), deadline_reported=True)
        return after, None if state.deadline_reported else action
    state = _with_free(state, reached, from_start)
    speed = bounds.limited(state.cut * reached, c.MIN_BYTES_PER_S)  # a moment below the lowest does no harm
    state = state.changed(speed, Trying(before, from_start))._replace(has_tried=True)
    return state, Action("slow", speed, f"{seen}; slowed to {in_mb_per_s(speed)} to see whether that helps")


def _hold(state: State, phase: Trying | Throttling, sample: Sample, bounds: Bounds, reading: Reading) -> Next:
    """Unless there is no more reason or no more time for it."""
    if state.idle_s >= c.IDLE_AFTER_S:
        return _release(state, bounds, f"the guest has been idle for {state.idle_s:.0f} s")
    lowest, why = state.lowest_speed(sample, bounds)
    if math.isinf(lowest) or lowest >= c.NEARLY * (state.free_per_s or math.inf):
        state = released(state._replace(deadline_reported=True), bounds)
        return state, Action("deadline", state.bytes_per_s, f"not slowed any more: {why}")
    if isinstance(phase, Trying):
        return _try(state, phase, sample, bounds, reading, lowest)
    return _throttle(state, phase, sample, bounds, reading, lowest)


def _try(state: State, phase: Trying, sample: Sample, bounds: Bounds, reading: Reading, lowest: float) -> Next:
    before = phase.before
    # What is still in QEMU's queue may go through in the trial, so it counts as slowed by no more than the cut.
    if not _pays(phase, reading.latency_ms, reading.copied_per_s, bounds, at_least=state.cut):
        is_falling = reading.latency_ms < c.STILL_FALLING * (phase.tried or before).latency_ms
        # Where reads wait too, what the guest has queued up has to go through first. A slow target shows at once.
        is_open = is_falling or _culprit_of(before, reading, bounds) == "other-load"
        if is_open and state.since_change_s < c.LONGEST_TRIAL_S:
            return state._replace(phase=phase._replace(tried=reading)), None
        return _give_up(state, phase, sample, bounds, reading)
    error = _error(reading, bounds)
    speed = bounds.limited(_controlled(state, reading, error, error), lowest)
    throttling = Throttling(before, phase.from_start, error, c.TRIAL_SATURATION_PART * before.copied_per_s)
    return state.changed(speed, throttling), Action("throttle", speed)


def _throttle(state: State, phase: Throttling, sample: Sample, bounds: Bounds, reading: Reading, lowest: float) -> Next:
    """A little faster or slower, or an end of it."""
    phase = _averaged(phase, reading)
    restart_s = max(state.restart_s, c.NEIGHBOURS_RESTART_S if bounds.is_neighbours else 0.0)
    if phase.from_start and phase.lasted_s >= restart_s:
        # A few slow requests have ended the start, by chance or by somebody else's doing. It goes on from here until
        # the guest suffers again; each time it waits longer.
        speed = bounds.limited(c.LAST_GROWTH * state.bytes_per_s, c.MIN_BYTES_PER_S)
        after = Starting(True, was_well=phase.latency_ms <= bounds.target_ms)
        state = state.changed(speed, after)._replace(restart_s=c.RESTART_FACTOR * state.restart_s)
        return state, Action("start", speed)
    # A neighbour that comes on is tried for when its queue has only begun to grow: what it was then tells little, and
    # there is room to go lower, down to the speed of the trial, which did pay.
    has_room = bounds.is_neighbours and phase.copied_per_s > state.cut * phase.before.copied_per_s
    judged_s = c.JUDGED_FAST_AFTER_S if has_room else c.JUDGED_AFTER_S
    if phase.lasted_s >= judged_s and not _pays(phase, phase.latency_ms, phase.copied_per_s, bounds):
        return _give_up(state, phase, sample, bounds, reading)
    reached, seconds = reading.copied_per_s, reading.seconds
    error = _error(reading, bounds)
    wanted = _controlled(state, reading, error, phase.error)
    is_within = reading.latency_ms <= bounds.target_ms
    unbound_s = phase.unbound_s + seconds if is_within and reached * c.HEADROOM < wanted else 0.0
    if unbound_s >= c.UNBOUND_AFTER_S:
        state = state._replace(rest_s=c.FIRST_REST_S)
        reason = f"{reading}, target {in_ms(bounds.target_ms)}; the backup does not reach its limit any more"
        return _release(state, bounds, reason)
    short_s = phase.short_s + seconds if not is_within and reached < c.NEARLY * state.bytes_per_s else 0.0
    if short_s >= c.SHORT_AFTER_S:
        # So this is all that it gets, limit or not: more was seen only where it read nothing but holes.
        state, short_s = state.with_free(reached), 0.0
    phase = phase._replace(error=error, unbound_s=unbound_s, short_s=short_s)
    phase, wanted = _below_saturation(state, phase, reading, wanted, bounds)
    state = state._replace(phase=phase)
    speed = bounds.limited(min(wanted, max(c.HEADROOM * reached, float(c.MIN_BYTES_PER_S))), lowest)
    if abs(speed - state.bytes_per_s) < c.MIN_CHANGE * state.bytes_per_s:
        return state, None
    return state._replace(bytes_per_s=speed, gathered=()), Action("throttle", speed)


def _averaged(phase: Throttling, reading: Reading) -> Throttling:
    """What throttling has come to, on average over some seconds."""
    lasted_s = phase.lasted_s + reading.seconds
    weight = min(reading.seconds / min(lasted_s, c.JUDGED_AFTER_S), 1.0)
    return phase._replace(
        lasted_s=lasted_s,
        latency_ms=phase.latency_ms + weight * (reading.latency_ms - phase.latency_ms),
        copied_per_s=phase.copied_per_s + weight * (reading.copied_per_s - phase.copied_per_s),
    )


def _error(reading: Reading, bounds: Bounds) -> float:
    """Above 0: the guest has room."""
    return min(max(math.log(bounds.target_ms / max(reading.latency_ms, 1e-3)), c.MIN_ERROR), c.MAX_ERROR)


def _controlled(state: State, reading: Reading, error: float, before: float) -> float:
    """The PI controller's speed."""
    change = c.GAIN_P * (error - before) + c.GAIN_I * error * min(reading.seconds, 1.0)
    return state.bytes_per_s * math.exp(change)


def _below_saturation(
    state: State, phase: Throttling, reading: Reading, wanted: float, bounds: Bounds
) -> tuple[Throttling, float]:
    """Down: below where latency jumped, at once. Up: to there quickly, from there on with care, not without room."""
    if reading.latency_ms > bounds.target_ms:
        above_s = phase.above_target_s + reading.seconds
        saturation_speed = phase.saturation_speed
        if phase.above_target_s == 0 or above_s > c.SATURATION_AGAIN_S:
            jumped = c.SATURATION_PART * min(reading.copied_per_s, state.bytes_per_s)
            saturation_speed = max(jumped, c.MIN_SATURATION_PART * (state.free_per_s or 0.0))
        phase = phase._replace(above_target_s=above_s, saturation_speed=saturation_speed)
        return phase, min(wanted, saturation_speed)
    phase = phase._replace(above_target_s=0.0)
    if reading.latency_ms > c.ROOM_BELOW * bounds.target_ms:
        return phase, min(wanted, float(state.bytes_per_s))
    saturation_speed = phase.saturation_speed * (1 + c.CAREFUL_PER_S * reading.seconds)
    return phase._replace(saturation_speed=saturation_speed), min(wanted, max(saturation_speed, state.bytes_per_s))


def _pays(
    phase: Trying | Throttling, latency_ms: float, copied_per_s: float, bounds: Bounds, at_least: float = 0.0
) -> bool:
    """Whether the guest is better off by more than the backup lasts longer. `at_least`: the part of its speed that the
    backup is taken to have kept."""
    before = phase.before
    # Slowed since its start it was never seen at its worst, nor was a neighbour that had just come on: what is near the
    # target is good enough.
    is_held = bounds.is_neighbours and isinstance(phase, Throttling)
    good_ms = bounds.target_ms * (c.SUFFERS_ABOVE if phase.from_start or is_held else 1.0)
    if latency_ms <= min(good_ms, c.NEVER_GOOD_MS):
        return True
    part = max(copied_per_s / before.copied_per_s if before.copied_per_s > 0 else 1.0, at_least)
    return part < 1 and latency_ms <= before.latency_ms * part


def _give_up(state: State, phase: Trying | Throttling, sample: Sample, bounds: Bounds, reading: Reading) -> Next:
    before = phase.before
    seen = f"{reading} with the backup at {in_mb_per_s(reading.copied_per_s)}"
    if phase.from_start:
        after, action = _release(state, bounds, f"{seen}, slowed since its start; released, to see how it is then")
        return after._replace(phase=Watching(tried=reading if isinstance(phase, Trying) else None)), action
    did_pay = isinstance(phase, Throttling) and phase.lasted_s > c.FIRST_REST_S
    rest_s = c.FIRST_REST_S if did_pay else state.rest_s
    culprit = _culprit_of(before, reading, bounds)
    why = {
        "slow-target": "its reads are quick and its writes wait, so it is the backup's target that is slow",
        "other-load": "there is other load on the same disks, or they are slow by themselves",
    }[culprit]
    seen += f", {in_ms(before.latency_ms)} at {in_mb_per_s(before.copied_per_s)}"
    reason = f"{seen}: slowing does not pay; {why}; not slowed again for {rest_s:.0f} s"
    state = state._replace(rest_s=min(2 * rest_s, c.LONGEST_REST_S), cut=c.LATER_CUT)
    state = released(state._replace(phase=Resting(sample.at_s + rest_s)), bounds)
    return state, Action("give-up", state.bytes_per_s, reason, culprit)


def _culprit_of(before: Reading, now: Reading, bounds: Bounds) -> Culprit:
    """Copy-before-write holds up writes alone; disks that are shared hold up reads as well. Others who use them pause
    now and then, so both readings have to say the same."""
    for reading in (before, now):
        quick_reads = reading.read_ms is not None and reading.read_ms <= bounds.target_ms
        slow_writes = reading.write_ms is not None and reading.write_ms > bounds.target_ms
        if not (quick_reads and slow_writes):
            return "other-load"
    return "slow-target"
