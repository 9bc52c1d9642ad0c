"""Who steers a backup, on modelled nights with neighbours (node_model.py): what they notice, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest

from pvehook.contract.latency import RequestCounters
from pvehook.rules.governor_constants import MOST_ASIDE
from pvehook.rules.governor_readings import Bounds, Reading
from pvehook.rules.governor_state import Action, Resting, Starting, State, Trying, Watching
from pvehook.rules.patients import PatientSample
from pvehook.rules.steering import OWN, Patient, Steering, candidates, chosen, hand_over, judged
from tests.bench.disk_models import FAST_DISK, ONE_DISK, RAID, DiskModel
from tests.rules.governor_model import Guest
from tests.rules.node_model import IDLE, NodeNight, node_night

BUSY = Guest()
ON_AND_OFF = Guest(busy=lambda now_s: now_s < 5 or (now_s - 5) % 30 < 10)
GROWS_BUSY = Guest(per_s=120, busy=lambda now_s: now_s > 9 or now_s % 0.25 < 0.01)
"""Before the backup it asks its own disk for little, in the middle for more than that can do."""


def both(source: DiskModel, neighbours: dict[int, Guest], **given: Any) -> tuple[NodeNight, NodeNight]:
    """The same night without a governor and with one."""
    return node_night(source, neighbours, governed=False, **given), node_night(source, neighbours, **given)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_busy_neighbour_of_an_idle_guests_backup_does_not_stall_any_more(seed: int) -> None:
    free, held = both(RAID, {103: BUSY}, seed=seed, size_mib=2800)
    assert free.guests[103].stalled_s > 0.9 * free.duration_s
    assert held.guests[103].stalled_s < 0.02 * free.guests[103].stalled_s
    assert held.duration_s < 1.9 * free.duration_s
    assert "guest 103, beside it: its requests took" in held.reasons()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_one_slow_disk_too(seed: int) -> None:
    free, held = both(ONE_DISK, {103: Guest(per_s=25)}, seed=seed)
    assert held.guests[103].stalled_s < 0.1 * free.guests[103].stalled_s
    assert held.duration_s < 2.1 * free.duration_s


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_several_busy_neighbours_all_are_spared(seed: int) -> None:
    neighbours = {103: Guest(per_s=50), 104: Guest(per_s=40), 105: Guest(per_s=30), 106: IDLE}
    free, held = both(RAID, neighbours, seed=seed, size_mib=2800)
    worst_s = max(each.stalled_s for each in free.guests.values())
    assert max(each.stalled_s for each in held.guests.values()) < 0.05 * worst_s


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_beside_one_that_goes_on_and_off_the_backup_is_slow_only_while_it_is_on(seed: int) -> None:
    free, held = both(RAID, {103: ON_AND_OFF}, seed=seed, size_mib=6000)
    assert held.guests[103].stalled_s < 0.05 * free.guests[103].stalled_s
    assert held.duration_s < 1.35 * free.duration_s
    assert held.kinds().count("release") >= 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_that_comes_on_with_most_of_what_the_disks_can_do_is_not_given_up(seed: int) -> None:
    """The trial begins with its first requests that wait, when its queue has only begun to grow: by what it was then,
    a backup that is still too fast for it seemed not to matter."""
    free, held = both(RAID, {103: Guest(per_s=450, busy=ON_AND_OFF.busy)}, seed=seed, size_mib=6000)
    assert "give-up" not in held.kinds()
    assert held.guests[103].stalled_s < 0.2 * free.guests[103].stalled_s


def test_where_nobody_suffers_nothing_is_done() -> None:
    free, held = both(RAID, {103: IDLE, 104: IDLE})
    assert held.actions == ()
    assert held.duration_s == free.duration_s


def test_the_guest_in_backup_and_a_neighbour_are_both_spared() -> None:
    free, held = both(RAID, {103: Guest(per_s=60)}, guest=Guest(per_s=60), size_mib=2800)
    for vmid in (0, 103):
        assert held.guests[vmid].stalled_s < 0.05 * free.guests[vmid].stalled_s


def test_a_guest_that_is_not_to_be_spared_is_not_while_its_neighbours_are() -> None:
    free = node_night(RAID, {103: IDLE}, guest=BUSY, governed=False)
    held = node_night(RAID, {103: IDLE}, guest=BUSY, spares_own=False)
    assert held.actions == ()
    assert held.duration_s == free.duration_s
    both_busy = node_night(RAID, {103: BUSY}, guest=Guest(per_s=30), spares_own=False)
    assert "guest 103" in both_busy.reasons()


def test_one_that_suffers_for_its_own_reasons_costs_the_backup_one_trial_and_is_put_aside() -> None:
    neighbours, elsewhere = {104: GROWS_BUSY}, {104: ONE_DISK}
    free, held = both(FAST_DISK, neighbours, elsewhere=elsewhere, size_mib=20000)
    assert held.kinds().count("slow") == 1
    assert "slowing does not pay" in held.reasons()
    assert held.governor.slowed_s < 5.0
    assert held.duration_s < free.duration_s + 5.0
    assert held.governor.culprit is None  # it says nothing about the backup's target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_a_disk_that_a_neighbour_overloads_by_itself_there_is_one_trial_for_all(seed: int) -> None:
    overloads = Guest(per_s=150, busy=lambda now_s: now_s > 9)
    held = node_night(ONE_DISK, {104: overloads, 105: Guest(per_s=4)}, seed=seed)
    assert held.kinds().count("slow") == 1
    assert "slowing does not pay" in held.reasons()
    assert held.governor.slowed_s < 6.0


def test_the_others_still_count_when_one_is_put_aside() -> None:
    neighbours, elsewhere = {103: ON_AND_OFF, 104: GROWS_BUSY}, {104: ONE_DISK}
    free, held = both(RAID, neighbours, elsewhere=elsewhere, size_mib=6000)
    assert "guest 104, beside it: " in held.reasons()
    assert "guest 103, beside it: " in held.reasons()
    assert held.guests[103].stalled_s < 0.25 * free.guests[103].stalled_s


# Who takes whose place

BOUNDS = Bounds(target_ms=35.0, original_bytes_per_s=0, stretch_at_most=1.9)


def reading(latency_ms: float, in_flight: float = 5.0) -> Reading:
    return Reading(0.5, 50, latency_ms, in_flight, 1e8, None, None)


def patient(latency_ms: float, **more: Any) -> Patient:
    return Patient(35.0, reading=reading(latency_ms), seen_s=100.0, **more)


def test_the_one_whose_need_is_greatest_in_parts_of_its_own_target_steers() -> None:
    patients = {OWN: patient(40.0), 103: patient(200.0)._replace(target_ms=400.0), 104: patient(90.0)}
    assert chosen(Steering(patients), State(0), 100.0) == 104


def test_those_who_suffer_about_as_much_do_not_take_turns() -> None:
    steering = Steering({OWN: patient(1.0), 103: patient(90.0), 104: patient(110.0)}, by=103)
    assert chosen(steering, State(0), 100.0) == 103
    assert chosen(steering.with_patient(104, patient(300.0)), State(0), 100.0) == 104


def test_a_few_slow_requests_of_an_idle_guest_do_not_outweigh_one_that_suffers() -> None:
    idle = Patient(35.0, reading=reading(500.0, in_flight=0.6), seen_s=100.0)
    assert chosen(Steering({OWN: idle, 103: patient(70.0)}), State(0), 100.0) == 103


def test_nor_does_their_age_outweigh_many_that_wait() -> None:
    """One second in a window of a second and a half, twelve times an idle guest's target, is still one request."""
    idle = Patient(10.0, reading=reading(130.0, in_flight=1.0), seen_s=100.0, was_idle=True)
    suffers = Patient(35.0, reading=reading(180.0, in_flight=30.0), seen_s=100.0)
    assert chosen(Steering({OWN: idle, 103: suffers}), State(0), 100.0) == 103
    assert chosen(Steering({OWN: idle, 103: suffers}, by=103), State(0), 100.0) == 103


