"""Months of nights on paper (nights_model.py): who is backed up when the window is too short, and how good the forecast
is. Each figure stands in the message of its assertion."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import median

import pytest

from tests.rules.nights_model import Guest, Months, months

WINDOW_S = 3 * 3600.0
NEED_S = 4 * 3600.0 + 600.0
NIGHTS = 40
MOST_NIGHTS = math.ceil(NEED_S / WINDOW_S) + 1

pytestmark = pytest.mark.long


def forty(need_s: float, seed: int) -> list[Guest]:
    """Small and large ones, which need so much together in an average night."""
    chance = random.Random(seed)
    shares = [chance.lognormvariate(0.0, 0.8) for _ in range(40)]
    weekly = 1.08  # what the weekly full-size days and slowing add
    return [Guest(100 + each, need_s / weekly * share / sum(shares), seed) for each, share in enumerate(shares)]


@pytest.mark.parametrize("seed", range(2))
def test_in_order_starves_the_same_guests_for_ever(seed: int) -> None:
    held = months(forty(NEED_S, seed), WINDOW_S, NIGHTS, "in-order")
    starved = [vmid for vmid, nights in held.backed_up.items() if not nights]
    wait, vmid = held.longest_wait()
    assert wait == NIGHTS + 1, f"guest {vmid} waited {wait} nights, never backed up: {starved}"
    assert starved == list(range(starved[0], 140)), "they are those at the end of the order"


@pytest.mark.parametrize("seed", range(4))
def test_with_rotate_nobody_waits_for_long(seed: int) -> None:
    held = months(forty(NEED_S, seed), WINDOW_S, NIGHTS)
    wait, vmid = held.longest_wait()
    assert wait <= MOST_NIGHTS, f"guest {vmid}'s last good backup was {wait} nights old, at most {MOST_NIGHTS}"
    used = sum(each.took_s for each in held.forecasts) / (NIGHTS - 1) / WINDOW_S
    assert used > 0.95, f"backups run for {used:.1%} of the window"


@pytest.mark.parametrize("seed", range(2))
def test_when_the_night_fits_nobody_is_refused(seed: int) -> None:
    held = months(forty(0.85 * WINDOW_S, seed), WINDOW_S, NIGHTS)
    in_order = months(forty(0.85 * WINDOW_S, seed), WINDOW_S, NIGHTS, "in-order")
    without_need = [(night, vmid) for night, vmid, _ in held.gave_way if night not in dict(in_order.late)]
    longest = max(night for night, _ in in_order.late) if in_order.late else None
    assert len(without_need) <= 2 * len(dict(in_order.late)), f"{without_need}; nights that did not fit: {longest}"


@pytest.mark.parametrize("need", [1.2, 2.4, 3.6])
def test_the_bound_holds_for_other_needs_too(need: float) -> None:
    held = months(forty(need * WINDOW_S, 3), WINDOW_S, NIGHTS)
    wait, vmid = held.longest_wait()
    assert wait <= math.ceil(need * 1.05) + 1, f"guest {vmid} waited {wait} nights at a need of {need} windows"


def test_who_gives_way_is_told_when_its_turn_is_and_it_comes_then() -> None:
    held = months(forty(NEED_S, 1), WINDOW_S, NIGHTS)
    told = [(night, vmid, why.next_turn) for night, vmid, why in held.gave_way if night < NIGHTS - 7]
    came = [next(each for each in held.backed_up[vmid] if each > night) - night for night, vmid, _ in told]
    right = sum(turn == after for (_, _, turn), after in zip(told, came, strict=True))
    assert right > 0.97 * len(told), f"{right} of {len(told)}"


@pytest.mark.parametrize("running_guest", ["finish", "cancel"])
@pytest.mark.parametrize("vmid", [90, 115, 200])
def test_a_guest_that_is_longer_than_the_window_starves_nobody(vmid: int, running_guest: str) -> None:
    guests = sorted([*forty(0.6 * WINDOW_S, 2), Guest(vmid, 1.6 * WINDOW_S, 2)], key=lambda each: each.vmid)
    guests = list({each.vmid: each for each in guests}.values())
    held = months(guests, WINDOW_S, NIGHTS, running_guest=running_guest)  # type: ignore[arg-type]
    others = Months({key: nights for key, nights in held.backed_up.items() if key != vmid}, *held[1:])
    wait, whose = others.longest_wait(since=3)
    assert wait <= 3, f"guest {whose} waited {wait} nights"
    turns = held.backed_up[vmid]
    if running_guest == "finish":
        gaps = [after - before for before, after in pairwise(turns)]
        assert max(gaps) <= 4, f"its own turns: {turns}"


def test_the_forecast_is_good_after_a_week_and_its_range_holds() -> None:
    forecasts = [
        each
        for seed in range(3)
        for each in months(forty(0.7 * WINDOW_S, seed), WINDOW_S, NIGHTS).forecasts
        if each.night >= 7
    ]
    error = median(abs(each.was.expected_s - each.took_s) / each.took_s for each in forecasts)
    inside = sum(each.was.shortest_s <= each.took_s <= each.was.longest_s for each in forecasts) / len(forecasts)
    width = median((each.was.longest_s - each.was.shortest_s) / each.was.expected_s for each in forecasts)
    figures = f"median error {error:.1%}, {inside:.1%} within the range, which is {width:.0%} wide; {len(forecasts)}"
    assert error <= 0.10, figures
    assert 0.88 <= inside <= 0.95, figures
    assert width < 0.6, figures
