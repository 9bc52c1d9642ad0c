"""When schedules start: Proxmox's calendar events and cron's lines, also where the clocks are changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.rules.schedule import starts_between
from pvehook.rules.window import DAYS

WARSAW = ZoneInfo("Europe/Warsaw")

MONDAY = datetime(2026, 11, 23, 12, 0, tzinfo=WARSAW)


def starts(schedule: str, days: float = 7, since: datetime = MONDAY, is_cron: bool = False) -> list[str]:
    until = datetime.fromtimestamp(since.timestamp() + days * 86400, since.tzinfo)
    return [f"{each:%a %d %H:%M}" for each in starts_between(schedule, since, until, is_cron=is_cron)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("sat 02:00", ["Sat 28 02:00"]),
        ("21:00", [f"{day} 21:00" for day in ("Mon 23", "Tue 24", "Wed 25", "Thu 26", "Fri 27", "Sat 28", "Sun 29")]),
        ("mon..fri 21:00", [f"{day} 21:00" for day in ("Mon 23", "Tue 24", "Wed 25", "Thu 26", "Fri 27")]),
        ("fri..sun 3:5", ["Fri 27 03:05", "Sat 28 03:05", "Sun 29 03:05"]),
        ("sun..mon 03:00", ["Sun 29 03:00", "Mon 30 03:00"]),
        ("tue,thursday..sat 03:00", ["Tue 24 03:00", "Thu 26 03:00", "Fri 27 03:00", "Sat 28 03:00"]),
        ("Sat", ["Sat 28 00:00"]),
        ("*-11-25", ["Wed 25 00:00"]),
        ("2026-11-25 04:00", ["Wed 25 04:00"]),
        ("2027-11-25 04:00", []),
        ("11-24..25 04:00", ["Tue 24 04:00", "Wed 25 04:00"]),
        ("sat *-*-22..28 01:00", ["Sat 28 01:00"]),
        ("weekly", ["Mon 30 00:00"]),
        ("sat 02:00 UTC", ["Sat 28 03:00"]),
    ],
)
def test_a_calendar_event_starts_on_its_days(schedule: str, expected: list[str]) -> None:
    assert starts(schedule) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("*/30", ["12:30", "13:00", "13:30", "14:00"]),
        ("0/20", ["12:20", "12:40", "13:00", "13:20", "13:40", "14:00"]),
        ("5", ["12:05", "13:05"]),
        ("13,14:0,30", ["13:00", "13:30", "14:00"]),
        ("12..13:15..17/2", ["12:15", "12:17", "13:15", "13:17"]),
        ("*:45", ["12:45", "13:45"]),
        ("13:00:10", ["13:00"]),
        ("hourly", ["13:00", "14:00"]),
    ],
)
def test_a_calendar_event_starts_at_its_times(schedule: str, expected: list[str]) -> None:
    assert [each.rpartition(" ")[2] for each in starts(schedule, days=2 / 24)] == expected


def test_the_times_before_the_colon_are_hours() -> None:
    assert starts("2,4,6:00", days=1) == ["Tue 24 02:00", "Tue 24 04:00", "Tue 24 06:00"]


@pytest.mark.parametrize(
    ("word", "in_a_leap_year"),
    [
        ("daily", 366),
        ("weekly", 53),
        ("monthly", 12),
        ("quarterly", 4),
        ("semiannually", 2),
        ("semi-annually", 2),
        ("yearly", 1),
        ("annually", 1),
        ("hourly", 24 * 366),
        ("minutely", 60 * 24 * 366),
    ],
)
def test_the_words_start_as_often_as_they_say(word: str, in_a_leap_year: int) -> None:
    year = datetime(2023, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert len(starts_between(word, *year, most=1_000_000)) == in_a_leap_year


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 2 * * 6", ["Sat 28 02:00"]),
        ("0 2 * * sat", ["Sat 28 02:00"]),
        ("0 2 * * 0", ["Sun 29 02:00"]),
        ("0 2 * * 7", ["Sun 29 02:00"]),
        ("30 22 * * 1-3", ["Mon 23 22:30", "Tue 24 22:30", "Wed 25 22:30"]),
        ("0 3 25 nov *", ["Wed 25 03:00"]),
        ("0 3 25 * 6", ["Wed 25 03:00", "Sat 28 03:00"]),  # either day
        ("0 3 */25 * 4", ["Thu 26 03:00"]),  # */25 begins with a star: both; the 26th is a Thursday
        ("0 1-5/2 24 * *", ["Tue 24 01:00", "Tue 24 03:00", "Tue 24 05:00"]),
        ("@weekly", ["Sun 29 00:00"]),
    ],
)
def test_a_line_of_cron_starts_when_cron_starts_it(line: str, expected: list[str]) -> None:
    assert starts(line, is_cron=True) == expected


@pytest.mark.parametrize(
    "schedule",
    ["", "  ", "someday", "mon..", "25:00", "12:60", "mon 12:00 13:00", "*/0", "3..1:00", "13-01", "0-5", "*,5:00",
     "12:00:00:00", "mon;tue 03:00", "UTC", "*:*:*", "1,2,3," * 100],
)  # fmt: skip
def test_what_is_not_understood_is_said_and_not_guessed(schedule: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each has its own text)
        starts(schedule)


@pytest.mark.parametrize("line", ["@reboot", "0 2 * *", "0 2 * * 8", "5/15 * * * *", "0 25 * * *", "0 2 * * fri-mon"])
def test_a_line_that_cron_would_not_take_is_not_understood(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        starts(line, is_cron=True)


def test_a_start_now_is_one_and_a_start_at_the_beginning_is_not() -> None:
    first, second = (datetime(2026, 11, day, 21, tzinfo=WARSAW) for day in (23, 24))
    assert starts_between("21:00", first, second) == [second]


def test_only_so_many_are_given() -> None:
    found = starts_between("minutely", MONDAY, MONDAY + timedelta(days=400), most=3)
    assert [f"{each:%H:%M}" for each in found] == ["12:01", "12:02", "12:03"]


SPRING = datetime(2026, 3, 28, 12, 0, tzinfo=WARSAW)
AUTUMN = datetime(2026, 10, 24, 12, 0, tzinfo=WARSAW)


def test_a_time_that_does_not_exist_starts_an_hour_later() -> None:
    assert starts("02:30", days=2, since=SPRING) == ["Sun 29 03:30", "Mon 30 02:30"]


def test_a_time_that_does_not_exist_is_not_one_more_turn() -> None:
    assert starts("2,3:30", days=1, since=SPRING) == ["Sun 29 03:30"]


def test_a_time_that_comes_twice_starts_once() -> None:
    found = starts_between("02:30", AUTUMN, AUTUMN + timedelta(days=2))
    assert [each.astimezone(UTC).isoformat() for each in found] == [
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]


def test_a_day_that_does_not_exist_doubles_none() -> None:
    """Samoa went from the 29th of December 2011 to the 31st."""
    since = datetime(2011, 12, 28, 12, tzinfo=ZoneInfo("Pacific/Apia"))
    assert starts("1,23:00", days=3, since=since) == [
        "Wed 28 23:00", "Thu 29 01:00", "Thu 29 23:00", "Sat 31 01:00", "Sat 31 23:00", "Sun 01 01:00"
    ]  # fmt: skip


# Against a plain count of minutes

FIELD = st.integers(0, 23)
DAY = st.sampled_from([name[:3] for name in DAYS])


@st.composite
def simple_schedules(draw: st.DrawFn) -> tuple[str, set[int], set[int], set[int]]:
    """A schedule's text, and its weekdays, hours and minutes."""
    days = draw(st.lists(DAY, max_size=3, unique=True))
    hours = draw(st.lists(FIELD, min_size=1, max_size=3, unique=True))
    minutes = draw(st.lists(st.integers(0, 59), min_size=1, max_size=3, unique=True))
    text = f"{','.join(days)} {','.join(map(str, hours))}:{','.join(map(str, minutes))}".strip()
    weekdays = {number for number, name in enumerate(DAYS) if name[:3] in days or not days}
    return text, weekdays, set(hours), set(minutes)


