"""The governor's rules one by one, on samples made by hand; whole nights are in test_governor_nights.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.contract.latency import RequestCounters
from pvehook.rules.governor_constants import (
    IDLE_AFTER_S,
    LOST_AFTER_S,
    MIN_BYTES_PER_S,
    START_BYTES_PER_S,
    UNLIMITED,
)
from pvehook.rules.governor_law import advance, first_state
from pvehook.rules.governor_readings import Bounds, Culprit, Sample, effective_latency_ms, reading_of, target_ms
from pvehook.rules.governor_state import Resting, Starting, State, Throttling, Trying, Watching
from tests.bench.disk_models import MIB

BOUNDS = Bounds(target_ms=30.0, original_bytes_per_s=UNLIMITED, stretch_at_most=2.5)
FAST = 100 * MIB
REMAINING = 20_000 * MIB


class Done(NamedTuple):
    """An action, or that there was none."""

    kind: str
    bytes_per_s: int
    reason: str = ""
    culprit: Culprit | None = None


class Watch:
    """One guest, sampled twice a second. The backup is as fast as its limit lets it, at most `fast`."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.fast = FAST
        self.bounds = bounds
        self.state = State(bounds.original_bytes_per_s)
        self.at_s = 1000.0
        self.remaining = REMAINING

    def look(
        self, latency_ms: float, requests: int = 50, *, read_ms: float | None = None, period_s: float = 0.5
    ) -> Done:
        writes = _requests(requests, latency_ms)
        reads = _requests(requests, latency_ms if read_ms is None else read_ms)
        speed = min(self.state.bytes_per_s or self.fast, self.fast)
        copied = min(int(speed * period_s), self.remaining)
        self.at_s += period_s
        self.remaining -= copied
        sample = Sample(self.at_s, period_s, {"read": reads, "write": writes}, copied, self.remaining)
        self.state, action = advance(self.state, sample, self.bounds)
        return Done("none", self.state.bytes_per_s) if action is None else Done(*action)

    def until(self, kind: str, latency_ms: float, *, looks: int = 200, **given: float) -> Done:
        """Looks until it does something of this kind."""
        for _ in range(looks):
            action = self.look(latency_ms, **given)  # type: ignore[arg-type]  # requests is whole
            if action.kind == kind:
                return action
        raise AssertionError(f"no {kind} in {looks} looks")

    def throttle(self) -> None:
        """A guest that suffers, and that slowing helps."""
        self.until("slow", 200.0)
        self.until("throttle", 10.0)


def _requests(operations: int, latency_ms: float) -> RequestCounters:
    return RequestCounters(operations, operations * 4096, round(operations * latency_ms * 1e6), None)


# The target


def test_the_target_is_a_multiple_of_the_guests_own_latency_and_has_a_floor() -> None:
    assert target_ms(20.0, 10.0, 3.5) == 70.0
    assert target_ms(0.5, 10.0, 3.5) == 10.0
    assert target_ms(None, 10.0, 3.5) == 35.0


def test_latency_is_the_mean_or_the_part_of_the_tail_that_counts() -> None:
    assert reading_of([Sample(1.0, 0.5, {"write": _requests(10, 4.0)}, 0, 0)]).latency_ms == 4.0
    assert effective_latency_ms(4.0, None) == 4.0
    assert effective_latency_ms(4.0, 30.0) == 10.0


# The start


class Start(Watch):
    """A backup that has just begun."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        super().__init__(bounds)
        self.state = first_state(bounds)

    def play(self, latency_of: Callable[[float], float], *, looks: int = 60) -> list[Done]:
        """What is done until its start is over, if the guest's requests take `latency_of` the limit."""
        done = []
        while isinstance(self.state.phase, Starting):
            looks -= 1
            assert looks, "it is still held"
            action = self.look(latency_of(self.state.bytes_per_s), period_s=0.1, requests=10)
            done += [action] if action.kind != "none" else []
        return done


def test_a_backup_starts_slowly_and_grows_to_its_own_speed_within_two_seconds() -> None:
    start = Start()
    began_s = start.at_s
    speeds = [action.bytes_per_s for action in start.play(lambda _: 1.0)]
    assert speeds[0] == 2 * START_BYTES_PER_S
    assert speeds[-1] == UNLIMITED
    assert start.at_s - began_s < 2.0


