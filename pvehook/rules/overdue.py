"""Is a guest overdue: is its last good backup older than its jobs promise? And why, and what fixes it. Pure.

Each start of a job that takes a guest promises it a turn. A turn that brought no good backup is missed, and after
`window.overdue_after` missed turns of one job, with no good backup by any, the guest is overdue. So a job for the
weekend is not late on a Wednesday, and two jobs in one night are one night.

A start counts as missed when a turn of the guest is known since, or after TURN_COMES_WITHIN_S: until then the run may
still come to it. Only turns since a job of this node takes the guest count: before, it may have been on another node,
with backups there.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pvehook.contract.text import printable
from pvehook.rules.reschedule import at_opening, at_time, next_start, opened, set_schedule, stamp, wider
from pvehook.rules.schedule import starts_between
from pvehook.rules.window import Window, is_open, window_state

TURN_COMES_WITHIN_S: Final = 12 * 3600.0
"""After its job's start. A run may wait for the node's lock for 3 h, and take a night."""

_STARTS_SHOWN: Final = 7
"""Of the missed ones, the last: whether the window was open then."""
_REASON_LIMIT: Final = 160
_TIMES: Final = {1: "once", 2: "twice"}
_IN_WORDS: Final = {
    "refused": "refused",
    "failed": "failed",
    "cancelled": "cancelled",
    "worker-died": "broken off",
    "unknown": "not seen to its end",
}
_BEHIND: Final = timedelta(minutes=10)
"""So that the other job has taken the node's lock before."""


class Promise(NamedTuple):
    """A job that takes the guest."""

    job: str
    """Its id, or for a line of cron the file and the line's number."""
    schedule: str
    is_cron: bool = False
    storage: str | None = None
    is_exempt: bool = False
    """The window does not count for it."""
    without: str | None = None
    """pvesh's options that take this guest out of it; None: it takes no other, or it is not that simple."""
    needs_s: float | None = None
    """How long all of its guests on this node are expected to take; None: not known, or not asked for."""


class Turn(NamedTuple):
    """The guest's turn in a run that left no good backup."""

    at: datetime
    result: str
    """One of records.attempt's."""
    reason: str


class Facts(NamedTuple):
    """What is known of one guest. All times are aware, in the node's zone, by which schedules are read."""

    vmid: int
    last_good: datetime | None
    """When its last good backup began; None: none is on record."""
    promised_since: datetime
    """Since when a job of this node takes it."""
    promises: Sequence[Promise]
    turns: Sequence[Turn]
    """Since the last good backup, the oldest first."""
    disabled_jobs: Sequence[str] = ()
    """Those that would take it."""


class Verdict(NamedTuple):
    """What is told of the guest."""

    missed_turns: int
    is_overdue: bool
    cause: str
    """In one sentence; empty: its last turn brought a good backup, or none has come yet."""
    ways_out: tuple[str, ...]
    """`what for: command`: first the one for now, then those for good."""
    not_understood: tuple[str, ...]
    """Jobs whose schedule is not understood, each with the reason: what they promise is not counted."""


def judge(facts: Facts, now: datetime, window: Window, overdue_after: int) -> Verdict:
    """Whether the guest is overdue, by the jobs whose schedule is understood. `now` is in the node's zone."""
    missed: dict[Promise, list[datetime]] = {}
    not_understood = []
    for promise in facts.promises:
        try:
            missed[promise] = _missed(facts, promise, now)
        except ValueError as error:
            text = printable(promise.schedule, 60)
            not_understood.append(f"job {promise.job}: its schedule {text!r} is not understood: {error}")
    worst = max(missed, key=lambda each: len(missed[each]), default=None)
    starts = missed[worst] if worst is not None else []
    cause = ""
    ways: tuple[str, ...] = ()
    if worst is None:
        cause = _without_turns(facts, not_understood)
    elif starts:
        closed = [] if worst.is_exempt else [each for each in starts[-_STARTS_SHOWN:] if not is_open(window, each)]
        cause = _cause(facts, worst, starts, closed, window)
        ways = tuple(_ways(facts, worst, closed, now, window))
    return Verdict(len(starts), len(starts) >= overdue_after, cause, ways, tuple(not_understood))


