"""What an administrator writes into `window.open`, and what that means on nights people remember."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pvehook.errors import WindowSpecError
from pvehook.rules.window import Window, is_open, parse_span, window_state

WARSAW = ZoneInfo("Europe/Warsaw")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)


def window(*texts: str, zone: ZoneInfo | timezone = WARSAW) -> Window:
    return Window(tuple(parse_span(text) for text in texts), zone)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def changes(of: Window, start: str, end: str) -> list[str]:
    """Every change from `start` to `end` in UTC, found by asking for the next one again and again."""
    found: list[str] = []
    at: datetime | None = utc(start)
    while True:
        assert at is not None
        state = window_state(of, at)
        at = state.closes_at if state.open else state.opens_at
        if at is None or at.timestamp() >= utc(end).timestamp():
            return found
        now_open = "closed" if state.open else "open"
        found.append(f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} {now_open}")


# Reading


@pytest.mark.parametrize(
    ("text", "days", "start_min", "end_min"),
    [
        ("02:00-05:00", EVERY_DAY, 120, 300),
        ("2:00-5:30", EVERY_DAY, 120, 330),
        ("00:00-24:00", EVERY_DAY, 0, 1440),
        ("22:00-06:00", EVERY_DAY, 1320, 360),
        ("22:00-00:00", EVERY_DAY, 1320, 0),
        ("sat,sun 22:00-06:00", (5, 6), 1320, 360),
        ("mon..fri 01:30-04:00", (0, 1, 2, 3, 4), 90, 240),
        ("fri..mon 01:30-04:00", (0, 4, 5, 6), 90, 240),
        ("wed..wed 01:30-04:00", (2,), 90, 240),
        ("mon..wed,sun 01:30-04:00", (0, 1, 2, 6), 90, 240),
        ("Monday,TUE 01:30-04:00", (0, 1), 90, 240),
        ("mon, tuesday  01:30-04:00", (0, 1), 90, 240),
    ],
)
def test_a_span_is_read(text: str, days: tuple[int, ...], start_min: int, end_min: int) -> None:
    span = parse_span(text)
    assert (span.days, span.start_min, span.end_min) == (days, start_min, end_min)


def test_a_span_keeps_its_text_for_messages() -> None:
    assert parse_span("  Sat,sun   22:00-06:00 ").text == "Sat,sun 22:00-06:00"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("always", "'always' is no start and end"),
        ("02:00", "'02:00' is no start and end"),
        ("02:00-03:00-04:00", "'02:00-03:00-04:00' is no start and end"),
        ("02:00 - 05:00", "'05:00' is no start and end"),
        ("mon..fri", "'mon..fri' is no start and end"),
        ("02-05", "'02' is no time of day"),
        ("02:0-05:00", "'02:0' is no time of day"),
        ("02:00-05:60", "'05:60' is no time of day"),
        ("02:00-24:01", "'24:01' is no time of day"),
        ("002:00-05:00", "'002:00' is no time of day"),
        ("02:+1-05:00", "'02:+1' is no time of day"),
        ("02:00:00-05:00", "'02:00:00' is no time of day"),
        ("٠٢:00-05:00", "'٠٢:00' is no time of day"),
        ("24:00-05:00", "24:00 can only be an end"),
        ("05:00-05:00", "start and end are equal"),
        ("00:00-00:00", "the whole day is 00:00-24:00"),
        ("mo 02:00-05:00", "'mo' is no day"),
        ("mon,,tue 02:00-05:00", "'' is no day"),
        ("mon.. 02:00-05:00", "'' is no day"),
        ("mon-fri 02:00-05:00", "'mon-fri' is no day"),
        ("mon tue 02:00-05:00", "'mon tue' is no day"),
    ],
)
def test_an_error_names_the_text_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(WindowSpecError) as error:
        parse_span(text)
    message = str(error.value)
    assert message.startswith(f"{text!r} is no window: ")
    assert said in message
    assert "expected e.g. '02:00-05:00'" in message


# Plain days


def test_a_span_is_half_open() -> None:
    night = window("02:00-05:00")
    assert not is_open(night, utc("2026-01-15T00:59:59.999999"))
    assert is_open(night, utc("2026-01-15T01:00:00"))
    assert is_open(night, utc("2026-01-15T03:59:59.999999"))
    assert not is_open(night, utc("2026-01-15T04:00:00"))


def test_the_state_says_why_and_until_when_it_is_open() -> None:
    state = window_state(window("02:00-05:00", "sat 22:00-23:00"), utc("2026-01-15T02:30:59.5"))
    assert (state.open, state.reason, state.opens_at) == (True, "inside 02:00-05:00", None)
    assert state.closes_at == datetime(2026, 1, 15, 5, 0, tzinfo=WARSAW)
    assert state.closes_at.tzinfo is WARSAW
    assert state.closed_since is None


def test_the_state_says_why_and_until_when_it_is_shut() -> None:
    state = window_state(window("02:00-05:00", "sat,sun 22:00-23:00"), utc("2026-01-15T04:12:07"))
    assert (state.open, state.reason) == (False, "outside 02:00-05:00, sat,sun 22:00-23:00")
    assert state.closes_at is None
    assert state.opens_at == datetime(2026, 1, 16, 2, 0, tzinfo=WARSAW)
    assert state.opens_at.tzinfo is WARSAW
    assert state.closed_since == datetime(2026, 1, 15, 5, 0, tzinfo=WARSAW)


def test_every_span_that_holds_is_named() -> None:
    state = window_state(window("02:00-05:00", "12:00-13:00", "thu 04:00-06:00"), utc("2026-01-15T03:30:00"))
    assert state.reason == "inside 02:00-05:00, thu 04:00-06:00"


def test_the_very_second_of_a_change_belongs_to_what_comes() -> None:
    night = window("02:00-05:00")
    closed = window_state(night, utc("2026-01-15T04:00:00"))
    assert not closed.open
    assert closed.closed_since == datetime(2026, 1, 15, 5, 0, tzinfo=WARSAW)
    assert window_state(night, utc("2026-01-15T01:00:00")).open


def test_shut_for_longer_than_a_day_has_no_shut_since() -> None:
    assert window_state(window("mon 02:00-05:00"), utc("2026-01-15T12:00:00")).closed_since is None


@pytest.mark.parametrize(
    "texts",
    [("02:00-04:00", "03:00-05:00"), ("02:00-03:30", "03:30-05:00"), ("02:00-05:00", "03:00-04:00")],
    ids=["overlapping", "adjoining", "nested"],
)
def test_it_closes_when_the_last_span_ends(texts: tuple[str, ...]) -> None:
    assert changes(window(*texts), "2026-01-15T00:00", "2026-01-16T00:00") == [
        "2026-01-15 01:00:00 open",
        "2026-01-15 04:00:00 closed",
    ]


def test_a_span_over_midnight_belongs_to_the_day_it_starts_on() -> None:
    weekend = window("sat,sun 22:00-06:00", zone=ZoneInfo("UTC"))
    assert changes(weekend, "2026-01-12T12:00", "2026-01-26T00:00") == [
        "2026-01-17 22:00:00 open",  # Saturday
        "2026-01-18 06:00:00 closed",
        "2026-01-18 22:00:00 open",
        "2026-01-19 06:00:00 closed",  # Monday, still Sunday's
        "2026-01-24 22:00:00 open",
        "2026-01-25 06:00:00 closed",
        "2026-01-25 22:00:00 open",
    ]


def test_the_week_wraps_from_sunday_to_monday() -> None:
    sunday = window("sun 22:00-06:00", zone=ZoneInfo("UTC"))
    assert is_open(sunday, utc("2026-01-19T05:59:59"))
    assert not is_open(sunday, utc("2026-01-18T05:59:59"))


def test_an_end_at_midnight_joins_the_next_day() -> None:
    joined = window("sat 00:00-24:00", "sun 00:00-24:00", zone=ZoneInfo("UTC"))
    assert changes(joined, "2026-01-16T00:00", "2026-01-23T00:00") == [
        "2026-01-17 00:00:00 open",
        "2026-01-19 00:00:00 closed",
    ]


def test_the_whole_day_never_closes() -> None:
    state = window_state(window("00:00-24:00"), utc("2026-03-28T12:00:00"))
    assert (state.open, state.closes_at, state.opens_at) == (True, None, None)


def test_without_a_span_it_never_opens() -> None:
    state = window_state(window(), utc("2026-03-28T12:00:00"))
    assert (state.open, state.closes_at, state.opens_at) == (False, None, None)
    assert state.reason == "no span is configured"


# Nights on which the clocks are changed


def test_warsaw_spring_the_missing_hour_is_not_open() -> None:
    # At 02:00 the clocks go to 03:00, which is 01:00 UTC: two hours instead of three.
    assert changes(window("02:00-05:00"), "2026-03-28T12:00", "2026-03-29T12:00") == [
        "2026-03-29 01:00:00 open",
        "2026-03-29 03:00:00 closed",
    ]
    opens_at = window_state(window("02:00-05:00"), utc("2026-03-29T00:30:00")).opens_at
    assert opens_at is not None
    assert opens_at.isoformat() == "2026-03-29T03:00:00+02:00"


def test_warsaw_spring_a_span_inside_the_missing_hour_never_opens() -> None:
    assert changes(window("02:15-02:45"), "2026-03-28T12:00", "2026-03-30T12:00") == [
        "2026-03-30 00:15:00 open",
        "2026-03-30 00:45:00 closed",
    ]
    state = window_state(window("sun 02:15-02:45"), utc("2026-03-22T12:00:00"))
    assert state.opens_at == datetime(2026, 4, 5, 2, 15, tzinfo=WARSAW)


def test_warsaw_spring_a_span_that_ends_in_the_missing_hour_ends_where_it_begins() -> None:
    assert changes(window("01:00-02:30"), "2026-03-28T12:00", "2026-03-29T12:00") == [
        "2026-03-29 00:00:00 open",
        "2026-03-29 01:00:00 closed",
    ]


def test_warsaw_spring_a_span_that_starts_in_the_missing_hour_starts_where_it_ends() -> None:
    assert changes(window("02:30-04:00"), "2026-03-28T12:00", "2026-03-29T12:00") == [
        "2026-03-29 01:00:00 open",
        "2026-03-29 02:00:00 closed",
    ]


def test_warsaw_spring_two_spans_meet_over_the_missing_hour() -> None:
    assert changes(window("01:00-02:00", "03:00-04:00"), "2026-03-28T12:00", "2026-03-29T12:00") == [
        "2026-03-29 00:00:00 open",
        "2026-03-29 02:00:00 closed",
    ]


def test_warsaw_autumn_the_hour_that_comes_twice_is_open_twice() -> None:
    # At 03:00 the clocks go back to 02:00, which is 01:00 UTC.
    assert changes(window("02:15-02:45"), "2026-10-24T12:00", "2026-10-25T12:00") == [
        "2026-10-25 00:15:00 open",
        "2026-10-25 00:45:00 closed",
        "2026-10-25 01:15:00 open",
        "2026-10-25 01:45:00 closed",
    ]
    assert changes(window("02:00-05:00"), "2026-10-24T12:00", "2026-10-25T12:00") == [
        "2026-10-25 00:00:00 open",
        "2026-10-25 04:00:00 closed",
    ]


def test_warsaw_autumn_an_end_at_the_change_opens_again() -> None:
    # 01:00-02:30 closes at the first 02:30, opens again when 02:00 comes back, and closes at the second 02:30.
    assert changes(window("01:00-02:30"), "2026-10-24T12:00", "2026-10-25T12:00") == [
        "2026-10-24 23:00:00 open",
        "2026-10-25 00:30:00 closed",
        "2026-10-25 01:00:00 open",
        "2026-10-25 01:30:00 closed",
    ]


def test_warsaw_autumn_the_clock_going_back_can_shut_a_span() -> None:
    assert changes(window("02:30-05:00"), "2026-10-24T12:00", "2026-10-25T12:00") == [
        "2026-10-25 00:30:00 open",
        "2026-10-25 01:00:00 closed",
        "2026-10-25 01:30:00 open",
        "2026-10-25 04:00:00 closed",
    ]


def test_lord_howe_changes_by_half_an_hour() -> None:
    # 2026-10-04 02:00 +10:30 becomes 02:30 +11:00; 2026-04-05 02:00 +11:00 becomes 01:30 +10:30.
    assert changes(window("02:15-03:00", zone=LORD_HOWE), "2026-10-03T12:00", "2026-10-04T12:00") == [
        "2026-10-03 15:30:00 open",
        "2026-10-03 16:00:00 closed",
    ]
    assert changes(window("01:40-01:50", zone=LORD_HOWE), "2026-04-04T12:00", "2026-04-05T12:00") == [
        "2026-04-04 14:40:00 open",
        "2026-04-04 14:50:00 closed",
        "2026-04-04 15:10:00 open",
        "2026-04-04 15:20:00 closed",
    ]


def test_st_johns_once_went_back_over_midnight() -> None:
    # 2010-11-07 00:01 became 2010-11-06 23:01: Saturday's last hour came again after a minute of Sunday.
    st_johns = window("sat 23:30-24:00", zone=ZoneInfo("America/St_Johns"))
    assert changes(st_johns, "2010-11-06T12:00", "2010-11-08T12:00") == [
        "2010-11-07 02:00:00 open",
        "2010-11-07 02:30:00 closed",
        "2010-11-07 03:00:00 open",
        "2010-11-07 03:30:00 closed",
    ]


def test_a_change_of_the_clocks_by_odd_seconds_is_exact() -> None:
    # Monrovia was 44 minutes and 30 seconds behind UTC; at 1972-01-07 00:00:00 it was 00:44:30.
    monrovia = window("00:10-01:00", zone=ZoneInfo("Africa/Monrovia"))
    assert changes(monrovia, "1972-01-06T00:00", "1972-01-07T12:00") == [
        "1972-01-06 00:54:30 open",
        "1972-01-06 01:44:30 closed",
        "1972-01-07 00:44:30 open",
        "1972-01-07 01:00:00 closed",
    ]


def test_an_offset_of_odd_seconds_is_exact() -> None:
    odd = window("02:00-05:00", zone=timezone(timedelta(hours=1, seconds=17)))
    assert changes(odd, "2026-01-15T00:00", "2026-01-16T00:00") == [
        "2026-01-15 00:59:43 open",
        "2026-01-15 03:59:43 closed",
    ]


def test_a_wall_time_that_does_not_exist_means_an_instant_after_the_gap() -> None:
    # 02:30 of that night is read with the offset from before the change: it is 03:30.
    at = datetime(2026, 3, 29, 2, 30, tzinfo=WARSAW)
    assert not is_open(window("02:00-03:00"), at)
    assert is_open(window("03:00-04:00"), at)


def test_the_instant_may_be_given_in_any_zone() -> None:
    first, second = (datetime(2026, 10, 25, 2, 50, tzinfo=WARSAW, fold=fold) for fold in (0, 1))
    for at in (first, first.astimezone(UTC), first.astimezone(LORD_HOWE)):
        opens_at = window_state(window("02:15-02:45"), at).opens_at
        assert opens_at is not None
        assert opens_at.isoformat() == "2026-10-25T02:15:00+01:00"
    opens_at = window_state(window("02:15-02:45"), second).opens_at
    assert opens_at is not None
    assert opens_at.isoformat() == "2026-10-26T02:15:00+01:00"


# What is no instant


def test_a_naive_datetime_is_refused() -> None:
    naive = datetime(2026, 1, 15, 3, 0)  # noqa: DTZ001 - the point of the test
    with pytest.raises(ValueError, match="2026-01-15T03:00:00 has no time zone"):
        window_state(window("02:00-05:00"), naive)
    with pytest.raises(ValueError, match="has no time zone"):
        is_open(window("02:00-05:00"), naive)


@pytest.mark.parametrize("text", ["0001-01-01T00:00", "9999-12-31T23:59"])
def test_the_ends_of_the_calendar_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="end of the calendar"):
        window_state(window("02:00-05:00"), utc(text))


def test_far_years_are_answered() -> None:
    assert window_state(window("02:00-05:00"), utc("9998-12-31T23:59")).opens_at is not None
    assert window_state(window("02:00-05:00"), utc("0002-01-01T00:00")).opens_at is not None


# Cost


def test_the_hook_can_afford_to_import_it() -> None:
    """Beyond `datetime` and `typing` only our own modules are loaded, also by the first answer.

    On Python 3.11 `typing` itself brings `re` and `enum`; so does `json`, which the hook loads anyway.
    """
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import collections.abc, datetime, typing, zoneinfo
zone = zoneinfo.ZoneInfo("Europe/Warsaw")
now = datetime.datetime(2026, 3, 29, 4, 0, tzinfo=zone)
repr(now.astimezone(datetime.UTC)), f"{now:%H:%M}"
from pvehook.settings import Exempt  # the hook has read the configuration before it asks the window
before = set(sys.modules)
from pvehook.rules.window import Window, parse_span, window_state
from pvehook.rules.admission import Question, admit
state = window_state(Window((parse_span("mon..fri 01:30-04:00"),), zone), now)
admit(Question("job-init", now, None, None, None, False, None, False), state, Exempt(), (), "refuse")
print(*sorted(set(sys.modules) - before))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(root)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    ours = {
        "__future__",
        "pvehook",
        "pvehook.contract",
        "pvehook.contract.phases",
        "pvehook.errors",
        "pvehook.rules",
        "pvehook.rules.admission",
        "pvehook.rules.window",
    }
    assert set(done.stdout.split()) <= ours
    assert "pvehook.rules.window" in done.stdout