def minutes_of(since: datetime, until: datetime) -> Iterator[datetime]:
    at_s = since.timestamp() // 60 * 60 + 60
    while at_s <= until.timestamp():
        yield datetime.fromtimestamp(at_s, since.tzinfo)
        at_s += 60


INSTANTS = st.integers(*(int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2026, 2027)))
STABLE = settings(derandomize=True, database=None, deadline=None, max_examples=100)
"""The same examples on every machine, however slow."""


@STABLE
@given(simple_schedules(), INSTANTS, st.integers(0, 10 * 86400))
def test_in_a_zone_without_changes_every_minute_that_shows_the_time_is_a_start(
    schedule: tuple[str, set[int], set[int], set[int]], since_s: int, length_s: int
) -> None:
    text, weekdays, hours, minutes = schedule
    since, until = (datetime.fromtimestamp(each, UTC) for each in (since_s, since_s + length_s))
    expected = [
        each
        for each in minutes_of(since, until)
        if each.weekday() in weekdays and each.hour in hours and each.minute in minutes
    ]
    assert starts_between(text, since, until) == expected


@STABLE
@given(simple_schedules(), INSTANTS, st.sampled_from(["Europe/Warsaw", "America/New_York", "Australia/Lord_Howe"]))
def test_a_daily_time_has_one_turn_on_each_of_its_days_whatever_the_clocks_do(
    schedule: tuple[str, set[int], set[int], set[int]], since_s: int, zone: str
) -> None:
    text = re.sub(r"[0-9].*", "02:30", schedule[0])
    since = datetime.fromtimestamp(since_s, ZoneInfo(zone))
    until = datetime.fromtimestamp(since_s + 300 * 86400, ZoneInfo(zone))
    days = [each.date() for each in starts_between(text, since, until)]
    assert days == sorted(set(days))
    whole = [since.date() + timedelta(days=number) for number in range(1, 299)]
    assert [day for day in whole if day.weekday() in schedule[1]] == [day for day in days if day in set(whole)]


@STABLE
@given(simple_schedules(), INSTANTS, st.integers(0, 20 * 86400), st.floats(0, 1))
def test_two_parts_of_a_time_have_the_starts_of_the_whole(
    schedule: tuple[str, set[int], set[int], set[int]], since_s: int, length_s: int, share: float
) -> None:
    since, middle, until = (
        datetime.fromtimestamp(each, WARSAW) for each in (since_s, int(since_s + length_s * share), since_s + length_s)
    )
    parts = starts_between(schedule[0], since, middle) + starts_between(schedule[0], middle, until)
    assert starts_between(schedule[0], since, until) == parts


@given(st.text(alphabet="0123456789*/.,:- montuesafriUTC", max_size=40), st.booleans())
@STABLE
def test_any_text_either_starts_in_order_or_is_not_understood(text: str, is_cron: bool) -> None:
    until = MONDAY + timedelta(days=3)
    try:
        found = [each.timestamp() for each in starts_between(text, MONDAY, until, is_cron=is_cron)]
    except ValueError:
        return
    assert found == sorted(set(found))
    assert all(MONDAY.timestamp() < each <= until.timestamp() for each in found)
