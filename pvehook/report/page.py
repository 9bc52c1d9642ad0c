"""`pvehook report --html FILE`: one self-contained page: nothing is fetched, and it is complete without its script.

Whatever others named (guests, kernel lines, reasons) is made printable and escaped; a policy in the page keeps a
browser from fetching anything even if that failed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Final

from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.records.figures import (
    ABSENT_MARK,
    BROKEN_MARK,
    causes_in_short,
    figures,
    severity_key,
    short_duration,
    short_number,
)
from pvehook.records.history import record_of
from pvehook.records.nights import Night
from pvehook.records.stall_record import StallRecord
from pvehook.report.backup_chart import baseline_p99_ms, speeds_of
from pvehook.report.backup_svg import backup_svg
from pvehook.report.backup_words import View, kernel_lines, run_in_words, three_views, what_was_done
from pvehook.report.beside import Beside
from pvehook.report.last_night import beside_of, read_night
from pvehook.report.night_page import beside_words, night_section
from pvehook.report.night_turns import last_night
from pvehook.report.page_parts import arrows, definitions, safe, severity_word, shown_figure, shown_pair, swatch
from pvehook.report.page_style import SCRIPT, STYLE
from pvehook.report.standing import StandingsOf
from pvehook.report.trends import LEVELS, LEVELS_S, Trend, day, days_of, level, worst_of_each
from pvehook.report.turns_page import turns_section
from pvehook.rules.regression import in_words

CHARTS: Final = 12  # guests whose last backup is shown in detail, by default
BARS_MOST: Final = 90  # of a guest's nights; where there are more, the worst of each few
BARS_LEAST: Final = 14  # room for so many, so that the bars of a young history are no blocks
LINES_QUOTED: Final = 20
NO_RECORD: Final = Absent("in the last night it did not suffer beside the backups of others, or was not watched")

BAR, BAR_HEIGHT = 4, 26
"""A bar with its gap, and the tallest one."""


def html_report(
    database: sqlite3.Connection,
    trends: Sequence[Trend],
    worst: int | None,
    now: datetime,
    zone: tzinfo,
    standings_of: StandingsOf,
    is_running: bool,
) -> str:
    """The page about guests, of which there is at least one; the worst are first, and `worst` of them in detail."""
    detailed = trends[: worst if worst is not None else CHARTS]
    records = [(trend, record_of(database, trend.last.id)) for trend in detailed]
    days = days_of(trends, zone)
    last_s = max(trend.last.started_s for trend in trends)
    beside = beside_of(database, last_s, zone)
    night = read_night(database, beside, last_s, zone)
    lines = [*_head(trends, days, now), *_regressions(trends, zone)]
    turns = last_night(database, now.timestamp(), zone)
    lines += turns_section(turns, standings_of(turns), is_running, zone) if turns is not None else []
    lines += night_section(night, zone) if night is not None else []
    lines.append(_tiles(trends, beside))
    lines += _table(trends, days, {trend.last.vmid for trend in detailed}, {each.vmid: each for each in beside}, zone)
    lines.append(f"<h2>{f'The last night of the {len(records)} worst' if len(records) > 1 else 'Its last night'}</h2>")
    rows = night.rows if night is not None else ()
    suffered = {each.id: row.beside for row in rows if row.beside and row.beside.suffered for each in row.backups}
    for trend, record in records:
        lines += _backup(trend, record, suffered.get(trend.last.id), zone)
    return "\n".join([*lines, _FOOT])


def _head(trends: Sequence[Trend], days: Sequence[str], now: datetime) -> Iterator[str]:
    nodes = ", ".join(sorted({trend.last.node for trend in trends}))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield f"<title>Backups and their guests, {days[-1]}</title><style>{STYLE}</style></head><body>"
    yield "<header><h1>What the backups did to their guests</h1>"
    yield f'<p class="muted">Node {safe(nodes)} · nights of {days[0]} to {days[-1]} · made {now:%Y-%m-%d %H:%M %Z}</p>'
    yield "</header>"


def _regressions(trends: Sequence[Trend], zone: tzinfo) -> Iterator[str]:
    for trend in trends:
        if trend.regression is not None:
            since = day(trend.regression.since_s, zone)
            words = arrows(safe(in_words(trend.regression)))
            text = f"<strong>{safe(trend.title)} got worse on {since}.</strong> {words[:1].upper()}{words[1:]}"
            yield f'<p class="loud">{text}.</p>'


def _tiles(trends: Sequence[Trend], beside: Sequence[Beside]) -> str:
    last = [trend.last for trend in trends]
    stalled = [backup for backup in last if backup.severity in ("stalled", "locked-up")]
    seconds = sum(backup.stalled_s for backup in last if isinstance(backup.stalled_s, float))
    broken = sum(isinstance(backup.stalled_s, Broken) for backup in last)
    slowed = sum(backup.severity == "slowed" for backup in last)
    neighbours = sum(each.severity in ("stalled", "locked-up") for each in beside)
    tiles = (
        ("guests that stalled in their own last backup", f"{len(stalled)} <small>of {len(last)}</small>"),
        ("stalled in these in all", f"{short_number(round(seconds, 1))} <small>s</small>"),
        ("guests that stalled beside others’ backups", str(neighbours)),
        ("slowed, not stalled", str(slowed)),
        ("could not be read", str(broken)),
    )
    return definitions("tiles", tiles)


# The table


def _table(
    trends: Sequence[Trend], days: Sequence[str], detailed: set[int], beside: Mapping[int, Beside], zone: tzinfo
) -> Iterator[str]:
    each = -(-len(days) // BARS_MOST)
    yield "<h2>Guests, the worst last night first</h2>"
    yield _legend(each)
    columns = (
        *(("Guest", "name"), ("Nights", ""), ("Last night", ""), ("Stalled", "number"), ("Slowed", "number")),
        *((("Beside others", "number"),) if beside else ()),
        *(("Write p99", "number"), ("Took", "number"), ("Cause", "")),
    )
    yield '<div class="card"><table id="guests"><thead><tr>'
    for name, css in columns:
        is_text = " data-text=1" if name in ("Guest", "Cause") else ""
        yield f'<th scope="col" class="{css}"{is_text}><button type="button">{name}</button></th>'
    yield "</tr></thead><tbody>"
    for trend in trends:
        stalled_s = beside[trend.last.vmid].stalled_s if trend.last.vmid in beside else NO_RECORD
        others = (_number("beside others", value_of(stalled_s) or 0.0, shown_figure(stalled_s, "s")),) if beside else ()
        yield _row(trend, days, each, trend.last.vmid in detailed, others, zone)
    yield "</tbody></table></div>"


def _row(trend: Trend, days: Sequence[str], each: int, is_detailed: bool, others: tuple[str, ...], zone: tzinfo) -> str:
    """`others`: the cell about what it suffered beside the backups of others, if there is one."""
    last = trend.last
    rank, stalled_s, slowed_s = severity_key(last.severity, last.stalled_s, last.slowed_s)
    title = safe(trend.title)
    name = f'<a href="#g{last.vmid}">{title}</a>' if is_detailed else title
    during = last.write_p99_ms if isinstance(last.write_p99_ms, float) else -1.0
    cause = safe(causes_in_short(last.severity, last.causes.split()))
    cells = (
        f'<td class="name" data-sort="{title}">{name}</td>',
        f'<td class="nights" data-sort="{trend.stalled_s:.1f}">{_sparkline(trend, days, each, zone)}</td>',
        f'<td class="severity" data-sort="{rank}">{severity_word(last.severity)}</td>',
        _number("stalled", stalled_s, shown_figure(last.stalled_s, "s")),
        _number("slowed", slowed_s, shown_figure(last.slowed_s, "s")),
        *others,
        _number("write p99", during, shown_pair(last.baseline_write_p99_ms, last.write_p99_ms)),
        _number("took", last.duration_s, short_duration(last.duration_s)),
        f'<td class="cause{"" if cause else " empty"}" data-sort="{cause}" data-label="cause">{cause}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _number(label: str, sort: float, shown: str) -> str:
    return f'<td class="number" data-label="{label}" data-sort="{sort:.2f}">{shown}</td>'


# Sparklines


def _sparkline(trend: Trend, days: Sequence[str], each: int, zone: tzinfo) -> str:
    """A bar for each night, one path for each kind of bar: 200 guests of 400 nights have to fit into a page."""
    columns = max(-(-len(days) // each), BARS_LEAST)
    paths: dict[str, list[str]] = {}
    for column, night in worst_of_each(trend, days, each, zone).items():
        kind, bar = _bar(night, (columns - 1 - column) * BAR)
        paths.setdefault(kind, []).append(bar)
    words = ", ".join(f"{len(bars)} {_BAR_WORDS[kind]}" for kind, bars in paths.items())
    drawn = "".join(f'<path class="{kind}" d="{"".join(bars)}"/>' for kind, bars in paths.items())
    if trend.regression is not None:
        since = day(trend.regression.since_s, zone)
        if since in days:
            column = columns - 1 - (len(days) - 1 - days.index(since)) // each
            drawn += f'<path class="change" d="M{column * BAR - 0.5} 0V{BAR_HEIGHT}"/>'
    return (
        f'<svg class="spark" viewBox="0 0 {columns * BAR} {BAR_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{words}">{drawn}</svg>'
    )


_BAR_WORDS: Final = {
    "none": "without a stall",
    "slowed": "slowed",
    "stalled": "stalled",
    "locked": "locked up or stalled for long",
    "absent": "with nothing to measure",
    "broken": "that could not be read",
}


def _bar(night: Night, x: float) -> tuple[str, str]:
    height = level(night)
    middle = x + (BAR - 1) / 2
    if isinstance(height, Absent):
        return "absent", f"M{x} {BAR_HEIGHT - 6}h{BAR - 1}"
    if isinstance(height, Broken):  # hollow
        return "broken", f"M{x + 0.5} {BAR_HEIGHT - 0.5}v-12h2v12z"
    kind = ("none", "slowed")[height] if height < 2 else "locked" if height == LEVELS - 1 else "stalled"
    return kind, f"M{middle} {BAR_HEIGHT}v-{2 + height * (BAR_HEIGHT - 2) // (LEVELS - 1)}"


def _legend(each: int) -> str:
    bars = (
        ("none", 2, "no stall"),
        ("slowed", 5, "slowed"),
        ("stalled", 9, f"stalled, taller for over {', '.join(f'{limit_s:.0f}' for limit_s in LEVELS_S[:-1])} s"),
        ("locked", 12, f"over {LEVELS_S[-1]:.0f} s or locked up"),
    )
    items = [swatch("spark", kind, f"M9 12v-{height}", words) for kind, height, words in bars]
    items.append('<span><b class="absent">–</b> nothing to measure</span>')
    items.append(f'<span><b class="broken">{BROKEN_MARK}</b> could not be read</span><span>gap: no backup</span>')
    items += [f"<span>each bar is the worst of {each} nights</span>"] if each > 1 else []
    return f'<div class="legend">{"".join(items)}</div>'


# One guest's night


def _backup(trend: Trend, record: Measured[StallRecord], beside: Beside | None, zone: tzinfo) -> Iterator[str]:
    """`beside`: what it suffered in the same night beside the backups of others, if it did."""
    last = trend.last
    yield f'<article class="card" id="g{last.vmid}"><h3>{safe(trend.title)} {severity_word(last.severity)}'
    yield f'<span class="muted small">night of {day(last.started_s, zone)}</span></h3>'
    if isinstance(record, (Absent, Broken)):
        yield f'<p class="muted">{safe(record.why)}</p></article>'
        return
    yield f'<p class="muted small">{safe(run_in_words(record, zone))}</p>'
    yield _figures(record)
    causes = ((safe(cause.text), safe(cause.evidence)) for cause in record.verdict.causes)
    items = "".join(f'<li>{text}<br><span class="muted small">{evidence}</span></li>' for text, evidence in causes)
    yield f'<ul class="causes">{items}</ul>' if items else ""
    yield f'<p class="small">{beside_words(beside)}</p>' if beside is not None else ""
    if record.points:
        yield f"<figure>{backup_svg(record, zone, f'c{last.vmid}')}<figcaption>{_key(record)}</figcaption></figure>"
    yield from _kernel(record, zone)
    yield "<details><summary>All that was seen and done</summary>"
    yield f'<div class="views">{"".join(_view(view) for view in three_views(record))}</div>'
    for reason in dict.fromkeys(reason for view in three_views(record) for reason in view.missing):
        yield f'<p class="muted small">{safe(reason)}</p>'
    said = "".join(f"<dt>{label}</dt><dd>{safe(text)}</dd>" for label, text in what_was_done(record))
    yield f'<dl class="done">{said}</dl></details>'
    yield "</article>"


def _figures(record: StallRecord) -> str:
    known = figures(record)
    stalled_s, reason = known["stalled_s"], ""
    shown = (
        ("stalled", shown_figure(stalled_s, "s")),
        ("slowed", shown_figure(known["slowed_s"], "s")),
        ("p99 of writes, before → during", shown_pair(known["baseline_write_p99_ms"], known["write_p99_ms"])),
        ("requests over 1 s", shown_figure(known["over_1s"], "")),
        ("frozen", shown_figure(known["frozen_ms"], "ms")),
    )
    if isinstance(stalled_s, (Absent, Broken)):  # a phone shows no tooltip
        kind = "could not be read" if isinstance(stalled_s, Broken) else "was not there to be seen"
        reason = f'<p class="small">Whether it stalled {kind}: {safe(stalled_s.why)}</p>'
    return definitions("figures", shown) + reason


def _key(record: StallRecord) -> str:
    """What the chart's lines are."""
    speeds = speeds_of(record)
    line = "M0 6H18"
    shown: tuple[tuple[str, str, str, object], ...] = (
        ("latency", line, "p99, logarithmic", True),
        ("before", line, "before the backup", baseline_p99_ms(record) is not None),
        ("stall", "M3 1h12v10H3z", "a request over 1 s was on its way", True),
        ("rate", "M2 2h14v10H2z", "backup rate", True),
        ("limit", line, "governor’s limit", any(speed.speed_bytes_per_s for speed in speeds)),
        ("target", line, "governor’s target", speeds),
        ("kernel", "M4 11h10l-5 -9z", "kernel line", kernel_lines(record)),
    )
    items = "".join(swatch("chart", kind, path, words) for kind, path, words, applies in shown if applies)
    return f'<div class="legend">{items}</div>'


