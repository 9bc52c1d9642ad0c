"""When a backup job's schedule says that it starts. Two languages, told apart by where the schedule stands.

Proxmox's calendar events (jobs.cfg), as `proxmox-time` reads them and the Proxmox Backup Server's manual
("Calendar Events") describes them:

    [WEEKDAYS] [[YEARS-]MONTHS-DAYS] [[HOURS:]MINUTES[:SECONDS]] [UTC]

    21:00                 every day                    sat 02:00            mon..fri 21:00
    */30                  each hour at :00 and :30     2,4,6:00             mon,wed..fri 22:30
    *-1..7 03:00          the first days of a month    2027-01-01           daily, weekly, ...

Cron's five fields and its `@daily` (crontab(5) of Debian's cron): where day and weekday are both limited, one of them
is enough.

A schedule names times of the wall clock. A time that does not exist on the day on which the clocks are set forward
starts as much later as they are set forward; one that comes twice starts once. Either way each time is one turn.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

from pvehook.rules.window import DAYS

STARTS_AT_MOST: Final = 1000
"""So that `minutely` over a year stays short."""

_LENGTH_AT_MOST: Final = 200
"""Of a schedule, in characters; Proxmox takes 128."""
_STARTS_A_DAY_AT_MOST: Final = 24 * 60
_YEARS: Final = range(1970, 2200)
_WORDS: Final = {
    "minutely": "*-*-* *:*",
    "hourly": "*-*-* *:00",
    "daily": "*-*-* 00:00",
    "weekly": "mon *-*-* 00:00",
    "monthly": "*-*-01 00:00",
    "yearly": "*-01-01 00:00",
    "annually": "*-01-01 00:00",
    "quarterly": "*-01,04,07,10-01 00:00",
    "semiannually": "*-01,07-01 00:00",
    "semi-annually": "*-01,07-01 00:00",
}
_CRON_WORDS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CRON_WEEKDAYS: Final = {name[:3]: number % 7 for number, name in enumerate(DAYS, 1)}
_FIELD: Final = r"[0-9*./,]+"
_EVENT: Final = re.compile(
    rf"(?P<weekdays>[a-z][a-z.,]*)?\s*"
    rf"(?:(?:(?P<years>{_FIELD})-)?(?P<months>{_FIELD})-(?P<days>{_FIELD})(?=\s|$))?\s*"
    rf"(?P<time>(?:(?P<hours>{_FIELD}):)?(?P<minutes>{_FIELD})(?::(?P<seconds>{_FIELD}))?)?"
)


class _Times(NamedTuple):
    """The parts of the wall clock that a schedule names."""

    years: frozenset[int]
    months: frozenset[int]
    days: frozenset[int]
    weekdays: frozenset[int]
    """0 = Monday."""
    of_day: tuple[time, ...]
    either: bool = False
    """A day fits by its number or its weekday; otherwise it has to fit by both."""
    is_utc: bool = False

    def has(self, day: date) -> bool:
        fits = (day.day in self.days, day.weekday() in self.weekdays)
        return day.year in self.years and day.month in self.months and (any(fits) if self.either else all(fits))


def starts_between(
    schedule: str, since: datetime, until: datetime, *, is_cron: bool = False, most: int = STARTS_AT_MOST
) -> list[datetime]:
    """The starts after `since`, up to and with `until`, the first `most` of them, in order.

    Both are aware; the schedule is read by the wall clock of `since`'s zone, which must be the node's, and the starts
    are in it. Raises ValueError, with the reason, for a schedule that is not understood.
    """
    times = _parsed(schedule, is_cron)
    zone = UTC if times.is_utc else since.tzinfo or UTC
    starts_s: set[float] = set()
    since_s, until_s = since.timestamp(), until.timestamp()
    # The day before, and a day more than is needed: clocks that are set forward put a time that does not exist on, or
    # behind, a later one.
    day = since.astimezone(zone).date() - timedelta(days=1)
    last = until.astimezone(zone).date()
    while day <= last and len(starts_s) < most + len(times.of_day):
        if times.has(day):
            starts_s |= {at_s for each in times.of_day if since_s < (at_s := _instant_s(day, each, zone)) <= until_s}
        day += timedelta(days=1)
    return [datetime.fromtimestamp(each, since.tzinfo) for each in sorted(starts_s)[:most]]


def _instant_s(day: date, at: time, zone: tzinfo) -> float:
    """By the rule of PEP 495 the first of two, and for none the time by the clock before it was set forward."""
    return datetime.combine(day, at, zone).timestamp()


@lru_cache(maxsize=256)
def _parsed(schedule: str, is_cron: bool) -> _Times:
    if len(schedule) > _LENGTH_AT_MOST:
        raise ValueError(f"it is longer than {_LENGTH_AT_MOST} characters")
    text = " ".join(schedule.split())
    return _cron(text) if is_cron else _event(text)


# Proxmox's calendar events


def _event(text: str) -> _Times:
    is_utc = text.endswith("UTC")
    text = text.removesuffix("UTC").rstrip()
    text = _WORDS.get(text, text).lower()
    match = _EVENT.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} is no calendar event such as 'mon..fri 21:00'")
    fields = match.groupdict()
    hours, minutes, seconds = (fields[name] for name in ("hours", "minutes", "seconds"))
    if not fields["time"]:
        hours, minutes = "0", "0"
    return _Times(
        _numbers(fields["years"] or "*", _YEARS, "year"),
        _numbers(fields["months"] or "*", range(1, 13), "month"),
        _numbers(fields["days"] or "*", range(1, 32), "day"),
        _weekdays(fields["weekdays"]) if fields["weekdays"] else frozenset(range(7)),
        _times_of_day(
            _numbers(hours or "*", range(24), "hour"),
            _numbers(minutes, range(60), "minute"),
            _numbers(seconds or "0", range(60), "second"),
        ),
        is_utc=is_utc,
    )


def _numbers(text: str, allowed: range, what: str) -> frozenset[int]:
    """`1,5..10,12/2` or `*` or `*/5`, as a calendar event has them."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\*)|([0-9]{1,4})(?:\.\.([0-9]{1,4}))?)(?:/([0-9]{1,4}))?", part)
        if match is None or (match[1] and part != text):
            raise ValueError(f"{text!r} is no {what}, list, range or repetition of them")
        start = allowed.start if match[1] else int(match[2])
        end = int(match[3]) if match[3] else allowed.stop - 1 if match[1] or match[4] else start
        found.update(_stepped(start, end, match[4], allowed, f"{what} {part!r}"))
    return frozenset(found)


