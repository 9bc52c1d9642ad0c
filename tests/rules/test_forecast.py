"""How long a guest's next backup takes, by its last ones."""

from __future__ import annotations

import pytest

from pvehook.rules.forecast import DAY_S, Expected, PastBackup, expected, rates_of, timeline


def nights(*durations_s: float, cost_s: float = 0.0) -> list[PastBackup]:
    """One a night, the last one last night."""
    return [PastBackup(number * DAY_S, each, cost_s) for number, each in enumerate(reversed(durations_s), 1)]


def of(past: list[PastBackup]) -> Expected:
    found = expected(past, None, [])
    assert found is not None
    return found


def test_of_nights_alike_the_next_is_the_same() -> None:
    found = of(nights(*[600.0] * 7))
    assert found.expected_s == pytest.approx(600)
    assert 450 < found.shortest_s < 600 < found.longest_s < 800


def test_one_night_is_a_forecast_with_a_wider_range() -> None:
    one, seven = of(nights(600.0)), of(nights(*[600.0] * 7))
    assert one.expected_s == pytest.approx(600)
    assert one.longest_s > seven.longest_s


@pytest.mark.parametrize("odd_s", [60.0, 6000.0])
@pytest.mark.parametrize("place", range(7))
def test_one_odd_night_changes_nothing(odd_s: float, place: int) -> None:
    durations_s = [600.0] * 7
    durations_s[place] = odd_s
    assert of(nights(*durations_s)).expected_s == pytest.approx(600, rel=0.02)


def test_two_odd_nights_in_a_row_are_its_new_size() -> None:
    assert of(nights(600, 600, 600, 600, 600, 1500, 1500)).expected_s == pytest.approx(1500, rel=0.02)


def test_what_comes_once_a_week_is_expected_again_on_that_day_and_not_on_others() -> None:
    week = [600.0] * 6
    assert of(nights(1500, *week, 1500, *week)).expected_s == pytest.approx(1500, rel=0.05)
    assert of(nights(*week, 1500, *week, 1500)).expected_s == pytest.approx(600, rel=0.05)


def test_a_day_that_was_odd_once_a_week_ago_is_within_the_range() -> None:
    found = of(nights(1500, *[600.0] * 6))
    assert found.expected_s == pytest.approx(600, rel=0.05)
    assert found.longest_s > 1500


def test_a_guest_that_grows_is_followed() -> None:
    assert of(nights(*(600 * 1.01**night for night in range(28)))).expected_s > 0.93 * 600 * 1.01**28


def test_what_slowing_added_is_expected_again_and_told_apart() -> None:
    found = of(nights(*[660.0] * 7, cost_s=60.0))
    assert found.alone_s == pytest.approx(600)
    assert found.expected_s == pytest.approx(660)


def test_without_a_history_it_is_the_disks_size_by_the_rate_of_others() -> None:
    rates = rates_of([PastBackup(DAY_S, 100.0, 20.0, 8e9), PastBackup(DAY_S, 100.0, 0.0, None)])
    assert rates == [1e8]
    found = expected([], 32e9, rates)
    assert found is not None
    assert found.expected_s == pytest.approx(320)
    assert found.known_by == "guess"
    assert found.longest_s / found.shortest_s == pytest.approx(9)


def test_without_anything_nothing_is_known() -> None:
    assert expected([], None, [1e8]) is None
    assert expected([], 32e9, []) is None


def test_one_that_was_always_cancelled_takes_longer_than_that() -> None:
    found = expected([PastBackup(DAY_S, 7200.0, is_whole=False)], None, [])
    assert found is not None
    assert found.shortest_s >= 7200


def test_guests_one_after_the_other() -> None:
    each = Expected(100, 80, 130, 100)
    line = timeline([(101, each), (102, each), (103, each)], 1000.0, 1150.0)
    assert [turn.start_s for turn in line.turns] == [1000, 1100, 1200]
    assert line.late == (103,)
    assert 1240 < line.earliest_s < 1300 < line.latest_s < 1390, "errors partly cancel each other"


def test_what_is_behind_a_guest_that_is_not_known_is_not_known_either() -> None:
    each = Expected(100, 80, 130, 100)
    line = timeline([(101, each), (102, None), (103, each)], 1000.0, None)
    assert [turn.start_s for turn in line.turns] == [1000, 1100, None]
    assert [turn.end_s is None for turn in line.turns] == [False, True, True]
    assert (line.unknown, line.end_s, line.late) == ((102,), 1200, ())