def _missed(facts: Facts, promise: Promise, now: datetime) -> list[datetime]:
    since = max(facts.last_good or facts.promised_since, facts.promised_since, key=datetime.timestamp)
    starts = starts_between(promise.schedule, since, now, is_cron=promise.is_cron)
    over_s = now.timestamp() - TURN_COMES_WITHIN_S
    if facts.turns:
        over_s = max(over_s, facts.turns[-1].at.timestamp())
    return [each for each in starts if each.timestamp() <= over_s]


# Why


def _without_turns(facts: Facts, not_understood: Sequence[str]) -> str:
    if not_understood:
        return not_understood[0]
    if not facts.disabled_jobs:
        return "in no job"
    plural = "s" if len(facts.disabled_jobs) > 1 else ""
    return f"in no job that is enabled: job{plural} {', '.join(facts.disabled_jobs)} would take it"


def _cause(
    facts: Facts, promise: Promise, starts: Sequence[datetime], closed: Sequence[datetime], window: Window
) -> str:
    if not facts.turns:
        if closed:
            when = f"at its job's start ({stamp(closed[-1])}) the backup window is closed"
            return f"none of its {_turns(starts)} came to it: {when} ({window_state(window, closed[-1]).reason})"
        return f"its runs were never seen: {_turns(starts)}, the last {stamp(starts[-1])}"
    by_result: dict[str, list[Turn]] = {}
    for turn in facts.turns:
        by_result.setdefault(turn.result, []).append(turn)
    groups = sorted(by_result.values(), key=lambda turns: (-len(turns), -turns[-1].at.timestamp()))
    texts = [
        f"{_IN_WORDS.get(turns[0].result, turns[0].result)} {_times(len(turns))}: "
        f"{printable(turns[-1].reason or 'it is not known why', _REASON_LIMIT)}"
        for turns in groups
    ]
    unseen = len(starts) - len(facts.turns)
    if unseen > 0:
        texts.append(f"{unseen} more of its turns {'was' if unseen == 1 else 'were'} not seen")
    if "refused" in by_result and promise.needs_s is not None:
        hours, minutes = divmod(math.ceil(promise.needs_s / 60), 60)
        texts.append(f"job {printable(promise.job, 60)} needs {hours} h {minutes:02} min for all of its guests")
    return "; ".join(texts)


def _turns(starts: Sequence[datetime]) -> str:
    return f"{len(starts)} turn{'s' if len(starts) > 1 else ''}"


def _times(number: int) -> str:
    return _TIMES.get(number, f"{number} times")


# What fixes it


def _ways(
    facts: Facts, promise: Promise, closed: Sequence[datetime], now: datetime, window: Window
) -> Iterator[str]:
    results = {turn.result for turn in facts.turns[-_STARTS_SHOWN:]}
    by_window = bool(closed) or bool(results & {"refused", "cancelled"})
    storage = f" --storage {shlex.quote(promise.storage)}" if promise.storage else ""
    since = f"no backup since {facts.last_good.date()}" if facts.last_good else "no backup on record"
    allow = f'pvehook allow --vmid {facts.vmid} --for 4h --reason "{since}"'
    backup = f"vzdump {facts.vmid}{storage}"
    yield f"to back it up now: {backup if promise.is_exempt else f'{allow} && {backup}'}"
    if not by_window:
        yield f"to see what would become of its next backup: pvehook rehearse --vmid {facts.vmid}"
        return
    if promise.is_exempt:
        return
    start = next_start(promise.schedule, now, is_cron=promise.is_cron)
    if start is None:
        return
    is_closed = not is_open(window, start)
    earlier = at_opening(promise.schedule, start, now, window, is_cron=promise.is_cron)
    if earlier is not None:
        change = set_schedule(promise.job, earlier, is_cron=promise.is_cron)
        yield f"to start its job when the window opens: {change}"
    if is_closed:
        return
    yield f"to widen the window: {wider(window)}"
    first = earlier or promise.schedule
    opens = opened(window, start) or start
    behind = at_time(promise.schedule, opens.astimezone(now.tzinfo) + _BEHIND, is_cron=promise.is_cron)
    if promise.without is not None and not promise.is_cron and behind is not None:
        create = f"pvesh create /cluster/backup --vmid {facts.vmid} --schedule {shlex.quote(first)}{storage}"
        path = shlex.quote(f"/cluster/backup/{promise.job}")
        change = f"{path} {promise.without} --schedule {shlex.quote(behind)}"
        yield f"to split the job, so that this guest comes first: {create} && pvesh set {change}"