def _weekdays(text: str) -> frozenset[int]:
    """`mon`, `sat..mon`, `mon,wednesday`."""
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        start, end = _weekday(first), _weekday(last if dots else first)
        found.update((start + each) % 7 for each in range((end - start) % 7 + 1))
    return frozenset(found)


def _weekday(text: str) -> int:
    found = next((number for number, name in enumerate(DAYS) if text in (name, name[:3])), None)
    if found is None:
        raise ValueError(f"{text!r} is no weekday")
    return found


# Cron


def _cron(text: str) -> _Times:
    text = _CRON_WORDS.get(text.lower(), text)
    fields = text.lower().split()
    if len(fields) != 5:
        known = ", ".join(_CRON_WORDS)
        raise ValueError(f"{text!r} has neither cron's five fields nor is it one of {known}")
    minutes, hours, days, months, weekdays = fields
    return _Times(
        frozenset(_YEARS),
        _cron_numbers(months, range(1, 13), "month", {name: number for number, name in enumerate(_MONTHS, 1)}),
        _cron_numbers(days, range(1, 32), "day"),
        # 0 and 7 are Sunday.
        frozenset(
            (each - 1) % 7
            for each in _cron_numbers(weekdays, range(8), "weekday", _CRON_WEEKDAYS)
        ),
        _times_of_day(
            _cron_numbers(hours, range(24), "hour"), _cron_numbers(minutes, range(60), "minute"), frozenset({0})
        ),
        either=not days.startswith("*") and not weekdays.startswith("*"),
    )


def _cron_numbers(text: str, allowed: range, what: str, names: dict[str, int] | None = None) -> frozenset[int]:
    """`1,5-10,*/2,20-30/5`, and names where the field has some."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\*)|([0-9a-z]{1,4})(?:-([0-9a-z]{1,4}))?)(?:/([0-9]{1,4}))?", part)
        if match is None or (match[4] and not (match[1] or match[3])):
            raise ValueError(f"{text!r} is no {what} of cron")
        if match[1]:
            start, end = allowed.start, allowed.stop - 1
        else:
            start, end = (_cron_number(each, names or {}, what) for each in (match[2], match[3] or match[2]))
        found.update(_stepped(start, end, match[4], allowed, f"{what} {part!r}"))
    return frozenset(found)


def _cron_number(text: str, names: dict[str, int], what: str) -> int:
    if text in names:
        return names[text]
    if not text.isdigit():
        raise ValueError(f"{text!r} is no {what} of cron")
    return int(text)


# Both


def _stepped(start: int, end: int, step: str | None, allowed: range, what: str) -> range:
    if start not in allowed or end not in allowed or start > end:
        raise ValueError(f"{what} is not from {allowed.start} to {allowed.stop - 1}, or ends before it begins")
    if step is not None and not int(step):
        raise ValueError(f"{what} repeats after 0")
    return range(start, end + 1, int(step or 1))


def _times_of_day(hours: frozenset[int], minutes: frozenset[int], seconds: frozenset[int]) -> tuple[time, ...]:
    if len(hours) * len(minutes) * len(seconds) > _STARTS_A_DAY_AT_MOST:
        raise ValueError("it starts more often than once a minute")
    return tuple(time(*each) for each in sorted(product(hours, minutes, seconds)))
