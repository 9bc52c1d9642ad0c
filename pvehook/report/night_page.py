"""The node's last night on the page: its picture, who suffered beside the backups of others, and it all as a table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import Final

from pvehook.records.figures import short_duration
from pvehook.report.beside import Beside, suffered_in_words, whose
from pvehook.report.night_svg import night_svg
from pvehook.report.node_night import NodeNight, Row
from pvehook.report.page_parts import arrows, safe, severity_word, shown_figure, shown_pair, swatch
from pvehook.report.trends import day

NAMED: Final = 4
"""Guests that are named below the picture; the table has all of its rows."""
BACKUPS_NAMED: Final = 3
COLUMNS: Final = ("Guest", "Backup", "Stalled in it", "Beside others: stalled", "slowed", "p99", "Whose backup")
MISSING: Final = "–"


def night_section(night: NodeNight, zone: tzinfo) -> Iterator[str]:
    """The node's night."""
    days = list(dict.fromkeys(day(at_s, zone) for at_s in (night.began_s, night.ended_s)))
    yield f'<section id="night"><h2>The node’s night of {" to ".join(days)}</h2>'
    yield '<div class="card night"><figure>'
    yield f"{night_svg(night, zone, 'night')}<figcaption>{_key(night)}</figcaption></figure>"
    if night.left_out:
        guests = "guest" if night.left_out == 1 else "guests"
        yield f'<p class="small muted">{night.left_out} more {guests} with better nights are left out.</p>'
    suffered = [row.beside for row in night.rows if row.beside is not None and row.beside.suffered]
    suffered.sort(key=lambda each: each.key, reverse=True)
    if suffered:
        guests = "One guest" if len(suffered) == 1 else f"{len(suffered)} guests"
        yield f"<h3>{guests} suffered beside the backups of others</h3>"
        yield f'<ul class="causes">{"".join(map(_item, suffered[:NAMED]))}</ul>'
        if len(suffered) > NAMED:
            yield f'<p class="small muted">The other {len(suffered) - NAMED} are in the table.</p>'
    yield "<details><summary>The picture as a table</summary>"
    yield from _table(night, zone)
    yield "</details></div></section>"


def beside_words(beside: Beside) -> str:
    """What a guest suffered beside others and by whose backups, as HTML."""
    said = arrows(safe(suffered_in_words(beside)))
    return f"Beside the backups of others: {said}; {'; '.join(_by(beside))}"


def _item(beside: Beside) -> str:
    said = arrows(safe(suffered_in_words(beside)))
    title = f"{safe(beside.title)} {severity_word(beside.severity)}"
    return f'<li>{title} {said}<br><span class="muted small">{"; ".join(_by(beside))}</span></li>'


def _by(beside: Beside) -> list[str]:
    """Whose backups, what was done for it, what is not known."""
    by = whose(beside)
    more = f" and {len(by) - BACKUPS_NAMED} more" if len(by) > BACKUPS_NAMED else ""
    lines = [f"most beside {safe(', '.join(by[:BACKUPS_NAMED]))}{more}"] if by else []
    slowed_s = sum(each.slowed_backup_s for each in beside.backups)
    if slowed_s:
        lines.append(f"backups were slowed for it for {short_duration(slowed_s)}")
    return lines + [f"what it shares is not known: {safe(why)}" for why in beside.unknown[:1]]


def _key(night: NodeNight) -> str:
    """What is drawn."""
    results = [backup.result for row in night.rows for backup in row.backups]
    stalls = {mark.stalled for row in night.rows for mark in row.marks}
    has_speeds = any(each.speed_bytes_per_s for row in night.rows for chart in row.charts for each in chart.speeds)
    shown = (
        ("bar", "M0 1h18v10H0z", "backup", "ok" in results),
        ("bar failed", "M1 1h16v10H1z", "backup that did not end well", any(each != "ok" for each in results)),
        ("stall", "M6 1h4v10H6z", "stalled", True in stalls),
        ("slowed", "M6 7h6v4H6z", "slowed", False in stalls),
        ("limit", "M0 6H18", "governor’s limit", has_speeds),
        ("window", "M9 0V12", "the window closes", night.window_ends_s),
    )
    items = "".join(swatch("chart", kind, path, words) for kind, path, words, applies in shown if applies)
    words = "Marks on a bar are of the guest’s own backup, all others of the backups of others."
    return f'<div class="legend">{items}</div>{words if stalls else ""}'


def _table(night: NodeNight, zone: tzinfo) -> Iterator[str]:
    heads = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    yield f'<table class="rows"><thead><tr>{heads}</tr></thead><tbody>'
    for row in night.rows:
        named = zip(COLUMNS, _cells(row, zone), strict=True)
        yield f"<tr>{''.join(_cell(name, cell) for name, cell in named)}</tr>"
    yield "</tbody></table>"


def _cell(name: str, cell: str) -> str:
    """A phone, which shows a row as a list, leaves the empty ones out."""
    css = ' class="empty"' if cell == MISSING else ""
    return f'<td{css} data-label="{name[:1].lower()}{name[1:]}">{cell}</td>'


def _cells(row: Row, zone: tzinfo) -> Iterator[str]:
    yield safe(row.title)
    backups = []
    for each in row.backups:
        began = datetime.fromtimestamp(each.started_s, zone)
        failed = "" if each.result == "ok" else f", {safe(each.result, 20)}"
        backups.append(f"{began:%H:%M}, {short_duration(each.duration_s)}{failed}")
    yield "<br>".join(backups) or "not backed up"
    yield shown_figure(row.stalled_s, "s") if row.backups else MISSING
    if row.beside is None:
        yield from [MISSING] * 4
        return
    yield shown_figure(row.beside.stalled_s, "s")
    yield shown_figure(row.beside.slowed_s, "s")
    yield shown_pair(row.beside.slowest.baseline_p99_ms, row.beside.slowest.p99_ms)
    yield safe(", ".join(whose(row.beside)[:BACKUPS_NAMED])) or MISSING
