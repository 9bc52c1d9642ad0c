"""How a guest of the node stands with what its jobs promise, as it is shown. Judged by rules/overdue.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import NamedTuple, TypeAlias

from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.records.figures import short_duration
from pvehook.report.night_turns import NightTurns, day_in_words


class Standing(NamedTuple):
    """One guest's."""

    vmid: int
    title: str
    """`VM 101 web`, fit to be shown."""
    last_good_s: float | None
    """When its last good backup began, in seconds since the epoch; None: none is on record."""
    in_job: bool
    """An enabled job takes it."""
    missed_turns: int = 0
    is_overdue: bool = False
    cause: str = ""
    """Why its turns are missed; empty: they are not."""
    ways_out: tuple[str, ...] = ()
    """`what for: command`."""
    not_understood: tuple[str, ...] = ()
    """Jobs of its whose schedule is not understood, each with the reason: what they promise is not counted."""
    promised_s: float | None = None
    """Since when a job takes it; None: none does."""
    overdue_logged_s: float | None = None
    """When the journal last had that it is overdue."""

    @property
    def note(self) -> str:
        """`overdue`, `1 turn missed`, `in no job`; empty: it has what it is promised."""
        if self.is_overdue:
            return "overdue"
        if self.missed_turns:
            return f"{self.missed_turns} turn{'s' if self.missed_turns > 1 else ''} missed"
        return "" if self.in_job else "in no job"


StandingsOf: TypeAlias = Callable[[NightTurns], Measured[tuple[Standing, ...]]]
"""Those of all guests of the node, at the end of its last night."""


def named(turns: NightTurns, standings: Measured[tuple[Standing, ...]]) -> NightTurns:
    """The same with the guests' titles of today, where they are known: a run that was refused as a whole knows their
    numbers only. And a guest that is gone, or in no job any more, was not passed over."""
    known = {each.vmid: each for each in value_of(standings) or ()}
    guests, others = (
        tuple(guest._replace(title=known[guest.vmid].title) if guest.vmid in known else guest for guest in each)
        for each in (turns.guests, turns.others)
    )
    if known:
        in_job = {each.vmid for each in known.values() if each.in_job}
        others = tuple(each if each.vmid in in_job else each._replace(passed_over_by=None) for each in others)
    return turns._replace(guests=guests, others=others)


def still_to_come(turns: NightTurns) -> NightTurns:
    """The same of a night that goes on: nobody was passed over."""
    return turns._replace(others=tuple(guest._replace(passed_over_by=None) for guest in turns.others))


def ago(last_good_s: float | None, as_of_s: float, zone: tzinfo) -> str:
    """` 5d03h ago, Thu 2026-11-19 02:40`."""
    if last_good_s is None:
        return "no good backup on record"
    at = datetime.fromtimestamp(last_good_s, zone)
    return f"{short_duration(max(as_of_s - last_good_s, 0.0)):>6} ago, {day_in_words(last_good_s, zone)} {at:%H:%M}"


def last_good_in_words(standing: Standing, as_of_s: float, zone: tzinfo) -> str:
    """`last good backup 5d03h ago, Thu 2026-11-19 02:40`."""
    text = ago(standing.last_good_s, as_of_s, zone)
    return text if standing.last_good_s is None else f"last good backup {text.lstrip()}"


def way_out(text: str) -> tuple[str, str]:
    """What for, and the command."""
    what_for, _, command = text.partition(": ")
    return what_for, command


def promise_in_words(standings: Measured[tuple[Standing, ...]]) -> str:
    """In a sentence: whether every guest has a backup within what its jobs promise."""
    if isinstance(standings, (Absent, Broken)):
        return f"Whether every guest has a backup within what its jobs promise is not known: {standings.why}."
    in_job = [each for each in standings if each.in_job]
    late = sum(each.is_overdue for each in standings)
    without = sum(each.last_good_s is None for each in in_job)
    if late == 1:
        return "1 guest is OVERDUE: it has no backup within what its jobs promise."
    if late:
        return f"{late} guests are OVERDUE: they have no backup within what their jobs promise."
    if not in_job:
        return "No guest of this node is in a backup job."
    missed = sum(each.missed_turns > 0 for each in in_job)
    parts = []
    if missed:
        parts.append(f"{missed} guest{' has' if missed == 1 else 's have'} missed a turn")
    if without:
        guests = " in a job has" if without == 1 else "s in jobs have"
        parts.append(f"{without} guest{guests} no good backup on record yet")
    if parts:
        return f"No guest is overdue; {'; '.join(parts)}."
    return "Every guest that is in a job has a backup within what its jobs promise."