def _view(view: View) -> str:
    rows = "".join(f"<tr><td>{label}</td><td>{arrows(safe(text))}</td></tr>" for label, text in view.rows)
    return f"<div><h4>{arrows(safe(view.title))}</h4><table>{rows}</table></div>"


def _kernel(record: StallRecord, zone: tzinfo) -> Iterator[str]:
    for whose, events in kernel_lines(record):
        stamped = [(datetime.fromtimestamp(event.at_s, zone), event.text) for event in events[:LINES_QUOTED]]
        lines = [f"<li>{at:%H:%M:%S} {safe(text, 300)}</li>" for at, text in stamped]
        if len(events) > LINES_QUOTED:
            lines.append(f"<li>and {len(events) - LINES_QUOTED} more</li>")
        yield f'<p class="small muted">{whose} logged</p><ul class="kernel-log">{"".join(lines)}</ul>'


_FOOT: Final = f"""<footer class="small muted measure">
<p><b>Stalled seconds</b>: time in which a disk request of the guest was on its way that took longer than 1 s; \
<b>slowed</b>: longer than 100 ms. A request of 3.2 s counts 3.2 s, what overlaps counts once. Both are lower bounds: \
only what was seen counts. Of a container: the seconds in which all of it waited for a disk.</p>
<p><b>p99</b>: 99 of 100 requests took no longer. <b>Before</b>: the same guest before its backup. \
<b>{ABSENT_MARK}</b> nothing to measure, <b>{BROKEN_MARK}</b> it could not be read; neither is a zero. \
A guest <b>got worse</b> when its nights since the change of a version differ from those before it by more than chance \
explains.</p>
</footer><script>{SCRIPT}</script></body></html>"""
