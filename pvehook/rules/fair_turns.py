"""Who gives way to whom when the window is too short for all guests of a run. Pure; times are seconds.

vzdump takes guests by their VMID and asks at each one's start. So without this the same ones are refused every night:
those at the end. With it, at each guest's start:

    the guests that are still to come, and this one, are put in order: who waited longest comes first
    in this order each is given a place, as long as all who have one still begin in time, in vzdump's order
    this guest is refused if it finds no place, and somebody who waited longer would be late because of it

So nobody is refused while the rest of the night fits, nor for one who would not gain by it. The next guest's start is
decided anew, by the time that is left then.

Nights are compared, not minutes: of two that were backed up last night neither has waited longer. Then the backups
before that count, so that the turns go round. Never backed up is the longest wait.

A guest that by itself is longer than the whole night costs all others theirs. It has its turn when it has waited
longer than they did. A backup of it that failed or was cancelled counts as one: else it would come first every night.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

from pvehook.rules.forecast import DAY_S, Errors

BACKUPS_COMPARED: Final = 4
BEGINS_BEFORE_S: Final = 1.0  # at the instant at which the window closes it is too late
CANCELLED_COUNTS: Final = 1 / 7
RUNS_AHEAD: Final = 7
"""How far it is looked ahead for somebody's next turn."""


class Waiting(NamedTuple):
    """One guest of this run whose turn is still to come, or that was refused in it."""

    vmid: int
    takes_s: float
    """What its backup is expected to take if nobody slows it; 0: that is not known, and nobody is refused for it."""
    error_s: float = 0.0
    """By how much longer one of twenty takes."""
    backups_s: tuple[float, ...] = ()
    """How long ago its last good backups began, the last one first."""
    last_turn_s: float | None = None
    """How long ago its last backup began, also one that failed; None: it never had one."""
    is_bound: bool = True
    """By the window: it is refused when that has closed."""


class Night(NamedTuple):
    """The time there is."""

    left_s: float
    """Until the window closes."""
    whole_s: float
    """The same at the start of the run."""
    must_end: bool = False
    """A backup that runs when the window closes is cancelled, so it has to end before that."""


class GivesWay(NamedTuple):
    """Why the guest is refused."""

    to: tuple[int, ...]
    """Who waited longer, and would come too late if it were backed up now."""
    next_turn: int | None
    """Its turn is expected to come in so many runs of this job; None: not in the next RUNS_AHEAD."""


def gives_way(coming: Sequence[Waiting], refused: Sequence[Waiting], night: Night) -> GivesWay | None:
    """Whether the first of `coming` gives way to those behind it; None: it is to be backed up. Both are in vzdump's
    order; `refused` are those who gave way earlier in this run."""
    asking = coming[0]
    if not asking.is_bound:
        return None
    candidates = _candidates(coming, night, _waited(asking, night))
    longer = {each.guest.vmid for each in candidates if each.waited > candidates[0].waited}
    if not longer or not _late(candidates, night):
        return None
    placed = _placed(candidates, night)
    if asking.vmid in placed:
        return None
    late = _late([each for each in candidates if each.guest.vmid in placed or each.guest is asking], night)
    to = tuple(vmid for vmid in late if vmid in longer)
    if not to:
        return None
    without_place = [each.guest for each in candidates if each.guest.vmid not in placed]
    return GivesWay(to, _next_turn(asking, [*refused, *without_place], night))


class _Candidate(NamedTuple):
    guest: Waiting
    waited: tuple[float, ...]
    """The greater, the longer."""
    waited_a_night_more: bool
    """Than the one that asks."""


def _candidates(guests: Sequence[Waiting], night: Night, asking_waited: tuple[float, ...]) -> list[_Candidate]:
    waited = [_waited(each, night) for each in guests]
    return [_Candidate(each, its, its[0] > asking_waited[0]) for each, its in zip(guests, waited, strict=True)]


def _waited(guest: Waiting, night: Night) -> tuple[float, ...]:
    ages = [round(age_s / DAY_S) for age_s in guest.backups_s[:BACKUPS_COMPARED]]
    nights: list[float] = [*ages, *[math.inf] * (BACKUPS_COMPARED - len(ages))]
    if guest.takes_s > night.whole_s and guest.last_turn_s is not None:
        counts = CANCELLED_COUNTS if night.must_end else 1.0
        nights[0] = min(nights[0], round(counts * guest.last_turn_s / DAY_S))
    return tuple(nights)


def _placed(candidates: Sequence[_Candidate], night: Night) -> set[int]:
    """Who has a place in this night. The window does not bind some of them: these run in any case."""
    numbered = list(enumerate(candidates))
    placed = [(number, each) for number, each in numbered if not each.guest.is_bound]
    for number, each in sorted(numbered, key=lambda one: one[1].waited, reverse=True):
        if each.guest.is_bound:
            place = bisect(placed, number, key=lambda one: one[0])
            with_it = [*placed[:place], (number, each), *placed[place:]]
            if not _late([one for _, one in with_it], night):
                placed = with_it
    return {each.guest.vmid for _, each in placed}


def _late(run: Sequence[_Candidate], night: Night) -> list[int]:
    """Who of these would come too late, if all of them are backed up one after the other. Who has waited a night longer
    than the one that asks is to come in time even if those before it take longer than expected."""
    late, passed_s, errors = [], 0.0, Errors()
    for guest, _, waited_a_night_more in run:
        until_s = passed_s + (errors.together_s if waited_a_night_more else 0.0)
        if guest.is_bound and until_s + _must_have_s(guest, night) > night.left_s:
            late.append(guest.vmid)
        passed_s += guest.takes_s
        errors = errors.plus(guest.error_s)
    return late


def _must_have_s(guest: Waiting, night: Night) -> float:
    """How long before the window closes it has to begin. One that is longer than the whole night can never end in it,
    and is let begin all the same: the window's end decides."""
    return guest.takes_s if night.must_end and guest.takes_s <= night.whole_s else BEGINS_BEFORE_S


def _next_turn(asking: Waiting, waiting: Sequence[Waiting], night: Night) -> int | None:
    """By playing the next runs with those who find no place in this one. All others are backed up tonight, and so
    come after them."""
    whole = night._replace(left_s=night.whole_s)
    for run in range(1, RUNS_AHEAD + 1):
        waiting = sorted((_a_day_later(each) for each in waiting), key=lambda each: each.vmid)
        placed = _placed(_candidates(waiting, whole, _waited(asking, whole)), whole)
        if asking.vmid in placed:
            return run
        waiting = [each for each in waiting if each.vmid not in placed]
    return None


def _a_day_later(guest: Waiting) -> Waiting:
    last_turn_s = guest.last_turn_s + DAY_S if guest.last_turn_s is not None else None
    return guest._replace(backups_s=tuple(age_s + DAY_S for age_s in guest.backups_s), last_turn_s=last_turn_s)
