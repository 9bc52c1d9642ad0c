"""When backups may run: spans of the wall clock, and the exact instants at which their state changes.

    Window((parse_span("02:00-05:00"), parse_span("sat,sun 22:00-06:00")), ZoneInfo("Europe/Warsaw"))

An instant is inside a span if a clock on the wall, in the window's zone, shows a time and a weekday of that
span. On the two nights on which the clocks are changed this means: an hour that does not exist is not open,
and an hour that comes twice is open twice.

How the next change is found: time is cut into stretches in which the zone's offset to UTC stays the same. In
such a stretch the wall clock is UTC plus a constant, so the state can change only at its edges (where the
clocks are changed) and where the wall clock shows the start or the end of a span.

The hook loads this file when the daemon is away, so it imports little.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import MAXYEAR, MINYEAR, UTC, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from pvehook.errors import WindowSpecError

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
"""In the order of `datetime.weekday()`. The short names are the first three letters."""

DAY_MINUTES = 24 * 60

LOOK_AHEAD = timedelta(days=21)
"""A weekly span comes again after 7 days, or after 14 if it is in the hour that is skipped in spring."""

LOOK_BACK = timedelta(days=1)

STRETCH_MAX = timedelta(hours=6)
"""No zone changes its offset and takes that back within this time, so comparing both ends finds a change."""


class Span(NamedTuple):
    """One text of `window.open`."""

    days: tuple[int, ...]
    """The weekdays on which it starts, 0 = Monday, sorted."""
    start_min: int
    """First minute of the day that is open, 0..1439."""
    end_min: int
    """First minute that is closed again, 0..1440. Smaller than `start_min`: it ends on the following day."""
    text: str
    """As written in the configuration, with single spaces."""


class Window(NamedTuple):
    """Open while any of its spans holds; without a span it is never open."""

    spans: tuple[Span, ...]
    zone: tzinfo


class WindowState(NamedTuple):
    """Open or closed at one instant, why, and until when.

    The datetimes are aware, in the window's zone. Compare and subtract their `.timestamp()`: Python takes two
    datetimes of one zone by their wall clocks, which is wrong by an hour over a change of the clocks.
    """

    open: bool
    reason: str
    """For people: `inside 02:00-05:00`, `outside 02:00-05:00, sat,sun 22:00-06:00`."""
    closes_at: datetime | None
    """If open: the first instant at which it is closed. None: not within three weeks."""
    opens_at: datetime | None
    """If closed: the first instant at which it is open. None: not within three weeks."""
    closed_since: datetime | None = None
    """If closed: when it closed last. None: not within the last 24 hours."""


def parse_span(text: str) -> Span:
    """Read `02:00-05:00`, `sat,sun 22:00-06:00` or `mon..fri 01:30-04:00`.

    Days are written as in Proxmox's calendar events. Raises WindowSpecError.
    """
    words = text.split()
    if not words:
        raise _no_span(text, "it is empty")
    times = words[-1].split("-")
    if len(times) != 2:
        raise _no_span(text, f"{words[-1]!r} is no start and end such as 02:00-05:00")
    start_min, end_min = _minute_of_day(text, times[0]), _minute_of_day(text, times[1])
    if start_min == DAY_MINUTES:
        raise _no_span(text, "24:00 can only be an end, the start of a day is 00:00")
    if start_min == end_min:
        raise _no_span(text, "start and end are equal; the whole day is 00:00-24:00")
    days = _weekdays(text, " ".join(words[:-1])) if len(words) > 1 else tuple(range(7))
    return Span(days, start_min, end_min, " ".join(words))


def is_open(window: Window, at: datetime) -> bool:
    """Whether any span holds at this instant. Raises ValueError as `window_state` does."""
    return bool(_holding(window, _utc(at)))


def window_state(window: Window, at: datetime) -> WindowState:
    """The state at this instant and its next change, exact to the second.

    Raises ValueError if `at` has no time zone, or is in the first or last year that a datetime can hold.
    """
    # Spans and offsets know nothing below a second, so the state is the same all through one.
    now = _utc(at).replace(microsecond=0)
    holding = _holding(window, now)
    changes_at = next((change for change, _ in _changes(window, now, now + LOOK_AHEAD)), None)
    changes_at = changes_at.astimezone(window.zone) if changes_at else None
    if holding:
        return WindowState(True, "inside " + _texts(holding), closes_at=changes_at, opens_at=None)
    # One second more: a window that closed this very second is part of the answer.
    past = [change for change, opened in _changes(window, now - LOOK_BACK, now + timedelta(seconds=1)) if not opened]
    return WindowState(
        False,
        "outside " + _texts(window.spans) if window.spans else "no span is configured",
        closes_at=None,
        opens_at=changes_at,
        closed_since=past[-1].astimezone(window.zone) if past else None,
    )


def _texts(spans: tuple[Span, ...]) -> str:
    return ", ".join(span.text for span in spans)


# Membership


def _utc(at: datetime) -> datetime:
    """Through UTC even if `at` is in the window's zone: it may be a wall time that does not exist."""
    if at.utcoffset() is None:
        raise ValueError(f"{at.isoformat()} has no time zone, so it is no instant")
    if not MINYEAR < at.year < MAXYEAR:
        raise ValueError(f"{at.isoformat()} is too near to the end of the calendar")
    return at.astimezone(UTC)


