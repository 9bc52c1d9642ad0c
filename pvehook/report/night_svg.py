"""The node's night as one picture, SVG: a row for each guest over the time of day, its backup as a bar, the time in
which it suffered as marks; below them what the backups read and the governor's limit; and the same in words.

A mark for stalled is as high as the bar, one for slowed a third of that. Marks on a bar are of the guest's own backup,
marks beside it of the backups of others. Drawn for three widths, as backup_svg.py does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from html import escape
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.text import printable
from pvehook.records.figures import in_bytes, marked, short_number
from pvehook.report.backup_svg import MIB, MIDDLE, NARROW, WIDE, round_up
from pvehook.report.beside import SUFFERED, suffered_in_words, whose
from pvehook.report.node_night import NodeNight, Row, limits, rates
from pvehook.report.time_axis import round_times

BAR_HEIGHT, SLOWED_HEIGHT = 12, 4
HEAD, HEADING, FOOT = 36, 24, 22
RATE_GAP, RATE_HEIGHT = 24, 46
FINEST_PX: Final = 1.5
"""A mark is at least this wide, or nobody would see 2 s in a night."""
COLUMN_PX: Final = 3
"""Of the rate below."""
WORDS_OF: Final = 5
"""Guests that the picture's words name."""

V = TypeVar("V")


class _Frame(NamedTuple):
    """Where things are."""

    width: int
    left: float
    right: float
    row_height: int
    began_s: float
    duration_s: float

    def x(self, at_s: float) -> float:
        part = min(max((at_s - self.began_s) / self.duration_s, 0.0), 1.0)
        return self.left + part * (self.right - self.left)

    @property
    def is_narrow(self) -> bool:
        """Names are above the bars, not beside them."""
        return self.width == NARROW


def night_svg(night: NodeNight, zone: tzinfo, identifier: str) -> str:
    """The drawings; `identifier` is a word that no other chart of the page has."""
    words = escape(night_in_words(night, zone))
    frames = (
        ("wide", _Frame(WIDE, 168, WIDE - 104, 20, night.began_s, night.duration_s)),
        ("middle", _Frame(MIDDLE, 128, MIDDLE - 92, 20, night.began_s, night.duration_s)),
        ("narrow", _Frame(NARROW, 2, NARROW - 2, 31, night.began_s, night.duration_s)),
    )
    drawn = []
    for name, frame in frames:
        height, parts = _drawing(night, frame, zone)
        label = f'role="img" aria-labelledby="{identifier}-{name}"'
        drawn.append(
            f'<svg class="chart {name}" viewBox="0 0 {frame.width} {height}" {label}>'
            f'<title>The node’s night</title><desc id="{identifier}-{name}">{words}</desc>{"".join(parts)}</svg>'
        )
    return "".join(drawn)


def _drawing(night: NodeNight, frame: _Frame, zone: tzinfo) -> tuple[int, list[str]]:
    """Its height and its parts."""
    rows: list[str] = []
    y = HEAD
    for is_idle, group in itertools.groupby(night.rows, key=lambda row: not row.backups):
        if is_idle:
            rows.append(f'<text class="title" x="2" y="{y + 16}">not backed up</text>')
            y += HEADING
        for row in group:
            rows += _row(row, y, frame, zone)
            y += frame.row_height
    bottom = y
    rate = _rate(night, y + RATE_GAP, frame)
    if rate:
        y += RATE_GAP + RATE_HEIGHT
    height = y + FOOT
    return height, [*_axis(night, frame, zone, bottom, height, y if rate else None), *rows, *rate]


