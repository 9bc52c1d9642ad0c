"""`rules.window` against a brute force that knows nothing of spans' edges or of changes of the clocks.

The oracle asks the wall clock at every minute of a year and looks it up in a table of the 10080 minutes of a
week. The table is painted from numbers, minute by minute, not from the text that the implementation reads.
The zones used here change their clocks on whole minutes of UTC, so every change falls on one of its minutes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvehook.rules.window import Window, WindowState, is_open, parse_span, window_state

pytestmark = pytest.mark.long

ZONES = ("Europe/Warsaw", "America/New_York", "Australia/Lord_Howe", "UTC")
DAY_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

YEAR_START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR_MIN = 365 * 24 * 60
HORIZON_MIN = 21 * 24 * 60
DAY_MIN = 24 * 60

STABLE = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The same examples on every machine, however slow."""


class Painted(NamedTuple):
    """A span as numbers: starts on these weekdays (0 = Monday) at this minute and lasts so many minutes."""

    days: frozenset[int]
    start_min: int
    length_min: int

    def text(self) -> str:
        end_min = self.start_min + self.length_min
        if end_min > DAY_MIN:
            end_min -= DAY_MIN
        times = f"{clock(self.start_min)}-{clock(end_min)}"
        if len(self.days) == 7:
            return times
        return ",".join(DAY_NAMES[day] for day in sorted(self.days)) + " " + times


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def every_day(start_min: int, length_min: int) -> Painted:
    return Painted(frozenset(range(7)), start_min, length_min)


@cache
def week_minutes(zone: str) -> list[int]:
    """The wall's minute of the week at each UTC minute of the year, a day before it and three weeks after."""
    place = ZoneInfo(zone)
    found = []
    for minute in range(-DAY_MIN, YEAR_MIN + HORIZON_MIN + 1):
        wall = (YEAR_START + timedelta(minutes=minute)).astimezone(place)
        found.append((wall.weekday() * 24 + wall.hour) * 60 + wall.minute)
    return found


class Oracle:
    def __init__(self, zone: str, spans: tuple[Painted, ...]) -> None:
        self.week = week_minutes(zone)
        self.table = bytearray(7 * DAY_MIN)
        for span in spans:
            for day in span.days:
                for minute in range(span.start_min, span.start_min + span.length_min):
                    self.table[(day * DAY_MIN + minute) % len(self.table)] = 1

    def states(self, start_min: int, end_min: int) -> bytes:
        """1 for open, for each UTC minute of the year from `start_min` up to `end_min`."""
        return bytes(self.table[minute] for minute in self.week[start_min + DAY_MIN : end_min + DAY_MIN])

    def next_change(self, at_min: int) -> datetime | None:
        states = self.states(at_min, at_min + HORIZON_MIN)
        steps = states.find(1 - states[0])
        return None if steps < 0 else YEAR_START + timedelta(minutes=at_min + steps)

    def closed_since(self, at_min: int) -> datetime | None:
        """The first closed minute after the last open one of the 24 hours before."""
        steps = self.states(at_min - DAY_MIN, at_min + 1).rfind(1)
        return None if steps < 0 else YEAR_START + timedelta(minutes=at_min - DAY_MIN + steps + 1)


def window_of(zone: str, spans: tuple[Painted, ...]) -> Window:
    return Window(tuple(parse_span(span.text()) for span in spans), ZoneInfo(zone))


def in_utc(at: datetime | None) -> datetime | None:
    """Python holds two aware times unequal if one of them comes twice; in UTC none does."""
    return None if at is None else at.astimezone(UTC)


def expected(oracle: Oracle, at_min: int) -> tuple[bool, datetime | None, datetime | None]:
    now_open = bool(oracle.states(at_min, at_min + 1)[0])
    change = oracle.next_change(at_min)
    return (True, change, None) if now_open else (False, None, change)


def seen(state: WindowState) -> tuple[bool, datetime | None, datetime | None]:
    return state.open, in_utc(state.closes_at), in_utc(state.opens_at)


WINDOWS = {
    "default": (every_day(120, 180),),
    "issue": (
        every_day(120, 180),
        Painted(frozenset({5, 6}), 22 * 60, 8 * 60),
        Painted(frozenset(range(5)), 90, 150),
    ),
    "small-hours": (every_day(45, 60), every_day(135, 30), Painted(frozenset({6}), 170, 22 * 60)),
}

EVERY_MINUTE = (
    ("Europe/Warsaw", "small-hours"),
    ("America/New_York", "issue"),
    ("Australia/Lord_Howe", "small-hours"),
    ("UTC", "default"),
)
"""Half a million questions take a second or two, so not every window is asked in every zone here."""


@cache
def minutes_of_the_year() -> list[datetime]:
    return [YEAR_START + timedelta(minutes=minute) for minute in range(YEAR_MIN)]


