"""`pvehook report`: which guest suffered, how much, why, and is it worse than before the upgrade?

It reads the history and writes to a terminal, to one HTML file, or JSON; it changes nothing else.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, TextIO

from pvehook.records.history import nights, reading, record_of
from pvehook.records.look import look_of
from pvehook.records.night_terminal import night_lines
from pvehook.records.report_html import html_report
from pvehook.records.report_json import night_json, overview_json
from pvehook.records.report_terminal import overview_lines
from pvehook.records.trends import Trend, day, trends

DEFAULT_SINCE: Final = "30d"
TREND_DAYS: Final = 120
"""A regression is looked for this far back, also where fewer nights are shown."""
WORST_SHOWN: Final = 20
"""Guests in a terminal, where nobody said how many."""

EXIT_OK, EXIT_ERROR = 0, 2


def run_report(
    history: str,
    out: TextIO,
    now: datetime,
    *,
    since: str = DEFAULT_SINCE,
    vmid: int | None = None,
    night: str | None = None,
    worst: int | None = None,
    html: str | None = None,
    as_json: bool = False,
) -> int:
    """One call of the command; returns its exit code. `now` is aware, in the node's zone, in which days are told.

    Raises NodeError for a history that cannot be read, OSError where `html` cannot be written.
    """
    try:
        since_s = start_of(since, now).timestamp()
        asked_day = None if night is None else date.fromisoformat(night).isoformat()
    except (ValueError, OverflowError) as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR
    if not os.path.exists(history):
        return _nothing(f"there is no history yet ({history})", out, as_json)
    with reading(history) as database:
        if asked_day is not None:  # whenever it was
            since_s = 0.0
        from_s = min(since_s, now.timestamp() - timedelta(days=TREND_DAYS).total_seconds())
        found = trends(nights(database, from_s, vmid), since_s)
        if not found:
            whose = "" if vmid is None else f" of guest {vmid}"
            return _nothing(f"the history has no night{whose} since {day(since_s, zone_of(now))}", out, as_json)
        if html is not None:
            _write(html, html_report(database, found, worst, now, zone_of(now)))
            print(f"pvehook: {html} has {len(found)} guest{'s' if len(found) != 1 else ''}", file=out)
        elif vmid is not None:
            return _one_night(database, found[0], asked_day, out, now, as_json)
        else:
            _overview(found, worst, out, now, as_json)
    return EXIT_OK


def start_of(since: str, now: datetime) -> datetime:
    """`30d` ago, or a date's midnight. Raises ValueError."""
    number = since.removesuffix("d")
    if since.endswith("d") and number.isascii() and number.isdigit() and 0 < int(number[:9]) <= 36500:
        return now - timedelta(days=int(number[:9]))
    try:
        return datetime.fromisoformat(since).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=now.tzinfo)
    except ValueError:
        raise ValueError(f"{since!r:.40} is no time; expected days such as 30d, or a date such as 2026-11-01") from None


def _overview(found: list[Trend], worst: int | None, out: TextIO, now: datetime, as_json: bool) -> None:
    zone = zone_of(now)
    if as_json:
        print(json.dumps(overview_json(found[:worst], zone)), file=out)
        return
    for line in overview_lines(found, worst if worst is not None else WORST_SHOWN, zone, look_of(out)):
        print(line, file=out)


def _one_night(
    database: sqlite3.Connection, trend: Trend, asked_day: str | None, out: TextIO, now: datetime, as_json: bool
) -> int:
    """The last one, or the last of the day that was asked for."""
    zone = zone_of(now)
    chosen = [night for night in trend.nights if asked_day in (None, day(night.started_s, zone))]
    if not chosen:
        days = ", ".join(dict.fromkeys(day(night.started_s, zone) for night in trend.nights[-7:]))
        print(f"pvehook: no backup of {trend.title} began on {asked_day}; its last nights: {days}", file=sys.stderr)
        return EXIT_ERROR
    record = record_of(database, chosen[-1].id)
    if as_json:
        print(json.dumps(night_json(trend, chosen[-1], record, zone)), file=out)
        return EXIT_OK
    for line in night_lines(trend, chosen[-1], record, zone, look_of(out)):
        print(line, file=out)
    return EXIT_OK


def _nothing(what: str, out: TextIO, as_json: bool) -> int:
    if as_json:
        print(json.dumps(overview_json([], UTC)), file=out)
        return EXIT_OK
    print(
        f"pvehook: {what}. A guest's night is written down when its backup ends, so look again after the next one.",
        "`journalctl -t pvehook --since today` shows whether vzdump rang, `pvehook rehearse` what tonight will do.",
        sep="\n",
        file=out,
    )
    return EXIT_OK


def _write(path: str, text: str) -> None:
    """Whole or not at all: it may be shown by a web server while it is written."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def zone_of(now: datetime) -> tzinfo:
    """In which days and times are told."""
    return now.tzinfo or UTC
