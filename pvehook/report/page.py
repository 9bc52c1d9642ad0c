"""`pvehook report --html FILE`: one self-contained page: nothing is fetched, and it is complete without its script.

Whatever others named (guests, kernel lines, reasons) is made printable and escaped; a policy in the page keeps a
browser from fetching anything even if that failed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from html import escape
from typing import Final

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
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
from pvehook.report.page_style import SCRIPT, STYLE
from pvehook.report.trends import LEVELS, LEVELS_S, Trend, day, days_of, level, worst_of_each
from pvehook.rules.regression import in_words

CHARTS: Final = 12  # guests whose last backup is shown in detail, by default
BARS_MOST: Final = 90  # of a guest's nights; where there are more, the worst of each few
BARS_LEAST: Final = 14  # room for so many, so that the bars of a young history are no blocks
LINES_QUOTED: Final = 20
REASON_LIMIT: Final = 600

BAR, BAR_HEIGHT = 4, 26
"""A bar with its gap, and the tallest one."""


def html_report(
    database: sqlite3.Connection, trends: Sequence[Trend], worst: int | None, now: datetime, zone: tzinfo
) -> str:
    """The page about guests, of which there is at least one; the worst are first, and `worst` of them in detail."""
    detailed = trends[: worst if worst is not None else CHARTS]
    records = [(trend, record_of(database, trend.last.id)) for trend in detailed]
    days = days_of(trends, zone)
    lines = [*_head(trends, days, now), *_regressions(trends, zone), _tiles(trends)]
    lines += _table(trends, days, {trend.last.vmid for trend in detailed}, zone)
    lines.append(f"<h2>{f'The last night of the {len(records)} worst' if len(records) > 1 else 'Its last night'}</h2>")
    lines += (line for trend, record in records for line in _backup(trend, record, zone))
    return "\n".join([*lines, _FOOT])


def _text(text: str, limit: int = REASON_LIMIT) -> str:
    """A text of others in the page."""
    return escape(printable(text, limit))


def _arrows(escaped: str) -> str:
    """`4.1 > 1310` and `9.2 -> 10.0` as a page can write them."""
    return escaped.replace("-&gt;", "→").replace(" &gt; ", " → ")


def _head(trends: Sequence[Trend], days: Sequence[str], now: datetime) -> Iterator[str]:
    nodes = ", ".join(sorted({trend.last.node for trend in trends}))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield f"<title>Backups and their guests, {days[-1]}</title><style>{STYLE}</style></head><body>"
    yield "<header><h1>What the backups did to their guests</h1>"
    yield f'<p class="muted">Node {_text(nodes)} · nights of {days[0]} to {days[-1]} · made {now:%Y-%m-%d %H:%M %Z}</p>'
    yield "</header>"


def _regressions(trends: Sequence[Trend], zone: tzinfo) -> Iterator[str]:
    for trend in trends:
        if trend.regression is not None:
            since = day(trend.regression.since_s, zone)
            words = _arrows(_text(in_words(trend.regression)))
            text = f"<strong>{_text(trend.title)} got worse on {since}.</strong> {words[:1].upper()}{words[1:]}"
            yield f'<p class="loud">{text}.</p>'


def _tiles(trends: Sequence[Trend]) -> str:
    last = [trend.last for trend in trends]
    stalled = [backup for backup in last if backup.severity in ("stalled", "locked-up")]
    seconds = sum(backup.stalled_s for backup in last if isinstance(backup.stalled_s, float))
    broken = sum(isinstance(backup.stalled_s, Broken) for backup in last)
    slowed = sum(backup.severity == "slowed" for backup in last)
    tiles = (
        ("guests that stalled in their last night", f"{len(stalled)} <small>of {len(last)}</small>"),
        ("stalled in all", f"{short_number(round(seconds, 1))} <small>s</small>"),
        ("slowed, not stalled", str(slowed)),
        ("could not be read", str(broken)),
    )
    return _definitions("tiles", tiles)


def _definitions(css: str, items: Iterable[tuple[str, str]]) -> str:
    shown = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in items)
    return f'<dl class="{css}">{shown}</dl>'


# The table


def _table(trends: Sequence[Trend], days: Sequence[str], detailed: set[int], zone: tzinfo) -> Iterator[str]:
    each = -(-len(days) // BARS_MOST)
    yield "<h2>Guests, the worst last night first</h2>"
    yield _legend(each)
    columns = (
        *(("Guest", "name"), ("Nights", ""), ("Last night", ""), ("Stalled", "number"), ("Slowed", "number")),
        *(("Write p99", "number"), ("Took", "number"), ("Cause", "")),
    )
    yield '<div class="card"><table id="guests"><thead><tr>'
    for name, css in columns:
        is_text = " data-text=1" if name in ("Guest", "Cause") else ""
        yield f'<th scope="col" class="{css}"{is_text}><button type="button">{name}</button></th>'
    yield "</tr></thead><tbody>"
    yield from (_row(trend, days, each, trend.last.vmid in detailed, zone) for trend in trends)
    yield "</tbody></table></div>"


def _row(trend: Trend, days: Sequence[str], each: int, is_detailed: bool, zone: tzinfo) -> str:
    last = trend.last
    rank, stalled_s, slowed_s = severity_key(last.severity, last.stalled_s, last.slowed_s)
    title = _text(trend.title)
    name = f'<a href="#g{last.vmid}">{title}</a>' if is_detailed else title
    during = last.write_p99_ms if isinstance(last.write_p99_ms, float) else -1.0
    cause = _text(causes_in_short(last.severity, last.causes.split()))
    cells = (
        f'<td class="name" data-sort="{title}">{name}</td>',
        f'<td class="nights" data-sort="{trend.stalled_s:.1f}">{_sparkline(trend, days, each, zone)}</td>',
        f'<td class="severity" data-sort="{rank}">{_word(last.severity)}</td>',
        _number("stalled", stalled_s, _figure(last.stalled_s, "s")),
        _number("slowed", slowed_s, _figure(last.slowed_s, "s")),
        _number("write p99", during, _pair(last.baseline_write_p99_ms, last.write_p99_ms)),
        _number("took", last.duration_s, short_duration(last.duration_s)),
        f'<td class="cause{"" if cause else " empty"}" data-sort="{cause}" data-label="cause">{cause}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _number(label: str, sort: float, shown: str) -> str:
    return f'<td class="number" data-label="{label}" data-sort="{sort:.2f}">{shown}</td>'


def _word(severity: str) -> str:
    return f'<span class="word {_text(severity)}">{_text(severity.replace("-", " "))}</span>'


def _figure(measured: Measured[float], unit: str) -> str:
    """A value with its unit, or a mark with its reason."""
    if isinstance(measured, (Absent, Broken)):
        is_broken = isinstance(measured, Broken)
        css, mark, kind = ("broken", BROKEN_MARK, "could not be read") if is_broken else ("absent", "–", "not there")
        return f'<span class="{css}" title="{kind}: {_text(measured.why)}">{mark}</span>'
    return short_number(measured) + (f"&#8239;{unit}" if unit else "")


def _pair(before: Measured[float], during: Measured[float]) -> str:
    if isinstance(before, (Absent, Broken)) and type(before) is type(during):
        return _figure(during, "")
    return f"{_figure(before, '')} → {_figure(during, 'ms')}"


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
    items = [_swatch("spark", kind, f"M9 12v-{height}", words) for kind, height, words in bars]
    items.append('<span><b class="absent">–</b> nothing to measure</span>')
    items.append(f'<span><b class="broken">{BROKEN_MARK}</b> could not be read</span><span>gap: no backup</span>')
    items += [f"<span>each bar is the worst of {each} nights</span>"] if each > 1 else []
    return f'<div class="legend">{"".join(items)}</div>'


# One guest's night


def _backup(trend: Trend, record: Measured[StallRecord], zone: tzinfo) -> Iterator[str]:
    last = trend.last
    yield f'<article class="card" id="g{last.vmid}"><h3>{_text(trend.title)} {_word(last.severity)}'
    yield f'<span class="muted small">night of {day(last.started_s, zone)}</span></h3>'
    if isinstance(record, (Absent, Broken)):
        yield f'<p class="muted">{_text(record.why)}</p></article>'
        return
    yield f'<p class="muted small">{_text(run_in_words(record, zone))}</p>'
    yield _figures(record)
    causes = ((_text(cause.text), _text(cause.evidence)) for cause in record.verdict.causes)
    items = "".join(f'<li>{text}<br><span class="muted small">{evidence}</span></li>' for text, evidence in causes)
    yield f'<ul class="causes">{items}</ul>' if items else ""
    if record.points:
        yield f"<figure>{backup_svg(record, zone, f'c{last.vmid}')}<figcaption>{_key(record)}</figcaption></figure>"
    yield from _kernel(record, zone)
    yield "<details><summary>All that was seen and done</summary>"
    yield f'<div class="views">{"".join(_view(view) for view in three_views(record))}</div>'
    for reason in dict.fromkeys(reason for view in three_views(record) for reason in view.missing):
        yield f'<p class="muted small">{_text(reason)}</p>'
    said = "".join(f"<dt>{label}</dt><dd>{_text(text)}</dd>" for label, text in what_was_done(record))
    yield f'<dl class="done">{said}</dl></details>'
    yield "</article>"


def _figures(record: StallRecord) -> str:
    known = figures(record)
    stalled_s, reason = known["stalled_s"], ""
    shown = (
        ("stalled", _figure(stalled_s, "s")),
        ("slowed", _figure(known["slowed_s"], "s")),
        ("p99 of writes, before → during", _pair(known["baseline_write_p99_ms"], known["write_p99_ms"])),
        ("requests over 1 s", _figure(known["over_1s"], "")),
        ("frozen", _figure(known["frozen_ms"], "ms")),
    )
    if isinstance(stalled_s, (Absent, Broken)):  # a phone shows no tooltip
        kind = "could not be read" if isinstance(stalled_s, Broken) else "was not there to be seen"
        reason = f'<p class="small">Whether it stalled {kind}: {_text(stalled_s.why)}</p>'
    return _definitions("figures", shown) + reason


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
    items = "".join(_swatch("chart", kind, path, words) for kind, path, words, applies in shown if applies)
    return f'<div class="legend">{items}</div>'


def _swatch(chart: str, kind: str, path: str, words: str) -> str:
    drawn = f'<svg class="{chart}" viewBox="0 0 18 12" aria-hidden="true"><path class="{kind}" d="{path}"/></svg>'
    return f"<span>{drawn}{words}</span>"


def _view(view: View) -> str:
    rows = "".join(f"<tr><td>{label}</td><td>{_arrows(_text(text))}</td></tr>" for label, text in view.rows)
    return f"<div><h4>{_arrows(_text(view.title))}</h4><table>{rows}</table></div>"


def _kernel(record: StallRecord, zone: tzinfo) -> Iterator[str]:
    for whose, events in kernel_lines(record):
        stamped = [(datetime.fromtimestamp(event.at_s, zone), event.text) for event in events[:LINES_QUOTED]]
        lines = [f"<li>{at:%H:%M:%S} {_text(text, 300)}</li>" for at, text in stamped]
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
