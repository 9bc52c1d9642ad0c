"""How long each guest's next backup takes, and when the guests of one run begin and end. Pure; times are seconds.

    expected(past, weekday)        one guest's next backup, from its last ones
    from_bytes(size, rates)        of a guest without a history, from its disks' size and the rates of others
    timeline(guests, start, closes)    when each begins and ends, and whether all of them begin before the window closes

**Why this estimator.** A backup's length grows and varies by factors (10-15 % from one night to the next), so it is
averaged as a logarithm. What slowing added is taken out first and its usual share added again: what one night cost says
nothing about the guest. The last nights count most (each older one 0.85 times as much, about twelve nights in all),
because guests grow. A night that is 35 % away from the middle is odd and is left out of the average. Two of them in a
row to the same side are the guest's new size, and what was before them is forgotten. The same on two days a week apart
is a habit, as with a weekly full copy, and is expected again. A median alone would do against odd nights, but needs
half as many nights again for the same error; a fit with weekdays and a trend needs months of history.

**The range** is to hold nine nights of ten. Its width comes from how far the guest's own nights were from the average;
since seven nights tell little of that, 15 % counts as four more nights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal, NamedTuple

DAY_S: Final = 86400.0
LAST_COUNTED: Final = 28
"""Backups: older ones have no weight any more, except that four weeks show what comes once a week."""
OLDER_COUNTS: Final = 0.85  # × for each night. tests/rules/test_months.py: less is noisier, with more growth is missed
ODD_FROM: Final = math.log(1.35)  # 2.5 times the spread of ordinary nights
USUAL_SPREAD, USUAL_NIGHTS = 0.15, 4.0
NINE_OF_TEN: Final = 1.645  # standard deviations to each side, of a normal distribution
ODD_SHARE: Final = 0.1  # so many odd nights belong into a range that holds nine of ten
BYTES_RANGE: Final = 3.0  # × to each side; how full a disk is and how fast its storage can be read are not known
CANCELLED_AT: Final = 1.5  # × the length at which it was cancelled; a guess
COMMON_PART: Final = 0.1
"""Of two guests' errors so much is the same one: a target that is slow tonight is slow for all."""
COST_SHARE_LIMIT: Final = 2.0  # a limit: `stretch_at_most` may be set to 20, and one such night is no forecast


class PastBackup(NamedTuple):
    """A backup that was made of the guest."""

    age_s: float
    """From its start to the one that is forecast."""
    duration_s: float
    cost_s: float = 0.0
    """What being slowed had added to it."""
    copied_bytes: float | None = None
    is_whole: bool = True
    """False: it was cancelled, so all that is known is that it would have taken longer."""

    @property
    def alone_s(self) -> float:
        """How long it would have taken if nobody had slowed it."""
        return max(self.duration_s - self.cost_s, self.duration_s / 20, 1.0)


class Expected(NamedTuple):
    """One guest's next backup."""

    expected_s: float
    shortest_s: float
    longest_s: float
    """Nine backups of ten take between these."""
    alone_s: float
    """What is expected if nobody slows it."""
    known_by: Literal["history", "guess"] = "history"
    """guess: from the size of its disks, or a backup that was cancelled."""


class Errors(NamedTuple):
    """By how much the sum of several forecasts may be wrong, to one side. The errors of several guests partly cancel
    each other."""

    squares: float = 0.0
    total_s: float = 0.0

    def plus(self, error_s: float) -> Errors:
        return Errors(self.squares + error_s**2, self.total_s + error_s)

    @property
    def together_s(self) -> float:
        return math.sqrt((1 - COMMON_PART) * self.squares + COMMON_PART * self.total_s**2)


class ExpectedTurn(NamedTuple):
    """One guest of a run. Times are on the clock of the `now_s` that was given. None: of this guest, or of one before
    it, it is not known how long it takes."""

    vmid: int
    start_s: float | None
    end_s: tuple[float, float, float] | None
    """Expected, and the earliest and the latest: nine of ten are between these."""
    is_late: bool
    """It is expected to begin when the window has closed."""


class Timeline(NamedTuple):
    """A run, or what is left of it."""

    turns: tuple[ExpectedTurn, ...]
    unknown: tuple[int, ...]
    """Guests of which it is not known how long they take: they are counted as nothing where the run is summed up."""
    end_s: float
    earliest_s: float
    latest_s: float

    @property
    def late(self) -> tuple[int, ...]:
        """Guests that are expected to come after the window has closed."""
        return tuple(turn.vmid for turn in self.turns if turn.is_late)


def expected(past: Sequence[PastBackup], size_bytes: float | None, rates: Sequence[float]) -> Expected | None:
    """The guest's next backup; None: nothing is known of it. `past`: its backups in any order; `size_bytes`: what
    its disks hold at most; `rates`: bytes per second at which other guests were read lately."""
    by_age = sorted((each for each in past if each.age_s > 0 and each.duration_s > 0), key=lambda each: each.age_s)
    known = [each for each in by_age if each.is_whole][:LAST_COUNTED]
    if not known:
        return _from_bytes(size_bytes, rates) or _from_cancelled(by_age)
    logs = [math.log(each.alone_s) for each in known]
    known, logs = _since_it_changed(known, logs)
    weights = [OLDER_COUNTS**number for number in range(len(known))]
    middle = _middle(logs, weights)
    ordinary = [abs(log - middle) <= ODD_FROM for log in logs]
    level = _mean(logs, [weight * is_ordinary for weight, is_ordinary in zip(weights, ordinary, strict=True)])
    away = [log - level for log in logs]
    weekdays = [round(each.age_s / DAY_S) % 7 for each in known]
    habit, rare = _weekly(away, weekdays)
    level += habit.get(0, 0.0)
    share = min(_mean([each.duration_s / each.alone_s - 1 for each in known], weights), COST_SHARE_LIMIT)
    # How far each night was from what it would have been taken for, with what slowing added to it.
    errors = [
        math.log(each.duration_s) - math.log1p(share) - log + distance - habit.get(day, 0.0)
        for each, log, distance, day in zip(known, logs, away, weekdays, strict=True)
    ]
    spread, nights = _spread(errors, weights)
    nights = min(nights, weekdays.count(0)) if 0 in habit else nights
    around = NINE_OF_TEN * spread * math.sqrt(1 + 1 / nights)
    below = above = around
    for error in _rare_errors(errors, weights, weekdays) + ([rare] if rare is not None else []):
        below, above = max(below, around - error), max(above, around + error)
    likely_s = math.exp(level) * (1 + share)
    return Expected(likely_s, likely_s * math.exp(-below), likely_s * math.exp(above), math.exp(level))


