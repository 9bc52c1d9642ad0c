"""Who was backed up in one night, who was not and why, and in which runs: from the history's attempts.

A turn belongs to the night in which it began, from noon to noon (beside.py). So two jobs one behind the other are one
night, and so is a job over midnight; of a run that goes on beyond noon the rest is told of its run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from pvehook.contract.text import printable
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between, last_good_s, last_turn_s
from pvehook.records.figures import short_duration
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import DAY_S
from pvehook.report.beside import night_of
from pvehook.report.trends import NAME_LIMIT
from pvehook.rules.window import DAYS

KNOWN_DAYS: Final = 35
"""A guest without a turn for so long is gone, as far as the history can tell."""
LONGEST_RUN_S: Final = 2 * DAY_S

RESULTS_IN_WORDS: Final = {
    "ok": "backed up",
    "failed": "failed",
    "refused": "refused",
    "cancelled": "cancelled",
    "worker-died": "worker died",
    "unknown": "not known",
    "": "had no turn",
}
NOT_BACKED_UP: Final = ("failed", "worker-died", "cancelled", "refused", "unknown")
"""What is worst comes first."""
_COUNTS_BEFORE: Final = ("refused", "worker-died", "cancelled", "failed", "unknown", "ok")
"""Of a guest with several turns in a night: the later one here says how it fared."""
_UNSEEN: Final = "its end was not seen, so there may be a good backup"


class GuestTurns(NamedTuple):
    """One guest in one night."""

    vmid: int
    title: str
    """`VM 101 web`, fit to be shown."""
    turns: tuple[Attempt, ...]
    """The oldest first; none: it was not in any run of this night."""
    last_good_s: float | None
    """When its last good backup of all began, in seconds since the epoch; None: there is none on record."""
    passed_over_by: str | None = None
    """The job whose run in this night did not come to it, and whose run before had: one that was broken off."""

    @property
    def counted(self) -> Attempt | None:
        """The turn that says how it fared: a good one, else one that came as far as possible, else that of its
        schedule; the last of these."""
        return max(self.turns, key=_weight, default=None)

    @property
    def result(self) -> str | None:
        """None: it had no turn."""
        return self.counted.result if self.counted is not None else None


def _weight(turn: Attempt) -> tuple[int, bool, float]:
    return _COUNTS_BEFORE.index(turn.result), turn.trigger == "schedule", turn.started_s


class Run(NamedTuple):
    """One vzdump run of the night."""

    turns: tuple[Attempt, ...]
    """Those of this night, the oldest first; at least one."""
    earlier: int
    """So many more of its turns were in the night before,"""
    later: int
    """and so many in the next one."""

    @property
    def is_refused(self) -> bool:
        """No guest of it was let in."""
        return all(turn.result == "refused" for turn in self.turns)

    @property
    def is_plain(self) -> bool:
        """There is nothing to tell of it but its guests."""
        is_usual = self.turns[0].trigger in ("schedule", "unknown")
        return is_usual and not (self.is_refused or self.earlier or self.later)


class NightTurns(NamedTuple):
    """See the top of this file. Times in seconds since the epoch."""

    from_s: float
    to_s: float
    """Noon and noon."""
    as_of_s: float
    """Ages of backups are as of then."""
    nodes: tuple[str, ...]
    guests: tuple[GuestTurns, ...]
    """Those that had a turn, in the order of their numbers."""
    others: tuple[GuestTurns, ...]
    """Those that had none in this night, and one in the KNOWN_DAYS before."""
    runs: tuple[Run, ...]
    """As far as their tasks are known, in the order in which they began."""

    @property
    def begun(self) -> list[Attempt]:
        """Turns in which a backup began."""
        return [turn for guest in self.guests for turn in guest.turns if turn.result != "refused"]

    @property
    def passed_over(self) -> list[GuestTurns]:
        """Those to which a run should have come, and did not."""
        return [guest for guest in self.others if guest.passed_over_by is not None]

    def with_result(self, result: str) -> list[GuestTurns]:
        return [guest for guest in self.guests if guest.result == result]


def last_night(history: sqlite3.Connection, now_s: float, zone: tzinfo) -> NightTurns | None:
    """The last night on record. None: there is no turn at all."""
    last_s = last_turn_s(history, now_s + DAY_S)  # as elsewhere: what a wrong clock dated ahead is not the last night
    return None if last_s is None else night_turns(history, last_s, now_s, zone)


def night_turns(history: sqlite3.Connection, at_s: float, as_of_s: float, zone: tzinfo) -> NightTurns | None:
    """The night of this instant. None: there is no turn in it."""
    from_s, to_s = night_of(at_s, zone)
    known = attempts_between(history, to_s - KNOWN_DAYS * DAY_S, to_s + LONGEST_RUN_S)
    turns = [turn for turn in known if from_s <= turn.started_s < to_s]
    if not turns:
        return None
    good_s = last_good_s(history, as_of_s)
    of_guest: dict[int, list[Attempt]] = {}
    for turn in known:
        if turn.started_s < to_s:
            of_guest.setdefault(turn.vmid, []).append(turn)
    passed_over = _passed_over(turns, known, from_s)
    guests = [
        GuestTurns(
            vmid,
            _title(of_guest[vmid]),
            tuple(turn for turn in of_guest[vmid] if turn.started_s >= from_s),
            good_s.get(vmid),
            passed_over.get(vmid),
        )
        for vmid in sorted(of_guest)
    ]
    return NightTurns(
        from_s,
        to_s,
        as_of_s,
        tuple(sorted({turn.node for turn in turns})),
        tuple(guest for guest in guests if guest.turns),
        tuple(guest for guest in guests if not guest.turns),
        tuple(_runs(turns, known, from_s, to_s)),
    )


def _title(turns: Sequence[Attempt]) -> str:
    """By its last turn in which its name was seen: a run that was refused as a whole knows numbers only."""
    seen = next((turn for turn in reversed(turns) if turn.name is not None), turns[-1])
    vmtype = next((turn.vmtype for turn in reversed(turns) if turn.vmtype is not None), None)
    return f"{guest_number(vmtype, seen.vmid)} {printable(seen.name or '', NAME_LIMIT)}".rstrip()


def _passed_over(turns: Sequence[Attempt], known: Sequence[Attempt], from_s: float) -> dict[int, str]:
    """Of each guest without a turn in this night's runs, the job that came to it in its run before."""
    tonight = {turn.job for turn in turns if turn.job}
    jobs = {turn.job_id for turn in turns if turn.job and turn.job_id is not None}
    had_turn = {turn.vmid for turn in turns} | {turn.vmid for turn in known if turn.job in tonight}
    before = [turn for turn in known if turn.job_id in jobs and turn.started_s < from_s and turn.job not in tonight]
    last = {turn.job_id: turn.job for turn in before}  # the oldest comes first
    return {
        turn.vmid: turn.job_id
        for turn in before
        if turn.job_id is not None and turn.job == last[turn.job_id] and turn.vmid not in had_turn
    }


