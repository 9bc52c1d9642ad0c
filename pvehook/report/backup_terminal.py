"""`pvehook report --vmid N` in a terminal: one guest's night, the three views side by side, and its chart.

QEMU    before > during    the guest itself           the node
────────────────────────   ────────────────────────   ────────────────────────
write p99 ms  4.1 > 1310   io some s             14   vCPUs waited s       0.4
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from itertools import zip_longest
from typing import Final

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.records.figures import figures, marked, short_number
from pvehook.records.stall_record import StallRecord
from pvehook.report.backup_chart import chart_lines
from pvehook.report.backup_words import kernel_lines, run_in_words, three_views, what_was_done
from pvehook.report.overview_terminal import regression_lines, sparkline
from pvehook.report.terminal_style import TerminalStyle
from pvehook.report.trends import Trend, day, days_of

LINES_QUOTED: Final = 10
LINE_LIMIT: Final = 200
GAP: Final = 3  # between the views


def backup_lines(
    trend: Trend, record: Measured[StallRecord], beside: Sequence[str], zone: tzinfo, style: TerminalStyle
) -> list[str]:
    """All that is known of the last night. `beside`: the lines about what it suffered beside the backups of others."""
    backup = trend.last
    severity = style.painted(printable(backup.severity.replace("-", " ")), backup.severity)
    lines = [f"{style.shown(trend.title)}, night of {day(backup.started_s, zone)}: {severity}"]
    before = [*regression_lines([trend], zone, style), "", *_backups(trend, zone, style)]
    if isinstance(record, (Absent, Broken)):
        return [*lines, *style.wrapped(record.why, first="  ", others="  "), *before, *beside]
    lines += style.wrapped(run_in_words(record, zone), first="  ", others="  ")
    lines += [*before, "", *_why(record, style), *beside, "", *_views(record, style), ""]
    for label, text in what_was_done(record):
        lines += style.wrapped(text, first=f"{label:<10} ", others=" " * 11)
    lines += _kernel_lines(record, zone, style)
    if record.points:
        lines += ["", *chart_lines(record, zone, style)]
    return lines


def _backups(trend: Trend, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """How the nights before it were."""
    days = days_of([trend], zone)
    bars = sparkline(trend, days, min(len(days), style.columns - 11), zone, style)
    bad = sum(night.severity in ("stalled", "locked-up") for night in trend.nights)
    unknown = sum(night.severity == "unknown" for night in trend.nights)
    said = f"stalled in {bad} of {len(trend.nights)} nights" + (f", {unknown} not known" if unknown else "")
    return [f"nights     {bars}", f"           {days[0]} to {days[-1]}, {said}"]


def _why(record: StallRecord, style: TerminalStyle) -> list[str]:
    known = figures(record)
    lines = []
    for words in ("stalled", "slowed"):
        figure = known[f"{words}_s"]
        reason = f"  ({figure.why})" if isinstance(figure, (Absent, Broken)) else ""
        text = marked(figure, lambda seconds: f"{short_number(seconds)} s") + reason
        lines += style.wrapped(text, first=f"{words:<10} ", others=" " * 11)
    for cause in record.verdict.causes:
        lines += style.wrapped(cause.text, first="cause      ", others=" " * 11)
        lines += style.wrapped(cause.evidence, first=" " * 11, others=" " * 11)
    return lines if record.verdict.causes else [*lines, "cause      none was seen"]


def _views(record: StallRecord, style: TerminalStyle) -> list[str]:
    views = three_views(record)
    width = min((style.columns - 2 * GAP) // 3, 38)
    columns = [[view.title, ("─" if style.unicode else "-") * width] for view in views]
    for column, view in zip(columns, views, strict=True):
        column += [f"{label:<{width - len(text) - 1}.{width - len(text) - 1}} {text}" for label, text in view.rows]
    table = zip_longest(*columns, fillvalue="")
    lines = [(" " * GAP).join(f"{cell:<{width}}" for cell in row).rstrip() for row in table]
    for view in views:
        for reason in dict.fromkeys(view.missing):
            lines += style.wrapped(reason, others="  ")
    return lines


def _kernel_lines(record: StallRecord, zone: tzinfo, style: TerminalStyle) -> list[str]:
    lines = []
    for whose, events in kernel_lines(record):
        lines += ["", f"{whose} logged"]
        for event in events[:LINES_QUOTED]:
            at = datetime.fromtimestamp(event.at_s, zone)
            text = f"{at:%H:%M:%S} {event.kind}: {printable(event.text, LINE_LIMIT)}"
            lines += style.wrapped(text, first="  ", others=" " * 11)
        if len(events) > LINES_QUOTED:
            lines.append(f"  and {len(events) - LINES_QUOTED} more")
    return lines