def test_a_start_that_the_guest_feels_ends_before_it_runs_free() -> None:
    start = Start()
    *growing, last = start.play(lambda speed: 10.0 if speed < 60e6 else 60.0)
    assert {action.kind for action in growing} == {"start"}
    assert last.kind == "slow"
    assert last.bytes_per_s < 30e6
    assert "its requests took 60 ms" in last.reason
    assert isinstance(start.state.phase, Trying)


def test_one_slow_reading_does_not_end_a_start_where_the_disk_is_quick() -> None:
    start = Start(BOUNDS._replace(target_ms=10.0))
    readings = iter(itertools.cycle([6.0, 6.0, 6.0, 6.0, 25.0, 25.0]))  # two looks are a reading
    actions = start.play(lambda _: next(readings), looks=200)
    assert {action.kind for action in actions} == {"start"}
    assert actions[-1].bytes_per_s == UNLIMITED


def test_a_guest_a_little_over_its_target_does_not_keep_the_backup_at_its_start() -> None:
    """Its first writes alone can take it there, at any speed."""
    start = Start()
    actions = start.play(lambda _: 36.0, looks=100)
    assert {action.kind for action in actions} == {"start"}
    assert actions[-1].bytes_per_s == UNLIMITED


def test_for_a_neighbours_sake_a_start_stays_before_the_disks_queues_are_full() -> None:
    start = Start(BOUNDS._replace(is_neighbours=True))
    *growing, last = start.play(lambda speed: 10.0 if speed < 60e6 else 40.0)
    assert {action.kind for action in growing} == {"start"}
    assert 60e6 < last.bytes_per_s < 1.4 * 60e6
    assert "its requests took 40 ms" in last.reason
    assert last.reason.endswith("kept at that speed")
    assert isinstance(start.state.phase, Throttling)


def test_a_neighbour_a_little_over_its_target_at_any_speed_does_not_keep_the_backup_at_its_start() -> None:
    start = Start(BOUNDS._replace(is_neighbours=True))
    actions = start.play(lambda _: 36.0, looks=200)
    assert {action.kind for action in actions} == {"start"}
    assert actions[-1].bytes_per_s == UNLIMITED


def test_a_guest_that_suffers_however_slow_the_backup_is_does_not_hold_it_up() -> None:
    start = Start()
    began_s = start.at_s
    (action,) = start.play(lambda _: 200.0)
    assert (action.kind, action.bytes_per_s) == ("start", UNLIMITED)
    assert start.at_s - began_s < 2.5
    assert start.until("give-up", 200.0).culprit == "other-load"


def test_slowed_since_its_start_it_is_looked_at_free_before_it_is_given_up() -> None:
    """What it would be like if it ran free was never seen."""
    start = Start()
    start.play(lambda speed: 10.0 if speed < 60e6 else 60.0)
    freed = start.until("release", 70.0)
    assert freed.bytes_per_s == UNLIMITED
    assert start.until("slow", 200.0).kind == "slow"


def test_a_trial_since_its_start_that_did_not_help_is_judged_without_another_one() -> None:
    start = Start()
    start.play(lambda speed: 10.0 if speed < 60e6 else 60.0)
    start.until("release", 70.0)
    action = start.until("give-up", 110.0)
    assert (action.kind, start.state.bytes_per_s) == ("give-up", UNLIMITED)
    assert "its requests took 70 ms" in action.reason
    assert "110 ms at" in action.reason


def test_a_few_slow_requests_of_an_idle_guest_do_not_end_a_start() -> None:
    start = Start(BOUNDS._replace(was_idle=True))
    readings = iter(itertools.cycle([8.0, 8.0, 8.0, 8.0, 260.0, 260.0]))  # two looks are a reading
    actions = start.play(lambda _: next(readings), looks=200)
    assert {action.kind for action in actions} == {"start"}


def test_a_start_that_was_ended_by_chance_goes_on_after_some_seconds() -> None:
    """A few slow requests are no reason to hold a backup all night that nobody feels."""
    start = Start()
    start.play(lambda speed: 8.0 if speed < 60e6 else 60.0)
    began_s = start.at_s
    while not isinstance(start.state.phase, Watching):
        start.look(8.0)
        assert start.at_s - began_s < 20, "it is held, and nobody suffers"
    assert start.state.bytes_per_s == UNLIMITED


