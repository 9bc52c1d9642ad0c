"""`pvehook night`: the end of a night in one look. It reads; it changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from datetime import UTC, date, datetime, time, tzinfo
from typing import Final, TextIO

from pvehook.contract.measured import Measured
from pvehook.night.night_json import FORMAT, night_json
from pvehook.night.night_terminal import night_lines
from pvehook.night.summary import NOT_OF_THE_LAST_NIGHT, RunningRun, summarized
from pvehook.records.attempt_history import attempts_between
from pvehook.records.history import DAY_S, reading
from pvehook.report.beside import night_of
from pvehook.report.night_turns import KNOWN_DAYS, NightTurns, last_night, night_turns
from pvehook.report.standing import Standing, StandingsOf
from pvehook.report.terminal_style import style_of

EXIT_OK, EXIT_ERROR = 0, 2
NIGHTS_NAMED: Final = 7


def run_night(
    history: str,
    out: TextIO,
    now: datetime,
    standings_of: StandingsOf,
    *,
    running: tuple[RunningRun, ...] = (),
    day: str | None = None,
    as_json: bool = False,
) -> int:
    """One call of the command; returns its exit code. `now` is aware; its zone, the node's, decides where days begin.

    `day`: the night that ends on it; None: the last one on record. `standings_of` is asked for the last night only,
    and `running` (see NightSummary) is of no other.
    Raises NodeError for a history that cannot be read.
    """
    zone = now.tzinfo or UTC
    try:
        asked_s = None if day is None else _morning_of(day, zone)
    except ValueError as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR
    try:
        os.stat(history)
    except FileNotFoundError:
        return _nothing(f"there is no history yet ({history})", out, as_json)
    with reading(history) as database:
        database.execute("BEGIN")  # one state of it, whatever the daemon adds and removes meanwhile
        last = last_night(database, now.timestamp(), zone)
        if last is None:
            return _nothing("the history has no backup yet", out, as_json)
        if asked_s is None or last.from_s <= asked_s < last.to_s:
            turns: NightTurns | None = last
            standings: Measured[tuple[Standing, ...]] = standings_of(last)
        else:
            turns, standings = night_turns(database, asked_s, night_of(asked_s, zone)[1], zone), NOT_OF_THE_LAST_NIGHT
        if turns is None:
            return _no_such_night(database, day or "", now.timestamp(), zone)
        summary = summarized(database, turns, standings, running if turns is last else (), zone)
        if as_json:
            print(json.dumps(night_json(summary, zone)), file=out)
        else:
            print("\n".join(night_lines(summary, now.timestamp(), zone, style_of(out))), file=out)
    return EXIT_OK


def _morning_of(day: str, zone: tzinfo) -> float:
    """An instant of the night that ends on this day. Raises ValueError."""
    try:
        asked = date.fromisoformat(day)
        if asked.isoformat() != day:  # also 20261124 and 2026-W48-2 are dates
            raise ValueError
        morning_s = datetime.combine(asked, time(6), zone).timestamp()
        night_of(morning_s, zone)  # near its ends the calendar has no whole night
        return morning_s
    except (ValueError, OverflowError):
        expected = "expected the one on which the night ended, such as 2026-11-24"
        raise ValueError(f"{day!r:.40} is no day; {expected}") from None


def _no_such_night(history: sqlite3.Connection, day: str, now_s: float, zone: tzinfo) -> int:
    turns = attempts_between(history, now_s - KNOWN_DAYS * DAY_S, now_s)
    ends_s = sorted({night_of(turn.started_s, zone)[1] for turn in turns})[-NIGHTS_NAMED:]
    days = ", ".join(f"{datetime.fromtimestamp(end_s, zone):%Y-%m-%d}" for end_s in ends_s)
    print(
        f"pvehook: no backup is on record in the night that ended on {day}"
        + (f"; the last nights that have one ended on {days}" if days else ""),
        file=sys.stderr,
    )
    return EXIT_ERROR


def _nothing(what: str, out: TextIO, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"format": FORMAT, "night": None}), file=out)
        return EXIT_OK
    print(
        f"pvehook: {what}. A guest is recorded when its turn ends; run this again after the next backup.",
        "`journalctl -t pvehook --since today` shows whether vzdump called pvehook;",
        "`pvehook rehearse` previews the next run.",
        sep="\n",
        file=out,
    )
    return EXIT_OK
