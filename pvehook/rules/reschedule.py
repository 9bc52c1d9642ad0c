"""Another time for a job's schedule, and another end for the window, as the commands that set them. Pure.

    mon..fri 21:00   ->   mon..fri 02:00       the same days, at the time at which the window opens
"""

from __future__ import annotations

import re
import shlex
from datetime import datetime, timedelta
from typing import Final

from pvehook.rules.schedule import starts_between
from pvehook.rules.window import DAY_MINUTES, DAYS, Window, is_open, window_state

LOOK_AHEAD: Final = timedelta(days=400)

_TIME_OF_EVENT: Final = re.compile(r"((?:[a-zA-Z][a-zA-Z.,]*\s+)?)[0-9]{1,2}:[0-9]{1,2}")
_TIME_OF_CRON: Final = re.compile(r"[0-9]+\s+[0-9]+((?:\s+\S+){3})")
_LONGER_MIN: Final = 120
"""By how much a wider window is wider."""


def next_start(schedule: str, now: datetime, *, is_cron: bool) -> datetime | None:
    """`now` is in the node's zone. Raises ValueError for a schedule that is not understood."""
    found = starts_between(schedule, now, now + LOOK_AHEAD, is_cron=is_cron, most=1)
    return found[0] if found else None


def at_time(schedule: str, when: datetime, *, is_cron: bool) -> str | None:
    """The schedule on the same days at another time; None where it is not that simple."""
    if is_cron:
        cron = _TIME_OF_CRON.fullmatch(schedule)
        return f"{when.minute} {when.hour}{cron[1]}" if cron else None
    event = _TIME_OF_EVENT.fullmatch(schedule)
    return f"{event[1]}{when:%H:%M}" if event else None


def at_opening(schedule: str, start: datetime, now: datetime, window: Window, *, is_cron: bool) -> str | None:
    """The schedule at the time at which the window opens before this start of it, or after it where that is outside;
    None where there is no such time, or it is not that simple."""
    opens = opened(window, start) if is_open(window, start) else window_state(window, start).opens_at
    moved = at_time(schedule, opens.astimezone(now.tzinfo), is_cron=is_cron) if opens is not None else None
    first = next_start(moved, now, is_cron=is_cron) if moved is not None else None
    return moved if first is not None and is_open(window, first) else None


def opened(window: Window, start: datetime) -> datetime | None:
    """When the window that is open at this start opened; None: just then, or more than a day before."""
    found = None
    change: datetime | None = start - timedelta(days=1)
    while change is not None and change.timestamp() < start.timestamp():
        state = window_state(window, change)
        change = state.closes_at if state.open else state.opens_at
        found = found if state.open else change
    return found if found is not None and found.timestamp() < start.timestamp() else None


def set_schedule(job: str, schedule: str, *, is_cron: bool) -> str:
    """`job` is its id, or for a line of cron the file and the line's number."""
    if is_cron:
        return f"let line {job} begin with `{schedule}`"
    return f"pvesh set {shlex.quote(f'/cluster/backup/{job}')} --schedule {shlex.quote(schedule)}"


def wider(window: Window) -> str:
    """What to write so that the window closes later."""
    span = window.spans[0]
    if len(window.spans) > 1 or (span.end_min - span.start_min) % DAY_MINUTES + _LONGER_MIN >= DAY_MINUTES:
        return "window.open in /etc/pvehook.yaml"
    end_min = (span.end_min + _LONGER_MIN) % DAY_MINUTES
    text = re.sub(r"[0-9:]+$", f"{end_min // 60:02}:{end_min % 60:02}", span.text)
    return f'in /etc/pvehook.yaml: window: {{open: ["{text}"]}}'


def stamp(at: datetime) -> str:
    """`Sat 2026-11-28 02:00`. The day is not left to strftime: it follows the locale."""
    return f"{DAYS[at.weekday()][:3].capitalize()} {at:%Y-%m-%d %H:%M}"