def test_what_is_felt_each_time_is_tried_ever_less_often() -> None:
    start = Start()

    def feel(speed: float) -> float:
        return 8.0 if speed < 60e6 else 60.0

    start.play(feel)
    actions = []
    for _ in range(500):
        actions.append(start.look(feel(start.state.bytes_per_s)).kind)
    assert actions.count("slow") == 2
    assert isinstance(start.state.phase, Throttling)
    assert 20e6 < start.state.bytes_per_s < 70e6


def test_a_start_never_passes_the_administrators_limit() -> None:
    limit = 3 * START_BYTES_PER_S
    start = Start(BOUNDS._replace(original_bytes_per_s=limit))
    assert [action.bytes_per_s for action in start.play(lambda _: 1.0)] == [2 * START_BYTES_PER_S, limit]
    slower = BOUNDS._replace(original_bytes_per_s=START_BYTES_PER_S // 2)
    assert first_state(slower) == State(START_BYTES_PER_S // 2)


def test_looks_that_are_lost_at_the_start_end_it() -> None:
    start = Start()
    start.look(1.0, period_s=LOST_AFTER_S + 1)
    assert (start.state.phase, start.state.bytes_per_s) == (Watching(), UNLIMITED)


def test_where_the_window_is_about_to_shut_the_start_is_not_slowed_either() -> None:
    start = Start(BOUNDS._replace(window_closes_s=1100.0))
    last = start.play(lambda speed: 10.0 if speed < 60e6 else 60.0)[-1]
    assert (last.kind, last.bytes_per_s) == ("deadline", UNLIMITED)


# When it begins, and when it does not


def test_a_guest_that_suffers_gets_a_slower_backup_and_the_reason_names_the_numbers() -> None:
    action = Watch().until("slow", 200.0, looks=3)
    assert action.bytes_per_s == int(0.3 * FAST)
    assert action.reason == (
        "its requests took 200 ms (100 in 0.5 s), target 30 ms, with the backup at 105 MB/s; "
        "slowed to 31.5 MB/s to see whether that helps"
    )


def test_one_look_a_little_over_the_target_is_chance_and_two_are_not() -> None:
    watch = Watch()
    assert watch.look(50.0).kind == "none"
    assert watch.look(20.0).kind == "none"
    assert watch.look(50.0).kind == "none"
    assert watch.look(50.0).kind == "slow"


def test_one_look_far_over_it_is_enough() -> None:
    watch = Watch()
    assert watch.look(100.0).kind == "slow"


def test_a_guest_a_little_over_its_target_is_left_alone() -> None:
    """Half as long again is not worth a backup that takes twice as long."""
    watch = Watch()
    assert {watch.look(44.0).kind for _ in range(50)} == {"none"}


def test_few_slow_requests_are_no_suffering() -> None:
    watch = Watch()
    assert {watch.look(100.0, requests=1).kind for _ in range(50)} == {"none"}


def test_an_idle_guests_few_slow_requests_are_chance_for_some_seconds_but_not_for_long() -> None:
    watch = Watch(BOUNDS._replace(was_idle=True))
    assert {watch.look(300.0, requests=1).kind for _ in range(14)} == {"none"}
    watch.until("slow", 300.0, requests=1, looks=14)


def test_an_idle_guest_that_becomes_busy_is_helped_as_soon_as_that_is_seen_twice() -> None:
    watch = Watch(BOUNDS._replace(was_idle=True))
    assert watch.look(100.0).kind == "none"
    assert watch.look(100.0).kind == "slow"


# Trial


def test_what_helped_is_steered() -> None:
    watch = Watch()
    watch.throttle()
    assert isinstance(watch.state.phase, Throttling)


def test_what_did_not_help_is_given_up_and_left_alone_for_a_minute() -> None:
    watch = Watch()
    watch.until("slow", 200.0)
    action = watch.until("give-up", 200.0, looks=10)
    assert action.bytes_per_s == UNLIMITED
    assert action.culprit == "other-load"
    assert "slowing does not pay" in action.reason
    assert {watch.look(200.0).kind for _ in range(100)} == {"none"}
    assert watch.until("slow", 200.0, looks=30).bytes_per_s > int(0.3 * FAST)


def test_half_the_latency_at_a_third_of_the_speed_is_a_bad_bargain() -> None:
    watch = Watch()
    watch.until("slow", 200.0)
    assert watch.until("give-up", 100.0).kind == "give-up"


def test_quick_reads_beside_slow_writes_are_the_targets_fault() -> None:
    watch = Watch()
    watch.until("slow", 200.0, read_ms=1.0)
    assert watch.until("give-up", 200.0, read_ms=1.0).culprit == "slow-target"


def test_quick_reads_in_a_pause_of_others_are_not() -> None:
    watch = Watch()
    watch.until("slow", 200.0)
    assert watch.until("give-up", 200.0, read_ms=1.0).culprit == "other-load"


def test_each_failure_doubles_the_rest() -> None:
    watch, began = Watch(), []
    for _ in range(4):
        watch.until("slow", 200.0, looks=2000)
        began.append(watch.at_s)
        watch.until("give-up", 200.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert pauses[1] > 1.5 * pauses[0]
    assert pauses[2] > 1.5 * pauses[1]


# Steering


def test_over_the_target_it_is_slowed_and_with_room_it_is_raised() -> None:
    watch = Watch()
    watch.throttle()
    before = watch.state.bytes_per_s
    raised = watch.until("throttle", 10.0)
    assert raised.bytes_per_s > before
    lowered = watch.until("throttle", 60.0)
    assert lowered.bytes_per_s < raised.bytes_per_s


def test_near_its_target_it_stays() -> None:
    watch = Watch()
    watch.throttle()
    watch.look(25.0)
    assert {watch.look(25.0).kind for _ in range(20)} == {"none"}


def test_a_limit_that_is_not_reached_is_taken_away() -> None:
    watch = Watch()
    watch.throttle()
    action = watch.until("release", 5.0)
    assert action.bytes_per_s == UNLIMITED
    assert "does not reach its limit any more" in action.reason


def test_load_that_comes_while_it_is_steered_is_not_paid_for_by_the_backup() -> None:
    watch = Watch()
    watch.throttle()
    assert watch.until("give-up", 300.0, looks=40).bytes_per_s == UNLIMITED


# Silence


def test_a_guest_that_does_nothing_any_more_frees_its_backup_within_seconds() -> None:
    watch = Watch()
    watch.throttle()
    began_s = watch.at_s
    action = watch.until("release", 0.0, requests=0)
    assert action.reason.startswith("the guest has been idle for")
    assert watch.at_s - began_s <= IDLE_AFTER_S + 3.0


def test_so_does_one_that_asks_for_a_little_now_and_then() -> None:
    watch = Watch()
    watch.throttle()
    began_s = watch.at_s
    assert watch.until("release", 5.0, requests=1).reason == "the guest has been idle for 3 s"
    assert watch.at_s - began_s <= IDLE_AFTER_S + 1.0


def test_a_guest_whose_requests_are_quick_while_its_backup_is_slowed_is_not_idle() -> None:
    """Seen on a real guest with three writers: 200 ms a request beside the free backup, 1 ms beside the slowed one. It
    was called idle every three seconds, and suffered anew for as long."""
    watch = Watch()
    watch.until("slow", 200.0)
    kinds = [watch.look(200.0 if watch.state.bytes_per_s == UNLIMITED else 1.0, requests=10).kind for _ in range(30)]
    assert "throttle" in kinds
    assert "release" not in kinds


def test_requests_that_do_not_come_back_count_as_their_age() -> None:
    """Slow ones, then none at all: it waits, it has not gone to sleep."""
    watch = Watch()
    watch.look(50.0)
    assert watch.look(0.0, requests=0).kind == "slow"


def test_silence_after_quick_requests_is_no_suffering() -> None:
    watch = Watch()
    for _ in range(10):
        watch.look(5.0)
    assert {watch.look(0.0, requests=0).kind for _ in range(20)} == {"none"}


# Lost samples


def test_without_samples_the_original_speed_comes_back() -> None:
    watch = Watch()
    watch.throttle()
    action = watch.look(10.0, period_s=LOST_AFTER_S + 1)
    assert (action.kind, action.bytes_per_s) == ("lost", UNLIMITED)
    assert action.reason == "no sample for 6 s"


def test_a_short_gap_changes_nothing() -> None:
    watch = Watch()
    watch.throttle()
    assert watch.look(25.0, period_s=LOST_AFTER_S - 1).kind in ("none", "throttle")


def test_without_samples_a_backup_that_was_not_held_needs_nothing() -> None:
    watch = Watch()
    watch.look(5.0)
    assert watch.look(5.0, period_s=60.0).kind == "none"


# Bounds


def test_the_least_speed_is_what_is_left_over_the_time_that_is_left() -> None:
    watch = Watch()
    for _ in range(20):
        watch.look(5.0)
    sample = Sample(watch.at_s, 0.5, {}, 0, watch.remaining)
    floor, why = watch.state.lowest_speed(sample, watch.bounds)
    left_s = 2.5 * REMAINING / FAST - 10
    assert math.isclose(floor, watch.remaining / left_s, rel_tol=0.02)
    assert why == "it would take more than 2.5 times the 200 s that it takes alone"


def test_a_speed_that_was_seen_over_holes_only_is_corrected() -> None:
    """It read nothing but zeros first, ten times as fast as it can read data."""
    watch = Watch()
    watch.fast = 10 * FAST
    for _ in range(6):
        watch.look(5.0)
    watch.fast = FAST
    watch.until("slow", 200.0)
    watch.until("throttle", 10.0)
    for _ in range(10):
        watch.look(60.0)
    assert watch.state.bytes_per_s < 0.7 * FAST


def test_a_window_that_closes_sooner_raises_it_and_says_so() -> None:
    watch = Watch(BOUNDS._replace(window_closes_s=1250.0))
    for _ in range(20):
        watch.look(5.0)
    floor, why = watch.state.lowest_speed(Sample(watch.at_s, 0.5, {}, 0, watch.remaining), watch.bounds)
    assert why == "the window closes in 240 s"
    assert floor > 0.8 * FAST


def test_where_no_time_is_left_it_is_not_slowed_and_says_so_once() -> None:
    watch = Watch(BOUNDS._replace(window_closes_s=1200.0))
    action = watch.until("deadline", 200.0, looks=5)
    assert "not slowed: the window closes in" in action.reason
    assert {watch.look(200.0).kind for _ in range(20)} == {"none"}


def test_what_the_guest_makes_it_copy_above_the_limit_raises_the_limit() -> None:
    watch = Watch()
    watch.throttle()
    limit = watch.state.bytes_per_s
    for _ in range(8):  # its first writes alone copy twice the limit
        watch.at_s += 0.5
        completed = {"write": _requests(100, 20.0)}
        sample = Sample(watch.at_s, 0.5, completed, limit, watch.remaining)
        watch.state, _ = advance(watch.state, sample, watch.bounds)
    assert watch.state.bytes_per_s > 2 * limit


def test_what_its_workers_had_sent_is_not_taken_for_the_guests_first_writes_where_a_look_comes_late() -> None:
    """The limit was in force a second late, on a node that had no time for us. The backup ran free then, for as long as
    it took to see that the guest suffers, and was cut once more."""
    watch = Watch()
    watch.until("slow", 200.0)
    watch.at_s += 1.2
    copied = FAST + int(0.2 * watch.state.bytes_per_s)
    late = Sample(watch.at_s, 1.2, {"write": _requests(100, 200.0)}, copied, watch.remaining)
    watch.state, action = advance(watch.state, late, watch.bounds)
    assert action is None
    assert isinstance(watch.state.phase, Trying)
    assert watch.until("throttle", 10.0).bytes_per_s < FAST


@settings(max_examples=60, deadline=None)
@given(
    latencies_ms=st.lists(st.floats(0.1, 5000), min_size=20, max_size=60),
    requests=st.integers(0, 200),
    bwlimit=st.sampled_from([UNLIMITED, 8 * MIB, 80 * MIB, 400 * MIB]),
    stretch=st.floats(1.0, 4.0),
)
def test_whatever_the_guest_does_the_bounds_hold(
    latencies_ms: list[float], requests: int, bwlimit: int, stretch: float
) -> None:
    watch = Watch(Bounds(30.0, bwlimit, stretch))
    began_s = watch.at_s
    looks = 0
    while watch.remaining and looks < 10_000:
        watch.look(latencies_ms[looks % len(latencies_ms)], requests)
        looks += 1
        speed = watch.state.bytes_per_s
        if isinstance(watch.state.phase, (Watching, Resting)):
            assert speed == bwlimit
        else:
            assert speed >= min(MIN_BYTES_PER_S, bwlimit or MIN_BYTES_PER_S)
            assert not bwlimit or speed <= bwlimit
    alone_s = REMAINING / min(bwlimit or FAST, FAST)
    assert watch.at_s - began_s <= 1.05 * stretch * alone_s + 30
    lost = watch.look(5.0, period_s=LOST_AFTER_S + 1)
    assert watch.state.bytes_per_s == bwlimit
    assert lost.kind in ("none", "lost")
