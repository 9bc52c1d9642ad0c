"""`pvehook report`: which guest suffered, how much, why, and is it worse than before the upgrade?

It reads the history and writes to a terminal, to one HTML file, or JSON; it changes nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final, TextIO

from pvehook.contract.measured import Absent, Measured
from pvehook.contract.text import counted
from pvehook.host.regular_file import replace_file
from pvehook.records.beside_history import PastBeside, beside_between
from pvehook.records.history import DAY_S, PastBackup, reading, record_of
from pvehook.records.nights import nights
from pvehook.report.backup_terminal import backup_lines
from pvehook.report.beside import Beside, by_night, night_of
from pvehook.report.beside_terminal import GUESTS_SHOWN, NIGHTS_SHOWN, beside_lines, beside_nights
from pvehook.report.json_report import FORMAT, guest_json, overview_json
from pvehook.report.last_night import beside_of, detailed
from pvehook.report.overview_terminal import overview_lines
from pvehook.report.page import html_report
from pvehook.report.standing import StandingsOf
from pvehook.report.terminal_style import TerminalStyle, style_of
from pvehook.report.trends import Trend, day, days_of, worst_first

DEFAULT_SINCE: Final = "30d"
TREND_DAYS: Final = 120  # how far back to search for a regression, even if fewer backups are shown
WORST_SHOWN: Final = 20  # guests shown in a terminal, by default

NOT_ASKED: Final = Absent("the jobs were not read")

EXIT_OK, EXIT_ERROR = 0, 2


def run_report(
    history: str,
    out: TextIO,
    now: datetime,
    *,
    since: str = DEFAULT_SINCE,
    vmid: int | None = None,
    backup: str | None = None,
    worst: int | None = None,
    html: str | None = None,
    as_json: bool = False,
    standings_of: StandingsOf = lambda _: NOT_ASKED,
    is_running: bool = False,
) -> int:
    """One call of the command; returns its exit code. `now` is aware; its zone, the node's, decides where days begin.
    `standings_of` is asked for the page only, and so is whether a run goes on now (`is_running`).

    With `backup`, a day, the report is as of that day, of the guests whose backup began on it.
    Raises NodeError for a history that cannot be read, OSError where `html` cannot be written.
    """
    zone = now.tzinfo or UTC
    try:
        until = now if backup is None else _end_of(backup, zone)
        since_s = start_of(since, until).timestamp()
    except (ValueError, OverflowError) as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR
    try:
        os.stat(history)
    except FileNotFoundError:
        return _nothing(f"there is no history yet ({history})", out, as_json)
    with reading(history) as database, ExitStack() as at_the_end:
        # 200 000 nights are a million small values without a reference cycle: no use to search them for garbage.
        gc.disable()
        at_the_end.callback(gc.enable)
        database.execute("BEGIN")  # one state of it, whatever the daemon adds and removes meanwhile
        until_s = until.timestamp() + (1 if backup is not None else DAY_S)
        judged_from_s = min(since_s, until_s - TREND_DAYS * DAY_S)
        lasts = worst_first(database, since_s, until_s, vmid)

        def trend_of(last: PastBackup) -> Trend:
            return Trend(last, *nights(database, last.vmid, judged_from_s, since_s, until_s))

        runs = [] if vmid is None else beside_between(database, since_s, until_s, vmid)
        whose = "" if vmid is None else f" of guest {vmid}"
        if backup is not None:
            of_night = [last for last in lasts if day(last.started_s, zone) == backup]
            if not of_night and backup not in {day(run.started_s, zone) for run in runs}:
                return _no_such_night(f"no backup{whose} began on {backup}", map(trend_of, lasts), zone)
            lasts = of_night
        if not lasts and not (runs and html is None):
            return _nothing(f"the history has no night{whose} since {day(since_s, zone)}", out, as_json)
        if as_json and vmid is None and html is None:
            out.writelines(overview_json(database, lasts[:worst], judged_from_s, since_s, until_s, zone))
            return EXIT_OK
        found = [trend_of(last) for last in lasts]
        if html is not None:
            os.stat(os.path.dirname(os.path.abspath(html)))  # a directory that is not there is a mistake
            text = html_report(database, found, worst, now, zone, standings_of, is_running)
            replace_file(os.path.abspath(html), text)
            print(f"pvehook: {html} has {counted(len(found), 'guest')}", file=out)
        elif vmid is not None:
            print("\n".join(_one_guest(database, found[:1], runs, zone, out, as_json)), file=out)
        else:
            style = style_of(out)
            beside = _beside_last(database, found, worst or GUESTS_SHOWN, zone, style)
            print("\n".join(overview_lines(found, beside, worst or WORST_SHOWN, zone, style)), file=out)
    return EXIT_OK


def _one_guest(
    database: sqlite3.Connection,
    found: Sequence[Trend],
    runs: Sequence[PastBeside],
    zone: tzinfo,
    out: TextIO,
    as_json: bool,
) -> list[str]:
    """One guest's last night, if it had any of its own, and its nights beside the backups of others."""
    nights_beside = by_night(runs, zone)
    record = record_of(database, found[0].last.id) if found else None
    if as_json:
        with_details = detailed(database, [Beside((run,)) for run in runs])
        return [json.dumps(guest_json(found[0] if found else None, record, with_details, zone))]
    style = style_of(out)
    beside = beside_nights(detailed(database, nights_beside[:NIGHTS_SHOWN]), len(nights_beside), zone, style)
    if record is not None:
        return backup_lines(found[0], record, beside, zone, style)
    title = Beside(tuple(runs)).title
    return [
        f"{style.shown(title)}: no backup of its own in this time",
        *(beside or ["it did not suffer beside others"]),
    ]