def _wall(zone: tzinfo, instant: datetime) -> datetime:
    """What a clock on the wall shows, as a naive datetime."""
    return instant.astimezone(zone).replace(tzinfo=None)


def _holding(window: Window, instant: datetime) -> tuple[Span, ...]:
    wall = instant.astimezone(window.zone)
    return tuple(span for span in window.spans if _holds(span, wall))


def _holds(span: Span, wall: datetime) -> bool:
    minute = wall.hour * 60 + wall.minute
    today = wall.weekday()
    if span.start_min < span.end_min:
        return today in span.days and span.start_min <= minute < span.end_min
    # Over midnight the early part belongs to the day before.
    yesterday = (today - 1) % 7
    return (today in span.days and minute >= span.start_min) or (yesterday in span.days and minute < span.end_min)


# Changes


def _changes(window: Window, start: datetime, end: datetime) -> Iterator[tuple[datetime, bool]]:
    """Each change of the state after `start` and before `end`, and whether it is open from then on.

    Both limits are UTC and whole seconds; so are the instants.
    """
    edges = sorted({edge for span in window.spans for edge in (span.start_min, span.end_min)})
    was_open = bool(_holding(window, start))
    for low, high in _stretches(window.zone, start, end):
        low_wall = _wall(window.zone, low)
        walls = [low_wall, *_edges_between(edges, low_wall, low_wall + (high - low))]
        for wall in walls:
            now_open = any(_holds(span, wall) for span in window.spans)
            if now_open != was_open:
                yield low + (wall - low_wall), now_open
                was_open = now_open


def _edges_between(edges: list[int], low: datetime, high: datetime) -> Iterator[datetime]:
    """The wall times after `low` and before `high`, in order, at which a span may start or end.

    24:00 and the next day's 00:00 are the same and may both come; the second then changes nothing.
    """
    midnight = datetime.combine(low.date(), time())
    while midnight < high:
        for edge in edges:
            wall = midnight + timedelta(minutes=edge)
            if low < wall < high:
                yield wall
        midnight += timedelta(days=1)


def _stretches(zone: tzinfo, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Cut `start` (inclusive) to `end` (exclusive) into stretches of one offset to UTC each."""
    low = start
    while low < end:
        high = min(low + STRETCH_MAX, end)
        if not _same_offset(zone, low, high):
            high = low + timedelta(seconds=_same_offset_s(zone, low, high))
        yield low, high
        low = high


def _same_offset(zone: tzinfo, low: datetime, high: datetime) -> bool:
    return _wall(zone, high) - _wall(zone, low) == high - low


def _same_offset_s(zone: tzinfo, low: datetime, high: datetime) -> int:
    """Seconds from `low` to the first second of another offset, by bisection; `high` has another offset."""
    same_s, other_s = 0, (high - low) // timedelta(seconds=1)
    while other_s - same_s > 1:
        middle_s = (same_s + other_s) // 2
        if _same_offset(zone, low, low + timedelta(seconds=middle_s)):
            same_s = middle_s
        else:
            other_s = middle_s
    return other_s


# Parsing


def _no_span(text: str, what: str) -> WindowSpecError:
    return WindowSpecError(
        f"{text!r} is no window: {what}; expected e.g. '02:00-05:00', 'sat,sun 22:00-06:00' or 'mon..fri 01:30-04:00'"
    )


def _minute_of_day(text: str, clock: str) -> int:
    hour, colon, minute = clock.partition(":")
    digits = hour + minute
    if colon and digits.isascii() and digits.isdigit() and len(hour) in {1, 2} and len(minute) == 2:
        minutes = int(hour) * 60 + int(minute)
        if int(minute) < 60 and minutes <= DAY_MINUTES:
            return minutes
    raise _no_span(text, f"{clock!r} is no time of day from 00:00 to 24:00")


def _weekdays(text: str, days: str) -> tuple[int, ...]:
    chosen: set[int] = set()
    for part in days.split(","):
        first, dots, last = part.partition("..")
        start = _weekday(text, first)
        length = (_weekday(text, last) - start) % 7 if dots else 0
        chosen.update((start + step) % 7 for step in range(length + 1))
    return tuple(sorted(chosen))


def _weekday(text: str, name: str) -> int:
    for number, day in enumerate(DAYS):
        if name.strip().lower() in {day, day[:3]}:
            return number
    raise _no_span(text, f"{name!r} is no day (mon, tue, wed, thu, fri, sat, sun)")