@pytest.mark.parametrize(("zone", "name"), EVERY_MINUTE)
def test_every_minute_of_a_year(zone: str, name: str) -> None:
    spans = WINDOWS[name]
    window, states = window_of(zone, spans), Oracle(zone, spans).states(0, YEAR_MIN)
    wrong = [
        at.isoformat()
        for at, state in zip(minutes_of_the_year(), states, strict=True)
        if is_open(window, at) is not bool(state)
    ]
    assert wrong == []
    assert 0 < sum(states) < YEAR_MIN


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("zone", ZONES)
def test_every_change_of_a_year(zone: str, name: str) -> None:
    """Asking for the next change again and again finds exactly the changes of the oracle's year."""
    spans = WINDOWS[name]
    window, states = window_of(zone, spans), Oracle(zone, spans).states(0, YEAR_MIN)
    changes = [minute for minute in range(1, YEAR_MIN) if states[minute] != states[minute - 1]]
    found = []
    at = YEAR_START
    while True:
        state = window_state(window, at)
        change = in_utc(state.closes_at if state.open else state.opens_at)
        assert change is not None
        if change >= YEAR_START + timedelta(minutes=YEAR_MIN):
            break
        found.append(change)
        at = change
    assert found == [YEAR_START + timedelta(minutes=minute) for minute in changes]


@cache
def changes_of_the_clocks(zone: str) -> list[int]:
    """The UTC minutes of the year at which the wall clock does not go on by one minute."""
    week = week_minutes(zone)[DAY_MIN : DAY_MIN + YEAR_MIN]
    return [minute for minute in range(1, YEAR_MIN) if (week[minute] - week[minute - 1]) % (7 * DAY_MIN) != 1]


def test_the_oracle_sees_the_clocks_change() -> None:
    assert [len(changes_of_the_clocks(zone)) for zone in ZONES] == [2, 2, 2, 0]


@st.composite
def instants(draw: st.DrawFn, zone: str) -> int:
    """A UTC minute of the year, every second one within a day and a half of a change of the clocks."""
    changes = changes_of_the_clocks(zone)
    if not changes or draw(st.booleans()):
        return draw(st.integers(0, YEAR_MIN - 1))
    return draw(st.sampled_from(changes)) + draw(st.integers(-36 * 60, 36 * 60))


PAINTED = st.builds(
    Painted,
    days=st.one_of(
        st.just(frozenset(range(7))),
        st.frozensets(st.integers(0, 6), min_size=1),
        st.just(frozenset({6})),
    ),
    # Half of them start where clocks are changed.
    start_min=st.one_of(st.integers(0, DAY_MIN - 1), st.integers(60, 200)),
    length_min=st.one_of(st.integers(1, DAY_MIN - 1), st.integers(1, 120)),
)


@pytest.mark.parametrize("zone", ZONES)
def test_any_window_at_any_instant(zone: str) -> None:
    @settings(STABLE, max_examples=150)
    @given(
        spans=st.lists(PAINTED, min_size=1, max_size=4).map(tuple),
        minutes=st.lists(instants(zone), min_size=1, max_size=4),
        second=st.sampled_from([0, 0.000001, 29.5, 59.999999]),
    )
    def holds(spans: tuple[Painted, ...], minutes: list[int], second: float) -> None:
        window, oracle = window_of(zone, spans), Oracle(zone, spans)
        for minute in minutes:
            at = YEAR_START + timedelta(minutes=minute, seconds=second)
            state = window_state(window, at)
            assert seen(state) == expected(oracle, minute), at.isoformat()
            assert is_open(window, at) is state.open
            if second == 0 and not state.open:
                assert in_utc(state.closed_since) == oracle.closed_since(minute), at.isoformat()

    holds()


@pytest.mark.parametrize("zone", ZONES)
def test_any_window_on_the_nights_on_which_the_clocks_change(zone: str) -> None:
    """Every minute of the night, for windows with an edge in it."""

    @settings(STABLE, max_examples=25)
    @given(spans=st.lists(PAINTED, min_size=1, max_size=3).map(tuple))
    def holds(spans: tuple[Painted, ...]) -> None:
        window, oracle = window_of(zone, spans), Oracle(zone, spans)
        for change in changes_of_the_clocks(zone) or [DAY_MIN]:
            for minute in range(change - 150, change + 150, 5):
                at = YEAR_START + timedelta(minutes=minute)
                assert is_open(window, at) is bool(oracle.states(minute, minute + 1)[0]), at.isoformat()
            at = YEAR_START + timedelta(minutes=change - 150)
            while at < YEAR_START + timedelta(minutes=change + 150):
                minute = (at - YEAR_START) // timedelta(minutes=1)
                state = window_state(window, at)
                assert seen(state) == expected(oracle, minute), at.isoformat()
                following = in_utc(state.closes_at if state.open else state.opens_at)
                if following is None:
                    break
                at = following

    holds()