def test_two_that_are_busy_do_not_take_turns_where_their_suffering_begins_to_be_clear() -> None:
    steering = Steering({OWN: patient(1.0), 103: patient(69.0), 104: patient(71.0)}, by=103)
    assert chosen(steering, State(0), 100.0) == 103
    assert chosen(steering._replace(by=104), State(0), 100.0) == 104


def test_an_idle_guest_that_is_well_keeps_no_backup_slowed_for_one_that_has_nothing_to_do_any_more() -> None:
    rests, idle = patient(1.0)._replace(reading=reading(1.0, in_flight=0.0)), patient(20.0, was_idle=True)
    steering = Steering({OWN: idle, 103: rests}, by=103)
    assert chosen(steering, State(0), 100.0) == 103  # and is released in a moment
    assert chosen(steering.with_patient(OWN, idle._replace(was_idle=False)), State(0), 100.0) == OWN
    assert chosen(steering.with_patient(OWN, patient(90.0, was_idle=True)), State(0), 100.0) == OWN


def test_while_the_backup_starts_a_busy_neighbour_steers_and_not_an_idle_guest_in_backup() -> None:
    """An idle guest is well at any speed, and the backup doubled it twice before the busy one could be seen to wait."""
    idle = Patient(35.0, reading=reading(30.0, in_flight=0.3), seen_s=100.0, was_idle=True)
    steering = Steering({OWN: idle, 103: patient(10.0, is_busy=True)})
    starts = State(0, Starting(burst_is_over=True))
    assert chosen(steering, starts, 100.0) == 103
    assert chosen(steering, starts._replace(phase=Starting()), 100.0) == OWN  # how fast the backup is shows in its own
    assert chosen(steering, State(0), 100.0) == OWN
    assert chosen(steering.with_patient(OWN, patient(90.0, was_idle=True)), starts, 100.0) == OWN


