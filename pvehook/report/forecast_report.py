"""`pvehook report --forecast`: how good the forecasts were that were made at the start of runs.

    guest                    backups  off by  within   last: expected, took
    VM 101 web                    28      8%     93%   12m (10m-15m), 13m
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Final, TextIO

from pvehook.contract.text import counted, printable
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between
from pvehook.records.figures import short_duration
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import reading
from pvehook.report.forecast_outcome import Outcome, outcomes
from pvehook.report.report import EXIT_ERROR, EXIT_OK, start_of
from pvehook.report.terminal_style import TerminalStyle, style_of

FORMAT: Final = 1  # grows when something that was here means something else or is gone


def run_forecast_report(
    history: str, out: TextIO, now: datetime, *, since: str, vmid: int | None = None, as_json: bool = False
) -> int:
    """One call of the command; returns its exit code. Raises NodeError for a history that cannot be read."""
    try:
        since_s = start_of(since, now).timestamp()
    except (ValueError, OverflowError) as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR
    turns: list[Attempt] = []
    if os.path.exists(history):
        with reading(history) as database:
            turns = attempts_between(database, since_s, now.timestamp(), vmid)
    found = outcomes(turns)
    by_guest: dict[int, list[Outcome]] = {}
    for each in found:
        by_guest.setdefault(each.attempt.vmid, []).append(each)
    guests = sorted(by_guest.values(), key=lambda each: -_middle_error(each))
    ends_s = run_end_errors_s(turns)
    if as_json:
        rows = [_guest_json(each) for each in guests]
        body = {"format": FORMAT, "since": since_s, **_total_json(found, ends_s), "guests": rows}
        print(json.dumps(body), file=out)
        return EXIT_OK
    zone = now.tzinfo or UTC
    day = f"{datetime.fromtimestamp(since_s, zone):%Y-%m-%d}"
    if not found:
        print(f"pvehook: no backup since {day} had a forecast; one is made at the start of a scheduled run", file=out)
        return EXIT_OK
    print("\n".join(_lines(found, guests, ends_s, day, style_of(out))), file=out)
    return EXIT_OK


def run_end_errors_s(turns: Sequence[Attempt]) -> list[float]:
    """Of each run in which all guests were backed up: by how much it ended later than expected."""
    runs: dict[str, list[Attempt]] = {}
    for turn in turns:
        runs.setdefault(turn.job, []).append(turn)
    lasts = [max(run, key=lambda turn: turn.ended_s) for run in runs.values() if all(t.result == "ok" for t in run)]
    return [last.ended_s - last.expected_end_s for last in lasts if last.expected_end_s is not None]


def _middle_error(found: Sequence[Outcome]) -> float:
    return median(each.error for each in found)


def _lines(
    found: Sequence[Outcome],
    guests: Sequence[Sequence[Outcome]],
    ends_s: Sequence[float],
    day: str,
    style: TerminalStyle,
) -> list[str]:
    within = sum(each.is_within for each in found)
    lines = [
        f"pvehook: forecasts since {day}: {counted(len(found), 'backup')} of {counted(len(guests), 'guest')}",
        *style.wrapped(
            f"A backup's length was off by {_middle_error(found):.0%} (half of them by less); {within} of {len(found)}"
            " were within their range, which is to hold 9 of 10."
        ),
    ]
    if ends_s:
        off = short_duration(median(abs(each) for each in ends_s))
        lines.append(f"The end of {len(ends_s)} run{'s' if len(ends_s) != 1 else ''} was off by {off}.")
    lines += ["", f"{'guest':<24} {'backups':>7} {'off by':>7} {'within':>7}   last: expected, took"]
    for each in guests:
        last = each[-1]
        name = printable(f"{guest_number(last.attempt.vmtype, last.attempt.vmid)} {last.attempt.name or ''}", 24)
        span = f"{short_duration(last.expected_s)} ({short_duration(last.least_s)}-{short_duration(last.most_s)})"
        inside = f"{sum(one.is_within for one in each) / len(each):.0%}"
        lines.append(
            f"{style.shown(name):<24} {len(each):>7} {_middle_error(each):>7.0%} {inside:>7}   "
            f"{span}, {short_duration(last.attempt.duration_s)}"
        )
    return lines


def _total_json(found: Sequence[Outcome], ends_s: Sequence[float]) -> dict[str, object]:
    return {
        "backups": len(found),
        "error": round(_middle_error(found), 4) if found else None,
        "within": round(sum(each.is_within for each in found) / len(found), 4) if found else None,
        "run_end_errors_s": [round(each, 1) for each in ends_s],
    }


def _guest_json(found: Sequence[Outcome]) -> dict[str, object]:
    last = found[-1]
    return {
        "vmid": last.attempt.vmid,
        "name": last.attempt.name,
        "backups": len(found),
        "error": round(_middle_error(found), 4),
        "within": round(sum(each.is_within for each in found) / len(found), 4),
        "last": {
            "expected_s": round(last.expected_s, 1),
            "from_s": round(last.least_s, 1),
            "to_s": round(last.most_s, 1),
            "took_s": round(last.attempt.duration_s, 1),
        },
    }
