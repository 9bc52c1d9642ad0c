"""A regression is called with a version's change, and not for noise, one bad night, a drift or what was mended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from pvehook.rules.regression import NIGHTS_LEAST, BackupFigures, Change, find_regression, in_words

DAY_S = 86400.0
OLD = ("9.0.3", "9.2.0", "6.8.12-4-pve")
NEW_QEMU = ("9.0.3", "10.0.2", "6.8.12-4-pve")
Versions = tuple[str | None, str | None, str | None]


def backups(
    stalled: Iterable[float | None], versions: Callable[[int], Versions] = lambda _: OLD
) -> list[BackupFigures]:
    """Nights of these stalled seconds; slowed and p99 go with them."""
    return [
        BackupFigures(
            index * DAY_S,
            stalled_s,
            None if stalled_s is None else 4 * stalled_s,
            None if stalled_s is None else 15 + 40 * stalled_s,
            versions(index),
        )
        for index, stalled_s in enumerate(stalled)
    ]


def upgraded_at(backup: int) -> Callable[[int], Versions]:
    return lambda index: NEW_QEMU if index >= backup else OLD


GOOD, BAD = [0.0, 0.4, 0.0, 1.2, 0.0, 0.1, 0.0], [9.1, 4.0, 7.7, 12.5, 8.0, 6.1, 9.9]


def test_worse_since_an_upgrade_is_called_with_its_figures() -> None:
    found = find_regression(backups(GOOD * 2 + BAD, upgraded_at(14)))
    assert found is not None
    assert found.since_s == 14 * DAY_S
    assert found.changes == (Change("QEMU", "9.2.0", "10.0.2"),)
    assert [(each.figure, each.before, each.after) for each in found.worse] == [
        ("stalled_s", 0.0, 8.0),
        ("slowed_s", 0.0, 32.0),
        ("write_p99_ms", 15.0, 335.0),
    ]
    assert in_words(found) == (
        "stalled seconds 0 -> 8, slowed seconds 0 -> 32, write p99 in ms 15 -> 335 a night since QEMU 9.2.0 -> 10.0.2 "
        "(14 nights before, 7 after)"
    )


def test_the_same_without_an_upgrade_is_not() -> None:
    assert find_regression(backups(GOOD * 2 + BAD)) is None


def test_an_upgrade_that_changed_nothing_or_helped_is_not() -> None:
    assert find_regression(backups(GOOD * 4, upgraded_at(14))) is None
    assert find_regression(backups(BAD * 2 + GOOD * 2, upgraded_at(14))) is None


def test_one_bad_night_is_not_but_a_good_one_among_bad_ones_hides_nothing() -> None:
    assert find_regression(backups([*GOOD, *GOOD, *GOOD, 400.0, *GOOD], upgraded_at(14))) is None
    assert find_regression(backups([*GOOD, *GOOD, *BAD, 0.0, *BAD], upgraded_at(14))) is not None


@pytest.mark.parametrize(("before", "after"), [(NIGHTS_LEAST - 1, 20), (20, NIGHTS_LEAST - 1)])
def test_too_few_nights_on_a_side_are_not_enough(before: int, after: int) -> None:
    assert find_regression(backups((GOOD * 3)[:before] + (BAD * 3)[:after], upgraded_at(before))) is None


@pytest.mark.parametrize(("before", "after"), [(NIGHTS_LEAST, 20), (20, NIGHTS_LEAST)])
def test_a_week_on_each_side_is(before: int, after: int) -> None:
    assert find_regression(backups((GOOD * 3)[:before] + (BAD * 3)[:after], upgraded_at(before))) is not None


def test_what_was_mended_since_is_not_called_any_more() -> None:
    assert find_regression(backups(GOOD * 2 + BAD * 2 + GOOD * 3, upgraded_at(14))) is None


def test_what_got_worse_long_after_the_upgrade_has_another_cause() -> None:
    assert find_regression(backups(GOOD * 6 + BAD * 2, upgraded_at(14))) is None


def test_a_slow_drift_is_not_a_step() -> None:
    drift = [index / 20 for index in range(60)]
    assert find_regression(backups(drift, upgraded_at(30))) is None


def test_too_little_to_be_felt_is_not_called() -> None:
    assert find_regression(backups([0.0] * 14 + [0.2] * 14, upgraded_at(14))) is None


def test_several_changes_of_one_night_are_all_named() -> None:
    def versions(index: int) -> Versions:
        return ("9.1.0", "10.0.2", "6.14.8-2-pve") if index >= 14 else OLD

    found = find_regression(backups(GOOD * 2 + BAD, versions))
    assert found is not None
    assert [change.what for change in found.changes] == ["pve-manager", "QEMU", "kernel"]


def test_two_upgrades_of_one_week_are_named_together() -> None:
    """The nights between them tell too little of either."""

    def versions(index: int) -> Versions:
        return OLD if index < 14 else NEW_QEMU if index < 17 else ("9.0.3", "10.0.2", "6.14.8-2-pve")

    found = find_regression(backups(GOOD * 2 + BAD * 2, versions))
    assert found is not None
    assert [change.what for change in found.changes] == ["QEMU", "kernel"]


def test_the_change_that_made_it_worse_is_named_and_not_a_later_one() -> None:
    def versions(index: int) -> Versions:
        return OLD if index < 14 else NEW_QEMU if index < 35 else ("9.0.3", "10.0.2", "6.14.8-2-pve")

    found = find_regression(backups(GOOD * 2 + BAD * 5, versions))
    assert found is not None
    assert [change.what for change in found.changes] == ["QEMU"]
    assert found.backups_after == 35


def test_a_version_that_was_not_known_for_a_night_is_no_change() -> None:
    def versions(index: int) -> Versions:
        return (None, None, None) if index == 16 else upgraded_at(14)(index)

    assert find_regression(backups(GOOD * 2 + BAD * 2, versions)) is not None
    assert find_regression(backups(GOOD * 2 + BAD, lambda index: OLD if index < 14 else (None, None, None))) is None


def test_nights_that_were_not_seen_are_not_counted_as_good() -> None:
    unseen: list[float | None] = [None] * 14
    assert find_regression(backups([*unseen, *BAD, *BAD], upgraded_at(14))) is None
    assert find_regression(backups([*unseen, *GOOD, *BAD], upgraded_at(21))) is not None


@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(("number", "change"), [(14, 7), (60, 30), (60, 52)])
def test_noise_is_not_called(spread: float, number: int, change: int) -> None:
    """500 guests, whose nights differ by chance alone: not one in a hundred is called."""
    rng = random.Random(1)
    called = 0
    for _ in range(500):
        own = [
            BackupFigures(
                index * DAY_S,
                0.0 if rng.random() < 0.6 else rng.expovariate(1 / 3),
                rng.expovariate(1 / 20),
                40 * rng.lognormvariate(0.0, spread),
                upgraded_at(change)(index),
            )
            for index in range(number)
        ]
        called += find_regression(own) is not None
    assert called <= 3


def test_no_nights_are_no_regression() -> None:
    assert find_regression([]) is None