def rates_of(past: Sequence[PastBackup]) -> list[float]:
    """At how many bytes per second a guest was read when nobody slowed it."""
    return [each.copied_bytes / each.alone_s for each in past if each.copied_bytes]


def timeline(guests: Sequence[tuple[int, Expected | None]], now_s: float, closes_s: float | None) -> Timeline:
    """Guests one after the other, the first from now on."""
    turns = []
    unknown: list[int] = []
    end_s, below, above = now_s, Errors(), Errors()
    for vmid, each in guests:
        start_s, start_is_known = end_s, not unknown
        if each is None:
            unknown.append(vmid)
        else:
            end_s += each.expected_s
            below = below.plus(each.expected_s - each.shortest_s)
            above = above.plus(each.longest_s - each.expected_s)
        span = None if unknown else (end_s, end_s - below.together_s, end_s + above.together_s)
        is_late = closes_s is not None and start_s >= closes_s
        turns.append(ExpectedTurn(vmid, start_s if start_is_known else None, span, is_late))
    return Timeline(tuple(turns), tuple(unknown), end_s, end_s - below.together_s, end_s + above.together_s)


def _from_bytes(size_bytes: float | None, rates: Sequence[float]) -> Expected | None:
    usable = [rate for rate in rates if rate > 0]
    if not size_bytes or not usable:
        return None
    likely_s = size_bytes / median(usable)
    return Expected(likely_s, likely_s / BYTES_RANGE, likely_s * BYTES_RANGE, likely_s, "guess")


def _from_cancelled(cancelled: Sequence[PastBackup]) -> Expected | None:
    if not cancelled:
        return None
    shortest_s = max(each.duration_s for each in cancelled)
    return Expected(CANCELLED_AT * shortest_s, shortest_s, BYTES_RANGE * shortest_s, CANCELLED_AT * shortest_s, "guess")


def _since_it_changed(known: list[PastBackup], logs: list[float]) -> tuple[list[PastBackup], list[float]]:
    """Without what was before the guest became larger or smaller all at once: its last two backups are odd, and alike.
    Once there are more of the new ones than of the old ones the middle is theirs anyway."""
    if len(logs) < 4:
        return known, logs
    away = [log - median(logs[2:]) for log in logs]
    if min(away[:2]) <= ODD_FROM and max(away[:2]) >= -ODD_FROM:
        return known, logs
    side = math.copysign(1.0, away[0])
    last = next((number for number, each in enumerate(away) if each * side <= ODD_FROM), len(away))
    return known[:last], logs[:last]


def _weekly(away: Sequence[float], weekdays: Sequence[int]) -> tuple[dict[int, float], float | None]:
    """What comes once a week: how far each such weekday is from the level, 0 is the weekday that is forecast. And how
    far that weekday was the one time that it was seen, if that was odd: it may come again, and may be chance."""
    by_day: dict[int, list[float]] = {}
    for distance, day in zip(away, weekdays, strict=True):
        by_day.setdefault(day, []).append(distance)
    habit = {}
    for day, distances in by_day.items():
        lately = distances[:2]
        if len(lately) == 2 and (min(lately) > ODD_FROM or max(lately) < -ODD_FROM):
            habit[day] = sum(distances) / len(distances)
    once = by_day.get(0, [])
    return habit, once[0] if len(once) == 1 and abs(once[0]) > ODD_FROM else None


def _rare_errors(errors: Sequence[float], weights: Sequence[float], weekdays: Sequence[int]) -> list[float]:
    """Odd nights without a habit, where they are too many for a range that holds nine of ten. One is none."""
    odd = [(error, weight) for error, weight in zip(errors, weights, strict=True) if abs(error) > ODD_FROM]
    if len(odd) < 2 or sum(weight for _, weight in odd) <= ODD_SHARE * sum(weights):
        return []
    if len({day for error, day in zip(errors, weekdays, strict=True) if abs(error) > ODD_FROM}) == 1:
        return []  # always the same weekday: _weekly sees to it
    return [median(error for error, _ in odd)]


def _spread(errors: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The standard deviation of ordinary nights, and of how many."""
    usual = [(error, weight) for error, weight in zip(errors, weights, strict=True) if abs(error) <= ODD_FROM]
    nights = sum(weight for _, weight in usual)
    squares = sum(weight * error**2 for error, weight in usual) + USUAL_NIGHTS * USUAL_SPREAD**2
    return math.sqrt(squares / (nights + USUAL_NIGHTS)), max(nights, 1.0)


def _middle(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted median."""
    passed, half = 0.0, sum(weights) / 2
    for value, weight in sorted(zip(values, weights, strict=True)):
        passed += weight
        if passed >= half:
            return value
    raise ValueError("no values")


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