def _runs(turns: Sequence[Attempt], known: Sequence[Attempt], from_s: float, to_s: float) -> list[Run]:
    of_job: dict[str, list[Attempt]] = {}
    for turn in turns:
        if turn.job:
            of_job.setdefault(turn.job, []).append(turn)
    earlier, later = dict.fromkeys(of_job, 0), dict.fromkeys(of_job, 0)
    for turn in known:
        if turn.job in of_job:
            earlier[turn.job] += turn.started_s < from_s
            later[turn.job] += turn.started_s >= to_s
    return [Run(tuple(of_job[job]), earlier[job], later[job]) for job in of_job]


# In words


def night_in_words(turns: NightTurns, zone: tzinfo) -> str:
    """`Mon 2026-11-23 to Tue 2026-11-24`."""
    return f"{day_in_words(turns.from_s, zone)} to {day_in_words(turns.to_s, zone)}"


def day_in_words(at_s: float, zone: tzinfo) -> str:
    """`Tue 2026-11-24`; the day is not left to strftime: it follows the locale."""
    at = datetime.fromtimestamp(at_s, zone)
    return f"{DAYS[at.weekday()][:3].capitalize()} {at:%Y-%m-%d}"


def clock(at_s: float, zone: tzinfo) -> str:
    """`02:03`."""
    return f"{datetime.fromtimestamp(at_s, zone):%H:%M}"


def result_in_words(result: str | None) -> str:
    return RESULTS_IN_WORDS[result] if result else "no turn"


def reason_of(turn: Attempt) -> str:
    """Why there is no good backup, in one line."""
    return printable(turn.reason, 400) or (_UNSEEN if turn.result == "unknown" else "no reason is on record")


def passed_over_in_words(job_id: str) -> str:
    """Why such a guest has no backup."""
    return f"the run of job {printable(job_id, 64)} did not come to it, the one before had"


def age_in_words(guest: GuestTurns, as_of_s: float) -> str:
    """`5d03h ago`."""
    if guest.last_good_s is None:
        return "none on record"
    return f"{short_duration(max(as_of_s - guest.last_good_s, 0.0))} ago"


def counted_in_words(turns: NightTurns, is_running: bool, zone: tzinfo) -> str:
    """`37 of 40 guests were backed up, 2 refused, 1 failed, from 02:00 to 05:07 (3h07)`; so far, if a run goes on."""
    results = [guest.result or "" for guest in (*turns.guests, *turns.passed_over)]
    good, number = results.count("ok"), len(results)
    rest = counts_in_words([result for result in results if result != "ok"])
    if number == 1:
        text = "The one guest was backed up" if good else f"The one guest was not backed up ({rest})"
    elif good == number:
        text = f"All {number} guests were backed up"
    else:
        text = f"{good or 'None'} of {number} guests {'was' if good == 1 else 'were'} backed up, {rest}"
    if begun := turns.begun:
        began_s, ended_s = min(turn.started_s for turn in begun), max(turn.ended_s for turn in begun)
        text += f", from {clock(began_s, zone)} to {clock(ended_s, zone)} ({short_duration(ended_s - began_s)})"
    return f"So far {text[:1].lower()}{text[1:]}" if is_running else text


def counts_in_words(results: Sequence[str]) -> str:
    """`37 backed up, 2 refused, 1 failed`; a result that nobody had is left out."""
    return ", ".join(
        f"{results.count(result)} {words}" for result, words in RESULTS_IN_WORDS.items() if result in results
    )


def run_in_words(run: Run) -> str:
    """`job nightly, by its schedule: 37 backed up, 2 refused`; what started it, and what became of it."""
    first = run.turns[0]
    job = f"job {printable(first.job_id, 64)}" if first.job_id else "run"
    started = {
        "schedule": "by its schedule",
        "missed": "started at boot because it was missed while the node was off (repeat-missed)",
        "hand": "started by hand",
    }.get(first.trigger, "what started it is not known")
    number = len({turn.vmid for turn in run.turns})
    if run.is_refused:
        what = f"{f'all {number} guests' if number > 1 else 'its guest'} refused: {reason_of(first)}"
    else:
        what = counts_in_words([turn.result for turn in run.turns])
    text = f"{job}, {started}: {what}"
    if run.earlier:
        text += f"; it began in the night before, with {run.earlier} more"
    if run.later:
        text += f"; it went on after noon, with {run.later} more"
    return text
