"""The governor on a modelled night (governor_model.py): what the guest notices, and what it costs the backup."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.disk_models import FAR_TARGET, FAST_DISK, ONE_DISK, RAID, DiskModel
from tests.rules.governor_model import Guest, Night, night

FAR = FAR_TARGET._replace(place_s=0.25)

QUIET_DISK_GUEST = Guest(per_s=25)
"""What one slow disk can carry beside a backup."""


def both(source: DiskModel, **given: Any) -> tuple[Night, Night]:
    """The same night without a governor and with one."""
    return night(source, governed=False, **given), night(source, **given)


def test_on_shared_disks_the_guest_does_not_stall_any_more() -> None:
    free, held = both(RAID)
    assert free.stalled_s > 0.8 * free.duration_s
    assert held.stalled_s < 0.05 * free.stalled_s
    assert held.p99_ms < free.p99_ms / 3
    assert held.duration_s < 2.5 * free.duration_s


@pytest.mark.parametrize("seed", [1, 7, 11])
def test_on_one_slow_disk_too(seed: int) -> None:
    free, held = both(ONE_DISK, guest=QUIET_DISK_GUEST, seed=seed)
    assert held.stalled_s < 0.2 * free.stalled_s
    assert held.duration_s < 2.5 * free.duration_s


@pytest.mark.parametrize("seed", [2, 4, 10, 13])
def test_looks_that_come_late_on_a_busy_node_do_not_end_a_trial(seed: int) -> None:
    """By 0.3 to 1.4 s, and speeds half as late: it helps the guest less, and is not let go."""
    free, held = both(ONE_DISK, guest=QUIET_DISK_GUEST, seed=seed, late_at_most_s=1.4)
    assert "deadline" not in held.kinds()
    assert held.stalled_s < 0.25 * free.stalled_s


def test_the_first_second_is_not_a_stall_either() -> None:
    """Only what the workers send before the first look can see them stands in front of the guest."""
    free, held = both(RAID)
    began_s = min(asked_s for asked_s, _ in held.served)
    first = [done_s - asked_s for asked_s, done_s in held.served if asked_s < began_s + 3.0]
    slow = [each for each in first if each > 0.1]
    freely = [done_s - asked_s for asked_s, done_s in free.served if asked_s < began_s + 3.0]
    assert len(slow) < 0.15 * len(first)
    assert sum(first) < 0.1 * sum(freely)


def test_a_backup_that_nobody_feels_is_not_touched() -> None:
    free, held = both(FAST_DISK, size_mib=4000)
    assert held.actions == ()
    assert held.duration_s == free.duration_s


def test_one_worker_that_the_guest_does_not_feel_is_held_at_its_start_only() -> None:
    free, held = both(RAID, workers=1, size_mib=600)
    assert set(held.kinds()) == {"start"}
    assert held.speeds[-1] == 0
    assert held.duration_s < 1.05 * free.duration_s


@pytest.mark.parametrize("seed", range(6))
def test_an_idle_guest_costs_its_backup_nothing_however_slow_its_few_requests_are(seed: int) -> None:
    free, held = both(RAID, guest=Guest(per_s=2), seed=seed)
    assert free.p99_ms > 100
    assert held.actions == ()


def test_a_slow_target_is_found_out_and_the_backup_runs_on() -> None:
    free, held = both(FAST_DISK, target=FAR)
    assert held.kinds() == ["slow", "give-up"]
    assert held.actions[-1][1].culprit == "slow-target"
    assert "slowing does not pay" in held.reasons()
    assert held.duration_s < 1.1 * free.duration_s


def test_a_failed_trial_is_made_again_later_and_smaller() -> None:
    held = night(FAST_DISK, target=FAR, size_mib=4000)
    (first_s, first), _, (second_s, second), *_ = held.actions
    assert (first.kind, second.kind) == ("slow", "slow")
    assert second_s - first_s > 60
    assert second.bytes_per_s > first.bytes_per_s


def test_neighbours_load_does_not_throttle_a_backup_to_death() -> None:
    free, held = both(RAID._replace(neighbour_per_s=250))
    assert held.duration_s < 2 * free.duration_s
    assert held.stalled_s < 1.25 * free.stalled_s
    assert "other load on the same disks" in held.reasons()


@pytest.mark.parametrize("seed", [4, 10, 13, 19])
def test_beside_neighbours_who_pause_the_backup_takes_no_more_than_twice_as_long(seed: int) -> None:
    """Slowing does help the guest then, and is paid for by time that is estimated while others are on the disks."""
    free, held = both(RAID._replace(neighbour_per_s=150), seed=seed)
    assert held.duration_s < 2 * free.duration_s
    assert held.stalled_s < free.stalled_s


def test_a_guest_that_falls_silent_lets_its_backup_run_free_within_seconds() -> None:
    held = night(RAID, guest=Guest(busy=lambda now_s: now_s < 15))
    freed_s = next(at_s for at_s, action in held.actions if action.kind == "release")
    assert freed_s < 10 + 8  # the guest was busy for 5 s before and for 10 s of the backup
    assert held.speeds[-1] == 0


def test_a_guest_that_goes_on_and_off_is_watched_all_the_time() -> None:
    free, held = both(RAID, guest=Guest(busy=lambda now_s: now_s % 20 < 10))
    assert held.stalled_s < 0.3 * free.stalled_s
    assert held.kinds().count("slow") > 1
    assert "release" in held.kinds()


def test_a_guest_that_rewrites_faster_than_the_limit_is_backed_up_all_the_same() -> None:
    """320 scattered first writes a second, 64 KiB each: 20 MB/s that no limit stops."""
    many_disks = RAID._replace(servers=12, bytes_per_s=10e6)
    free, held = both(many_disks, guest=Guest(per_s=320, writes=1.0))
    assert held.duration_s < 2.5 * free.duration_s
    assert held.stalled_s < free.stalled_s


def test_the_windows_end_wins_over_the_guest_and_says_so() -> None:
    free = night(RAID, governed=False)
    held = night(RAID, window_s=1.05 * free.duration_s)
    assert held.duration_s < 1.15 * free.duration_s
    assert "the window closes in" in held.reasons()


def test_a_window_that_ends_much_later_changes_nothing() -> None:
    assert night(RAID, window_s=3600).actions == night(RAID).actions


@pytest.mark.parametrize("stretch", [1.2, 2.5])
def test_the_backup_lasts_no_longer_than_it_may(stretch: float) -> None:
    free = night(ONE_DISK, guest=QUIET_DISK_GUEST, governed=False)
    held = night(ONE_DISK, guest=QUIET_DISK_GUEST, stretch_at_most=stretch)
    assert held.duration_s < 1.1 * stretch * free.duration_s


def test_the_administrators_limit_is_the_upper_bound_and_what_is_put_back() -> None:
    limit = 85_000_000
    held = night(RAID, bwlimit=limit, guest=Guest(busy=lambda now_s: now_s < 12))
    assert set(held.kinds()) >= {"slow", "release"}
    assert all(0 < speed <= limit for speed in held.speeds)
    assert held.speeds[-1] == limit


def test_the_same_night_is_steered_the_same_way() -> None:
    assert night(RAID).actions == night(RAID).actions
