"""The governor and the guests beside a backup: it is slowed for them, says for whom, and is restored when they go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvehook.contract.latency import RequestCounters
from pvehook.contract.measured import Absent
from pvehook.records.stall_record import Baseline
from pvehook.rules.governor_constants import QUIET_LOOK_S, START_BYTES_PER_S, YOUNG_EVERY_S
from pvehook.rules.governor_policy import Setup
from pvehook.rules.latency import Latency
from pvehook.rules.patients import PatientSample
from tests.node_under_test import NodeUnderTest
from tests.throttle.test_governor import FAST, Sampler, record, sampled

IDLE_BEFORE = Baseline(60.0, "before", Latency(), Latency(100, 5.0), Latency())
BUSY_BEFORE = Baseline(60.0, "before", Latency(), Latency(6000, 5.0), Latency())


def look_at(sampler: Sampler, vmid: int, latency_ms: float, writes: int = 50) -> bool:
    """A neighbour had so many writes of this latency since the last look, half a second ago."""
    completed = {"write": RequestCounters(writes, 0, int(latency_ms * 1e6) * writes, None)}
    return sampler.governor.take(PatientSample(vmid, sampler.at_s + 0.5, 0.5, completed))


def look_at_all(sampler: Sampler, latency_ms: float, times: int = 4) -> None:
    for _ in range(times):
        look_at(sampler, 103, latency_ms)
        sampler.look(1.0, writes=1)


def is_slowed(sampler: Sampler) -> bool:
    """Whether it is slower than the pace beside a busy guest, which is a little below its own speed."""
    return 0 < sampler.speed < 0.8 * FAST


@pytest.fixture
def sampler(node_without_daemon: NodeUnderTest) -> Iterator[Sampler]:
    """An idle guest whose job runs at its own speed, and a busy one beside it."""
    with sampled(node_without_daemon) as found:
        found.governor.know_baseline(IDLE_BEFORE)
        found.governor.know_patient(103, "db", BUSY_BEFORE, None)
        found.look()
        found.start_job()
        look_at_all(found, 1.0, times=20)
        assert not is_slowed(found)
        yield found


def test_the_backup_of_an_idle_guest_begins_slowly_beside_a_busy_one_and_keeps_below_the_disks_speed(
    sampler: Sampler,
) -> None:
    look_at_all(sampler, 1.0, times=6)
    begun = sampler.guest.speeds_set
    assert begun[0] == START_BYTES_PER_S
    assert 0 in begun  # its own speed, to see what that is
    assert begun[begun.index(0) + 1] == pytest.approx(0.95 * FAST, rel=0.1)
    assert sampler.governor.summary().slowed_s == 0
    sampler.governor.release()
    assert sampler.speed == 0


def test_it_is_slowed_for_a_neighbour_that_suffers_and_says_for_whom(sampler: Sampler) -> None:
    assert look_at(sampler, 103, 400.0)  # a sample is wanted at once
    look_at_all(sampler, 400.0)
    assert is_slowed(sampler)
    assert sampler.governor.steers == 103
    assert sampler.governor.is_slowed
    target_ms, is_put_aside = sampler.governor.standing(103) or (0.0, True)
    assert (round(target_ms, 1), is_put_aside) == (17.5, False)
    assert sampler.governor.standing(104) is None
    sampler.governor.release()
    assert sampler.speed == 0
    assert not record(sampler.node).exists()
    sampler.node.wait_for_event("governor-done")
    slowed, done = (event.fields for event in sampler.node.journal.events)
    assert slowed["MESSAGE"].startswith("VM 101: guest 103 (db), beside it: its requests took 400 ms")
    assert slowed["PVEHOOK_STEERED_BY"] == "103"
    assert "for guest 103 beside it" in done["MESSAGE"]
    assert sampler.governor.summary().beside == (103,)


def test_a_neighbour_that_is_gone_slows_nobody_any_more(sampler: Sampler) -> None:
    look_at_all(sampler, 400.0)
    assert is_slowed(sampler)
    sampler.governor.forget_patient(103)
    for _ in range(12):
        sampler.look(1.0, writes=1)
    assert sampler.speed == 0
    assert sampler.governor.steers is None


def test_of_a_guest_that_nobody_made_known_nothing_follows(sampler: Sampler) -> None:
    for _ in range(6):
        assert not look_at(sampler, 104, 900.0)
        sampler.look(1.0, writes=1)
    assert not is_slowed(sampler)
    assert sampler.governor.look_every_s(104) == QUIET_LOOK_S


def test_by_its_rule_a_guests_own_backup_is_slowed_for_others_alone(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, setup=Setup(is_spared=False)) as sampler:
        sampler.governor.know_patient(103, None, BUSY_BEFORE, None)
        sampler.look()
        sampler.start_job()
        for _ in range(20):
            look_at(sampler, 103, 1.0)
            sampler.look(400.0)
        assert not is_slowed(sampler)
        look_at_all(sampler, 400.0)
        assert is_slowed(sampler)


def test_a_busy_neighbour_is_looked_at_often_while_the_backup_starts(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_patient(103, None, BUSY_BEFORE, None)
        sampler.governor.know_patient(104, None, Absent("its disks have not been used"), (0, 0.0, 60.0))
        sampler.look()
        sampler.start_job()
        sampler.look()
        assert sampler.governor.look_every_s(103) == YOUNG_EVERY_S
        assert sampler.governor.look_every_s(104) == QUIET_LOOK_S
