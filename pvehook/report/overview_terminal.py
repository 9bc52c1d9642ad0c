"""`pvehook report` in a terminal: a line for each guest over its nights, the worst first.

guest              nights             last       stalled   write p99  cause
VM 103 db          ▁▁▂▁▁▁▁▅▄▅▆▅▅      stalled      12.3s    4.1>1310  slow target
VM 101 web         ▁▁▁▁▁▁▁▂▁▁▁▁▂      slowed          0s      24>310  shared disks
CT 110 mail        ▁▁- ▁▁▁▁▁▁▁▁?      unknown          ?           -  -
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import tzinfo

from pvehook.contract.text import counted, printable
from pvehook.records.figures import ABSENT_MARK, BROKEN_MARK, before_and_during, causes_in_short, marked, short_number
from pvehook.report.terminal_style import TerminalStyle
from pvehook.report.trends import LEVELS_S, Trend, day, days_of, level, worst_of_each
from pvehook.rules.regression import in_words

_FIXED = "{} {:<9} {:>7} {:>10}  {}"


def overview_lines(
    trends: Sequence[Trend], beside: Sequence[str], number_shown: int, zone: tzinfo, style: TerminalStyle
) -> list[str]:
    """Every regression, then a line for each of the first guests, then the lines about those who suffered `beside` the
    backups of others, then what the marks mean."""
    days = days_of(trends, zone)
    number = counted(len(trends), "guest")
    lines = [f"pvehook: {number}, nights of {days[0]} to {days[-1]}, worst last night first"]
    lines += regression_lines(trends, zone, style)
    lines += ["", *_table(trends[:number_shown], zone, style)]
    if left_out := len(trends[number_shown:]):
        lines += ["", f"{left_out} more guest{'s' if left_out != 1 else ''} with better nights; --worst shows more"]
    return [*lines, *beside, "", *_legend(style)]


def regression_lines(trends: Iterable[Trend], zone: tzinfo, style: TerminalStyle) -> list[str]:
    """Loud, because this is what an upgrade has done."""
    lines = []
    for trend in trends:
        if trend.regression is not None:
            since = day(trend.regression.since_s, zone)
            text = f"!! {trend.title} got worse on {since}: {in_words(trend.regression)}"
            lines += [style.painted(line, "stalled") for line in style.wrapped(text, others="   ")]
    return ["", *lines] if lines else []


def _table(trends: Sequence[Trend], zone: tzinfo, style: TerminalStyle) -> list[str]:
    days = days_of(trends, zone)
    more = max(style.columns - 80, 0) // 4
    guest = min(18 + more, max(len(trend.title) for trend in trends))
    cause = 13 + more
    nights = max(min(len(days), style.columns - guest - cause - len(_FIXED.format(*[""] * 5)) - 1), len("nights"))
    fixed = _FIXED.format(f"{'nights':<{nights}}", f"{'last':<9}", "stalled", "write p99", "cause")
    lines = [f"{'guest':<{guest}} {fixed}"]
    for trend in trends:
        last = trend.last
        fixed = _FIXED.format(
            f"{sparkline(trend, days, nights, zone, style):<{nights}}",
            style.painted(f"{printable(last.severity.replace('-', ' '), 9):<9}", last.severity),
            marked(last.stalled_s, lambda seconds: f"{short_number(seconds)}s"),
            before_and_during(last.baseline_write_p99_ms, last.write_p99_ms),
            printable(causes_in_short(last.severity, last.causes.split()) or ABSENT_MARK)[:cause],
        )
        lines.append(f"{style.shown(trend.title):<{guest}.{guest}} {fixed}".rstrip())
    return lines


def sparkline(trend: Trend, days: Sequence[str], width: int, zone: tzinfo, style: TerminalStyle) -> str:
    """A bar for each of the last days; where there are more days than `width` columns, the worst of each few."""
    days_a_bar = math.ceil(len(days) / width)
    worst = worst_of_each(trend, days, days_a_bar, zone)
    shown = {bar: marked(level(night), lambda height: style.bars[int(height)]) for bar, night in worst.items()}
    return "".join(shown.get(bar, " ") for bar in reversed(range(math.ceil(len(days) / days_a_bar))))


def _legend(style: TerminalStyle) -> list[str]:
    bars = style.bars
    limits = ", ".join(f"{limit_s:.0f}" for limit_s in LEVELS_S)
    return [
        f"nights     {bars[0]} no stall  {bars[1]} slowed  {bars[2:-1]} stalled under {limits} s",
        f"           {bars[-1]} longer or locked up  {ABSENT_MARK} nothing to measure  {BROKEN_MARK} could not be read",
        "stalled    seconds in which a disk request that took over 1 s was on its way",
        "write p99  ms that 99 of 100 writes did not exceed, before > during the backup",
    ]