def test_a_patient_that_was_not_seen_for_long_gives_its_place_back() -> None:
    steering = Steering({OWN: patient(1.0), 103: patient(90.0)._replace(seen_s=90.0)}, by=103)
    assert chosen(steering, State(0), 100.0) == OWN


def test_who_suffered_through_a_trial_that_did_not_pay_is_put_aside_with_the_one_it_was_made_for() -> None:
    slow, gave_up = Action("slow", 1, "", None), Action("give-up", 0, "", None)
    trying = State(1, Trying(reading(200.0), from_start=False))
    steering = Steering({OWN: patient(90.0), 103: patient(200.0), 104: patient(400.0), 105: patient(20.0)}, by=103)
    begun = judged(steering, State(0), trying, slow)
    begun = begun.with_patient(104, patient(150.0))  # it was helped
    after = judged(begun, trying, State(0, Resting(160.0)), gave_up)
    assert {vmid for vmid, each in after.patients.items() if each.aside_until_s == 160.0} == {OWN, 103}


def test_while_three_are_put_aside_nobody_new_is_tried() -> None:
    aside = {vmid: patient(90.0, aside_until_s=160.0) for vmid in range(103, 103 + MOST_ASIDE)}
    steering = Steering({OWN: patient(1.0), **aside, 110: patient(300.0)})
    assert list(candidates(steering, 100.0)) == [OWN]
    assert 110 in candidates(Steering({**steering.patients, 103: patient(90.0)}), 100.0)


def test_the_law_rests_for_the_guest_in_backup_alone() -> None:
    """A trial for it did not pay; a neighbour may still have one, and its own rest goes on after that."""
    own = patient(90.0, aside_until_s=160.0, rest_s=120.0, cut=0.5)
    steering, law = Steering({OWN: own, 103: patient(90.0)}), State(0, Resting(160.0), rest_s=120.0, cut=0.5)
    steering, law = hand_over(steering, law, 103, 100.0, BOUNDS)
    assert (law.phase, law.rest_s, law.cut) == (Watching(), 60.0, 0.3)
    steering, law = hand_over(steering, law, OWN, 110.0, BOUNDS)
    assert (law.phase, law.rest_s, law.cut) == (Resting(160.0), 120.0, 0.5)


def test_a_look_at_a_guest_that_nobody_knows_changes_nothing() -> None:
    look = PatientSample(103, 100.0, 0.5, {"read": RequestCounters(5, 0, 10**9, None)})
    assert Steering().seen(look) == Steering()
