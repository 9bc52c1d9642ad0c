"""The time that a backup leaves to those behind it; and whole nights on a shared disk."""

from __future__ import annotations

from functools import cache

import pytest

from pvehook.rules.budget import share
from pvehook.rules.forecast import Expected
from pvehook.rules.governor_readings import NightShare, Others
from tests.bench.disk_models import RAID
from tests.rules.governor_model import Guest
from tests.rules.node_model import NodeNight, node_night

NEIGHBOUR = {140: Guest()}
SIZES_MIB = (900, 400, 1500, 600, 1200, 500, 800)


def of(alone_s: float, cost_s: float = 0.0, spread: float = 1.0) -> Expected:
    expected_s = alone_s + cost_s
    return Expected(expected_s, expected_s / spread, expected_s * spread, alone_s)


def need_s(this: Expected | None, coming: list[Expected], left_s: float) -> float:
    others = share(this, coming, left_s).others
    assert others is not None
    return others.need_s


def test_nobody_behind_it_needs_nothing() -> None:
    assert share(of(100), [], 1000) == NightShare(None, 100)


def test_those_behind_it_keep_what_they_take_alone_and_a_part_of_their_error() -> None:
    assert need_s(of(100), [of(200), of(300)], 10_000) == 500
    assert 500 < need_s(of(100), [of(200, spread=1.2), of(300, spread=1.2)], 10_000) < 600


def test_slack_is_kept_for_those_who_will_be_slowed_too() -> None:
    assert need_s(of(100), [of(200, 50)], 10_000) == 250
    assert need_s(of(100, 50), [of(200, 50)], 300 + 40) == 200 + 20, "half of 40 s each"
    assert need_s(of(100, 50), [of(200, 50)], 200) == 200, "none is left"


@pytest.mark.parametrize(
    ("others", "text"),
    [
        (Others(1, 30.0), "1 guest is still to come and needs 0h01"),
        (Others(3, 52 * 60.0), "3 guests are still to come and need 0h52"),
    ],
)
def test_they_are_told_in_words(others: Others, text: str) -> None:
    assert others.in_words() == text


@cache
def free_s(number: int) -> float:
    return play(number, governed=False).duration_s


def play(number: int, governed: bool = True, window_s: float | None = None, knows_others: bool = False) -> NodeNight:
    coming = [of(free_s(each), spread=1.15) for each in range(number + 1, len(SIZES_MIB))] if knows_others else []
    this = of(free_s(number)) if knows_others else None
    return node_night(
        RAID,
        NEIGHBOUR,
        size_mib=SIZES_MIB[number],
        seed=number + 1,
        governed=governed,
        window_s=window_s,
        night=share(this, coming, window_s) if window_s is not None else NightShare(),
    )


def refused_and_nights(closes_s: float, knows_others: bool) -> tuple[list[int], list[NodeNight]]:
    """A night of all of them, one after the other. Who comes when the window has closed is refused."""
    now_s, refused, nights = 0.0, [], []
    for number in range(len(SIZES_MIB)):
        if now_s >= closes_s:
            refused.append(number)
            continue
        nights.append(play(number, window_s=closes_s - now_s, knows_others=knows_others))
        now_s += nights[-1].duration_s
    return refused, nights


@pytest.mark.parametrize("slack", [1.01, 1.1, 1.3])
def test_in_a_tight_night_nobody_is_refused_for_the_governor(slack: float) -> None:
    """On one shared disk. Without the governor the last one begins just before the window closes."""
    closes_s = slack * sum(free_s(number) for number in range(len(SIZES_MIB) - 1))
    without, _ = refused_and_nights(closes_s, knows_others=False)
    refused, nights = refused_and_nights(closes_s, knows_others=True)
    took_s = [round(each.duration_s, 1) for each in nights]
    figures = f"without a budget {without} are refused; with it {refused}, their backups took {took_s}"
    assert without, figures
    assert not refused, figures
    assert any("still to come and need" in each.reasons() for each in nights), figures


def test_with_time_for_everybody_nobody_is_held_up_by_the_budget() -> None:
    closes_s = 2.5 * sum(free_s(number) for number in range(len(SIZES_MIB)))
    refused, nights = refused_and_nights(closes_s, knows_others=True)
    _, same = refused_and_nights(closes_s, knows_others=False)
    assert not refused
    assert [each.duration_s for each in nights] == [each.duration_s for each in same]
    stalled_s = sum(each.guests[140].stalled_s for each in nights)
    assert stalled_s < 0.1 * sum(play(number, governed=False).guests[140].stalled_s for number in range(len(SIZES_MIB)))
