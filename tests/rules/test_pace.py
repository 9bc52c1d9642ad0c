"""The pace of a backup beside a busy neighbour that does not suffer, on disks that give so much per second."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pvehook.rules.pace import Pace


def played(gives: Callable[[int], float], seconds: int) -> list[float]:
    """What a backup reaches in each second, where the disks would give it so much in that second."""
    pace, reached = Pace(), []
    for second in range(seconds):
        copied = min(gives(second), pace.limit_per_s or float("inf"))
        reached.append(copied)
        for _ in range(2):
            pace = pace.measured(round(copied / 2), 0.5)
    return reached


def test_it_keeps_a_little_below_what_the_disks_give() -> None:
    reached = played(lambda second: 100e6, 300)
    assert sum(reached) / len(reached) == pytest.approx(95e6, rel=0.03)
    assert sum(each < 99e6 for each in reached) > 0.8 * len(reached)


def test_a_target_that_stops_for_seconds_makes_it_no_slower_when_it_goes_on() -> None:
    """As one does again and again while the kernel writes out an archive."""
    reached = played(lambda second: 100e6 if second % 8 < 5 else 5e6, 400)
    going_on = [each for second, each in enumerate(reached) if second % 8 < 5]
    assert sum(going_on) / len(going_on) > 90e6


def test_holes_in_the_disk_are_not_slept_through() -> None:
    reached = played(lambda second: 100e6 if second < 60 else 5e9, 120)
    assert max(reached[60:100]) > 3e9


def test_disks_that_give_less_from_then_on_are_followed_down() -> None:
    reached = played(lambda second: 100e6 if second < 60 else 40e6, 180)
    assert 36e6 < sum(reached[120:]) / 60 < 40e6


def test_a_backup_that_has_not_begun_to_copy_has_no_pace() -> None:
    pace = Pace()
    for _ in range(20):
        pace = pace.measured(0, 0.5)
    assert pace.limit_per_s is None