def _beside_last(
    database: sqlite3.Connection, found: Sequence[Trend], number: int, zone: tzinfo, style: TerminalStyle
) -> list[str]:
    """Who suffered beside the backups of others in the last night of all."""
    last_s = max(trend.last.started_s for trend in found)
    beside = beside_of(database, last_s, zone)
    own: dict[int, Measured[float]] = {}
    for trend in found:
        if night_of(trend.last.started_s, zone) == night_of(last_s, zone):
            own[trend.last.vmid] = trend.last.stalled_s
    return beside_lines(detailed(database, beside[:number]) + beside[number:], own, number, zone, style)


def _end_of(backup: str, zone: tzinfo) -> datetime:
    """The last second of the day. Raises ValueError."""
    try:
        asked = date.fromisoformat(backup)
        if asked.isoformat() != backup:  # also 20261124 and 2026-W48-2 are dates
            raise ValueError
    except ValueError:
        raise ValueError(f"{backup!r:.40} is no night; expected its date, such as 2026-11-24") from None
    return datetime.combine(asked, time(23, 59, 59), zone)


def start_of(since: str, now: datetime) -> datetime:
    """`30d` ago, or a date's midnight. Raises ValueError."""
    number = since.removesuffix("d")
    if since.endswith("d") and number.isascii() and number.isdigit() and 0 < int(number[:9]) <= 36500:
        return now - timedelta(days=int(number[:9]))
    try:
        return datetime.fromisoformat(since).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=now.tzinfo)
    except ValueError:
        raise ValueError(f"{since!r:.40} is no time; expected days such as 30d, or a date such as 2026-11-01") from None


def _no_such_night(what: str, found: Iterable[Trend], zone: tzinfo) -> int:
    days = days_of(found, zone)[-7:]
    print(f"pvehook: {what}" + (f"; the last nights before: {', '.join(days)}" if days else ""), file=sys.stderr)
    return EXIT_ERROR


def _nothing(what: str, out: TextIO, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"format": FORMAT, "guests": []}), file=out)
        return EXIT_OK
    print(
        f"pvehook: {what}. A guest is recorded when its backup ends; run this again after the next one.",
        "`pvehook night` shows who was refused or failed, if anybody was;",
        "`journalctl -t pvehook --since today` shows whether vzdump called pvehook;",
        "`pvehook rehearse` previews the next run.",
        sep="\n",
        file=out,
    )
    return EXIT_OK
