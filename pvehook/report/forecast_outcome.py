"""How the forecasts of one night did: what was expected when its runs began, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from statistics import median
from typing import NamedTuple

from pvehook.contract.text import printable
from pvehook.records.attempt import Attempt
from pvehook.records.figures import short_duration
from pvehook.report.night_turns import NightTurns, Run, clock


class Outcome(NamedTuple):
    """One good backup of which a forecast was made."""

    attempt: Attempt
    expected_s: float
    least_s: float
    most_s: float

    @property
    def error(self) -> float:
        """Of what it took."""
        return abs(self.expected_s - self.attempt.duration_s) / max(self.attempt.duration_s, 1.0)

    @property
    def is_within(self) -> bool:
        return self.least_s <= self.attempt.duration_s <= self.most_s


class RunEnd(NamedTuple):
    """Of a run in which all guests were backed up: only then its forecast is about what happened."""

    job_id: str | None
    expected_s: float
    ended_s: float
    """Both in seconds since the epoch."""

    @property
    def later_s(self) -> float:
        return self.ended_s - self.expected_s


class ForecastOutcome(NamedTuple):
    """Of at least one good backup of which a forecast was made."""

    outcomes: tuple[Outcome, ...]
    ends: tuple[RunEnd, ...]

    @property
    def error(self) -> float:
        """Half of the backups were off by less, as a part of what they took."""
        return median(each.error for each in self.outcomes)

    @property
    def within(self) -> int:
        """So many took as long as their range says."""
        return sum(each.is_within for each in self.outcomes)

    @property
    def furthest_off(self) -> Outcome | None:
        """Of those outside of their range; None: there is none."""
        outside = [each for each in self.outcomes if not each.is_within]
        return max(outside, key=lambda each: abs(each.expected_s - each.attempt.duration_s), default=None)


def forecast_outcome(turns: NightTurns) -> ForecastOutcome | None:
    """None: there was no forecast."""
    found = outcomes([turn for guest in turns.guests for turn in guest.turns])
    ends = (_end(run) for run in turns.runs)
    return ForecastOutcome(tuple(found), tuple(end for end in ends if end is not None)) if found else None


def outcomes(turns: Sequence[Attempt]) -> list[Outcome]:
    """Of those that have a forecast and a good backup."""
    return [
        Outcome(each, each.expected_s, each.expected_least_s, each.expected_most_s)
        for each in turns
        if each.result == "ok"
        and each.expected_s is not None
        and each.expected_least_s is not None
        and each.expected_most_s is not None
    ]


def _end(run: Run) -> RunEnd | None:
    last = max(run.turns, key=lambda turn: turn.ended_s)
    all_good = all(turn.result == "ok" for turn in run.turns) and not (run.earlier or run.later)
    if last.expected_end_s is None or not all_good:
        return None
    return RunEnd(last.job_id, last.expected_end_s, last.ended_s)


def forecast_in_words(found: ForecastOutcome, turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    """Sentences: all backups, each run's end, the one that was furthest off."""
    number = len(found.outcomes)
    if number > 1:
        within = f"{found.within} of {number} backups took as long as their range says"
        yield f"{within}; half were off by at most {found.error:.0%}"
    else:
        yield f"the backup took {'as' if found.within else 'not as'} long as its range says; off by {found.error:.0%}"
    for end in found.ends:
        job = f" of job {printable(end.job_id, 64)}" if end.job_id else ""
        off = f"{short_duration(abs(end.later_s))} {'later' if end.later_s >= 0 else 'earlier'} than forecast"
        yield f"the run{job} ended at {clock(end.ended_s, zone)}, {off}"
    if (worst := found.furthest_off) is not None:
        title = next(guest.title for guest in turns.guests if guest.vmid == worst.attempt.vmid)
        span = f"{short_duration(worst.least_s)}-{short_duration(worst.most_s)}"
        took = short_duration(worst.attempt.duration_s)
        yield f"furthest off: {title}, forecast {short_duration(worst.expected_s)} ({span}), took {took}"