def _axis(
    night: NodeNight, frame: _Frame, zone: tzinfo, bottom: int, height: int, rate_bottom: int | None
) -> Iterator[str]:
    """Times above and below, and where the window closes."""
    if not frame.is_narrow:
        yield f'<text x="{frame.width - 52}" y="{HEAD - 8}" text-anchor="end">own</text>'
        yield f'<text x="{frame.width - 4}" y="{HEAD - 8}" text-anchor="end">beside</text>'
        yield f'<text class="title" x="{frame.width - 4}" y="14" text-anchor="end">stalled, s</text>'
    lower = f"M{{x:.1f}} {bottom + RATE_GAP}V{rate_bottom}" if rate_bottom is not None else ""
    for at_s, label in round_times(night.began_s, night.duration_s, zone, int(frame.right - frame.left) // 80 + 1):
        x = frame.x(night.began_s + at_s)
        yield f'<path class="grid" d="M{x:.1f} {HEAD - 4}V{bottom}{lower.format(x=x)}"/>'
        if 16 <= x <= min(frame.right, frame.width - 16):
            is_named = any(abs(frame.x(end_s) - x) < 24 for end_s in night.window_ends_s)
            for y in (height - 6,) if is_named else (HEAD - 8, height - 6):
                yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{label}</text>'
    for at_s in night.window_ends_s:
        x = frame.x(at_s)
        yield f'<path class="window" d="M{x:.1f} 4V{bottom if rate_bottom is None else rate_bottom}"/>'
        anchor, shift = ("end", -4) if x > frame.width / 2 else ("start", 4)
        said = f"window closes {datetime.fromtimestamp(at_s, zone):%H:%M}"
        yield f'<text class="window" x="{x + shift:.1f}" y="13" text-anchor="{anchor}">{said}</text>'


def _row(row: Row, y: int, frame: _Frame, zone: tzinfo) -> Iterator[str]:
    floor = y + frame.row_height - 4
    figures = list(_figures(row, floor, frame))
    yield from figures
    name = _cut(row.title, 26 if frame.width == WIDE else 18 if frame.width == MIDDLE else 22 if figures else 40)
    label_y = floor - 2 if not frame.is_narrow else floor - BAR_HEIGHT - 4
    yield f'<text class="name" x="2" y="{label_y}">{escape(name)}</text>'
    yield f'<path class="axis" d="M{frame.left} {floor}H{frame.right}"/>'
    for backup in row.backups:
        x, end = frame.x(backup.started_s), frame.x(backup.started_s + backup.duration_s)
        kind = "bar" if backup.result == "ok" else "bar failed"
        shape = f"M{x:.1f} {floor - BAR_HEIGHT}H{max(end, x + 1):.1f}v{BAR_HEIGHT}H{x:.1f}z"
        yield f'<path class="{kind}" d="{shape}"/>'
    for kind, stalled, height in (("slowed", False, SLOWED_HEIGHT), ("stall", True, BAR_HEIGHT)):
        spans = ((frame.x(mark.from_s), frame.x(mark.to_s)) for mark in row.marks if mark.stalled == stalled)
        shape = "".join(
            f"M{x:.1f} {floor}v-{height}H{end:.1f}v{height}z" for x, end in _joined(spans, FINEST_PX, frame.right)
        )
        if shape:
            yield f'<path class="{kind}" d="{shape}"/>'
    if frame.width == WIDE:
        yield f'<path class="hit" d="M0 {y}H{frame.width}v{frame.row_height}H0z">'
        yield f"<title>{escape(row_in_words(row, zone))}</title></path>"


def _figures(row: Row, floor: int, frame: _Frame) -> Iterator[str]:
    """Its stalled seconds, in its own backup and beside others'."""
    own = marked(row.stalled_s, short_number)
    beside = "–" if row.beside is None else marked(row.beside.stalled_s, short_number)
    if not frame.is_narrow:
        for x, text in ((frame.width - 52, own), (frame.width - 4, beside)):
            css = ' class="some"' if text not in ("0", "-", "–") else ""
            yield f'<text{css} x="{x}" y="{floor - 2}" text-anchor="end">{text.replace("-", "–")}</text>'
        return
    known = [f"{word} {text} s" for word, text in (("own", own), ("beside", beside)) if text not in ("0", "-", "–")]
    if known:
        y = floor - BAR_HEIGHT - 4
        yield f'<text class="some" x="{frame.right}" y="{y}" text-anchor="end">{" · ".join(known)}</text>'


def _joined(
    spans: Iterable[tuple[float, float]], finest: float, most: float = float("inf")
) -> Iterator[tuple[float, float]]:
    """Those that touch, as one; each at least `finest` wide. In pixels."""
    began, ended = -1.0, -1.0
    for x, to in sorted(spans):
        end = max(to, x + finest)
        start = min(x, most - finest)
        if start > ended:
            if ended >= 0:
                yield began, min(ended, most)
            began, ended = start, end
        else:
            ended = max(ended, end)
    if ended >= 0:
        yield began, min(ended, most)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _rate(night: NodeNight, top: int, frame: _Frame) -> list[str]:
    """What the backups read, and the governor's limit; nothing where no chart is kept."""
    columns = int(frame.right - frame.left) // COLUMN_PX
    read, limit = rates(night, columns), limits(night, columns)
    if not any(read):
        return []
    highest = max(each or 0 for each in limit)
    most = round_up(max(*read, min(highest, 2 * max(read)), MIB) / MIB) * MIB
    floor, step = top + RATE_HEIGHT, (frame.right - frame.left) / columns

    def y(bytes_per_s: float) -> float:
        return floor - min(bytes_per_s / most, 1.0) * RATE_HEIGHT

    heights = _runs([round(y(rate), 1) for rate in read])
    steps = "".join(f"V{height}H{frame.left + end * step:.1f}" for height, _, end in heights)
    parts = [
        f'<path class="rate" d="M{frame.left} {floor}{steps}V{floor}z"/>',
        f'<path class="axis" d="M{frame.left} {floor}H{frame.right}"/>',
    ]
    lines, before = "", -1
    for value, start, end in _runs(limit):
        if value is None:
            continue
        move = f"V{y(value):.1f}" if before == start else f"M{frame.left + start * step:.1f} {y(value):.1f}"
        lines += f"{move}H{frame.left + end * step:.1f}"
        before = end
    if lines:
        parts.append(f'<path class="limit" d="{lines}"/>')
    scale = f"{short_number(most / MIB)} MiB/s"
    if frame.is_narrow:
        words = "backup rate and limit" if lines else "backup rate"
        parts.append(f'<text class="title" x="2" y="{top - 6}">{words}, up to {scale}</text>')
    else:
        for line, said in enumerate(("backup rate", "and limit")[: 2 if lines else 1]):
            parts.append(f'<text class="title" x="2" y="{top + 10 + 14 * line}">{said}</text>')
        parts.append(f'<text x="{frame.right + 6}" y="{top + 8}">{scale}</text>')
        parts.append(f'<text x="{frame.right + 6}" y="{floor}">0</text>')
    return parts


def _runs(values: Sequence[V]) -> Iterator[tuple[V, int, int]]:
    """Each value with the first column that has it and the one after the last."""
    at = 0
    for value, group in itertools.groupby(values):
        number = len(list(group))
        yield value, at, at + number
        at += number


# In words


def row_in_words(row: Row, zone: tzinfo) -> str:
    """`VM 104 db: backup ok 02:00 to 02:41, stalled 12 s; beside the backups of others stalled 17 s, most
    beside VM 103 (15 s)`."""
    parts = []
    for backup in row.backups:
        began, ended = (
            datetime.fromtimestamp(at_s, zone) for at_s in (backup.started_s, backup.started_s + backup.duration_s)
        )
        stalled = marked(backup.stalled_s, lambda seconds: f"{short_number(seconds)} s")
        parts.append(f"backup {printable(backup.result, 20)} {began:%H:%M} to {ended:%H:%M}, stalled {stalled}")
    if row.beside is not None and row.beside.suffered:
        by = ", ".join(whose(row.beside)[:3])
        text = f"beside the backups of others {suffered_in_words(row.beside)}"
        parts.append(f"{text}, most beside {by}" if by else text)
    return f"{row.title}: {'; '.join(parts)}"


def night_in_words(night: NodeNight, zone: tzinfo) -> str:
    """What the picture shows."""
    began, ended = (datetime.fromtimestamp(at_s, zone) for at_s in (night.began_s, night.ended_s))
    text = f"Picture of the night, {began:%H:%M} to {ended:%H:%M}: {night.guests} guests were backed up. "
    suffered = [row for row in night.rows if row.beside is not None and row.beside.suffered]
    own = [row for row in night.rows if any(each.severity in SUFFERED for each in row.backups)]
    text += f"Suffered in their own backup: {len(own)}; beside the backups of others: {len(suffered)}. "
    named = sorted(suffered, key=lambda row: row.beside.key if row.beside is not None else (0, 0.0, 0.0), reverse=True)
    text += "".join(f"{row_in_words(row, zone)}. " for row in named[:WORDS_OF])
    set_limits = [each for each in limits(night, 240) if each is not None]
    if set_limits:
        text += f"The governor limited backups to {in_bytes(min(set_limits))}/s to {in_bytes(max(set_limits))}/s. "
    for at_s in night.window_ends_s:
        text += f"The window closes at {datetime.fromtimestamp(at_s, zone):%H:%M}. "
    return text.strip()
