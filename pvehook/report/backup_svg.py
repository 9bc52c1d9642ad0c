"""One guest's night as SVG: latency on a logarithmic scale against the line from before, stalls, the freeze and kernel
lines on a strip of their own, the backup's rate and the governor's limit; and the same in words.

Drawn for three widths: text in an SVG shrinks and grows with it, so a phone gets a narrower one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from html import escape
from itertools import groupby
from typing import Final, NamedTuple

from pvehook.contract.text import printable
from pvehook.records.figures import in_bytes, short_number
from pvehook.records.stall_record import Point, StallRecord
from pvehook.report.backup_chart import baseline_p99_ms, decades, speeds_of
from pvehook.report.backup_words import kernel_lines
from pvehook.report.time_axis import round_times

WIDE, MIDDLE, NARROW = 960, 600, 330
"""In CSS pixels: about what the page is on a desk, on a tablet and on a phone (page_style.py)."""

TOP, LATENCY_HEIGHT, STRIP_GAP, STRIP_HEIGHT, RATE_GAP, RATE_HEIGHT = 26, 170, 10, 10, 34, 70
LEFT, RIGHT = 50, 8
MIB: Final = 1 << 20


class _Frame(NamedTuple):
    """Where things are."""

    left: float
    right: float
    duration_s: float
    low: int
    high: int
    """Decades of milliseconds."""
    most_bytes_per_s: float

    def x(self, at_s: float) -> float:
        part = min(max(at_s / self.duration_s, 0.0), 1.0)
        return self.left + part * (self.right - self.left)

    def of(self, point: Point) -> tuple[float, float]:
        """The left and the right of a piece."""
        return self.x(point.at_s - point.lasted_s), self.x(point.at_s)

    def latency_y(self, milliseconds: float) -> float:
        part = (math.log10(max(milliseconds, 10.0**self.low)) - self.low) / (self.high - self.low)
        return TOP + (1 - min(part, 1.0)) * LATENCY_HEIGHT

    def rate_y(self, bytes_per_s: float) -> float:
        return RATE_TOP + (1 - min(bytes_per_s / self.most_bytes_per_s, 1.0)) * RATE_HEIGHT


STRIP_TOP: Final = TOP + LATENCY_HEIGHT + STRIP_GAP
RATE_TOP: Final = STRIP_TOP + STRIP_HEIGHT + RATE_GAP
HEIGHT: Final = RATE_TOP + RATE_HEIGHT + 22


def backup_svg(record: StallRecord, zone: tzinfo, identifier: str) -> str:
    """The drawings of a record that has points; `identifier` is a word that no other chart of the page has."""
    words = escape(backup_summary(record, zone))
    return "".join(
        f'<svg class="chart {name}" viewBox="0 0 {width} {HEIGHT}" role="img" aria-labelledby="{identifier}-{name}">'
        f'<desc id="{identifier}-{name}">{words}</desc>{"".join(_drawing(record, zone, width))}</svg>'
        for name, width in (("wide", WIDE), ("middle", MIDDLE), ("narrow", NARROW))
    )


def _drawing(record: StallRecord, zone: tzinfo, width: int) -> Iterator[str]:
    frame = _frame(record, width)
    yield from (*_axes(record, frame, zone, width), *_latency(record, frame), *_strip(record, frame, zone))
    yield from (*_rate(record, frame), *_freeze(record, frame))
    if width == WIDE:
        yield from _hits(record, frame, zone)


def _frame(record: StallRecord, width: int) -> _Frame:
    speeds = speeds_of(record)
    seen_ms = [point.p99_ms for point in record.points]
    shown_ms = [*seen_ms, baseline_p99_ms(record), *(each.target_ms for each in speeds)]
    low, high = decades([each for each in shown_ms if each] or [1.0])
    most = max(*map(_rate_of, record.points), *(float(speed.speed_bytes_per_s) for speed in speeds), 1.0 * MIB)
    duration_s = max(record.duration_s, record.points[-1].at_s, 1.0)
    return _Frame(LEFT, width - RIGHT, duration_s, low, high, round_up(most / MIB) * MIB)


def _rate_of(point: Point) -> float:
    return point.backup_bytes / point.lasted_s if point.lasted_s else 0.0


def round_up(number: float) -> float:
    """The top of a scale; half of it is a round number too."""
    size = 10.0 ** math.floor(math.log10(number))
    return next(size * step for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if size * step >= number)


def _axes(record: StallRecord, frame: _Frame, zone: tzinfo, width: int) -> Iterator[str]:
    yield f'<text class="title" x="{frame.left}" y="14">p99 of the guest’s disk requests</text>'
    base_ms = baseline_p99_ms(record)
    if base_ms:
        yield f'<text x="{frame.right}" y="14" text-anchor="end">before: {short_number(base_ms)} ms</text>'
    step = math.ceil((frame.high - frame.low) / 5)
    for decade in range(frame.low, frame.high + 1, step):
        y = frame.latency_y(10.0**decade)
        yield f'<path class="grid" d="M{frame.left} {y:.1f}H{frame.right}"/>'
        label = f"{10 ** (decade - 3)} s" if decade >= 3 else f"{10.0**decade:g} ms"
        yield f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    yield f'<text class="title" x="{frame.left}" y="{RATE_TOP - 10}">Backup rate, MiB/s</text>'
    for part in (0.0, 0.5, 1.0):
        y, rate = RATE_TOP + (1 - part) * RATE_HEIGHT, part * frame.most_bytes_per_s / MIB
        yield f'<path class="{"axis" if not part else "grid"}" d="M{frame.left} {y:.1f}H{frame.right}"/>'
        yield f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(rate)}</text>'
    for at_s, label in _times(record, frame, zone, most=width // 90 + 1):
        x = frame.x(at_s)
        upper, lower = f"M{x:.1f} {TOP}v{LATENCY_HEIGHT}", f"M{x:.1f} {RATE_TOP}v{RATE_HEIGHT}"
        yield f'<path class="grid" d="{upper}{lower}"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'


def _times(record: StallRecord, frame: _Frame, zone: tzinfo, most: int) -> Iterator[tuple[float, str]]:
    """Those whose labels do not stick out."""
    for at_s, label in round_times(record.started_s, frame.duration_s, zone, most):
        edge = 14 if len(label) == len("02:30") else 22
        if frame.left + edge - 10 <= frame.x(at_s) <= frame.right - edge + RIGHT:
            yield at_s, label


def _latency(record: StallRecord, frame: _Frame) -> Iterator[str]:
    stalled = [frame.of(point) for point in record.points if point.stalled_s > 0]
    bands = "".join(f"M{start:.1f} {TOP}H{end:.1f}v{LATENCY_HEIGHT}H{start:.1f}z" for start, end in stalled)
    if bands:
        yield f'<path class="band" d="{bands}"/>'
    floor = TOP + LATENCY_HEIGHT
    for has_request, piece in groupby(record.points, key=lambda point: bool(point.p99_ms)):
        if not has_request:
            continue  # the line is broken where the guest made none
        run = list(piece)
        steps = "".join(f"V{frame.latency_y(point.p99_ms or 0.0):.1f}H{frame.x(point.at_s):.1f}" for point in run)
        start = f"M{frame.of(run[0])[0]:.1f} "
        yield f'<path class="under" d="{start}{floor}{steps}V{floor}z"/>'
        yield f'<path class="latency" d="{start}{frame.latency_y(run[0].p99_ms or 0.0):.1f}{steps}"/>'
    base_ms = baseline_p99_ms(record)
    if base_ms:
        y = frame.latency_y(base_ms)
        yield f'<path class="before" d="M{frame.left} {y:.1f}H{frame.right}"/>'
    targets = [(speed.at_s, frame.latency_y(speed.target_ms)) for speed in speeds_of(record)]
    if targets:
        yield f'<path class="target" d="{_steps(targets, frame)}"/>'


def _steps(steps: Sequence[tuple[float, float | None]], frame: _Frame) -> str:
    """A step line: each height lasts until the next; None is a gap."""
    ends_s = [at_s for at_s, _ in steps[1:]] + [frame.duration_s]
    pieces: list[str] = []
    for (at_s, y), end_s in zip(steps, ends_s, strict=True):
        if y is not None:
            joined = pieces and pieces[-1].endswith(f"H{frame.x(at_s):.1f}")
            pieces.append((f"V{y:.1f}" if joined else f"M{frame.x(at_s):.1f} {y:.1f}") + f"H{frame.x(end_s):.1f}")
    return "".join(pieces)


def _strip(record: StallRecord, frame: _Frame, zone: tzinfo) -> Iterator[str]:
    """Stalls, the stronger the more of a piece was stalled; kernel lines above them."""
    yield f'<path class="track" d="M{frame.left} {STRIP_TOP}H{frame.right}v{STRIP_HEIGHT}H{frame.left}z"/>'
    yield f'<text x="{frame.left - 6}" y="{STRIP_TOP + 9}" text-anchor="end">stalls</text>'
    for point in record.points:
        if point.stalled_s > 0:
            x, end = frame.of(point)
            part = min(max(point.stalled_s / max(point.lasted_s, 1e-3), 0.5), 1.0)
            size = f'x="{x:.1f}" y="{STRIP_TOP}" width="{max(end - x, 1):.1f}" height="{STRIP_HEIGHT}"'
            yield f'<rect class="stall" {size} opacity="{part:.2f}"/>'
    for whose, events in kernel_lines(record):
        for event in events:
            at_s = event.at_s - record.started_s
            if 0 <= at_s <= frame.duration_s:
                x, y = frame.x(at_s), STRIP_TOP + STRIP_HEIGHT + 10
                said = f"{datetime.fromtimestamp(event.at_s, zone):%H:%M:%S} {whose}: {printable(event.kind)}"
                yield f'<path class="kernel" d="M{x - 5:.1f} {y}h10l-5 -9z"><title>{escape(said)}</title></path>'


def _rate(record: StallRecord, frame: _Frame) -> Iterator[str]:
    floor = RATE_TOP + RATE_HEIGHT
    first = record.points[0]
    steps = "".join(f"V{frame.rate_y(_rate_of(point)):.1f}H{frame.x(point.at_s):.1f}" for point in record.points)
    yield f'<path class="rate" d="M{frame.of(first)[0]:.1f} {floor}{steps}V{floor}z"/>'
    set_bytes_per_s = [(speed.at_s, speed.speed_bytes_per_s) for speed in speeds_of(record)]
    if set_bytes_per_s:
        limits = [(at_s, frame.rate_y(speed) if speed else None) for at_s, speed in set_bytes_per_s]
        yield f'<path class="limit" d="{_steps(limits, frame)}"/>'


def _freeze(record: StallRecord, frame: _Frame) -> Iterator[str]:
    freeze = record.freeze
    if freeze is None or freeze.at_s is None or freeze.frozen_ms is None:
        return
    x = frame.x(freeze.at_s)
    yield f'<path class="freeze" d="M{x:.1f} {TOP}V{STRIP_TOP + STRIP_HEIGHT}"/>'
    anchor, shift = ("start", 4) if x < frame.right - 100 else ("end", -4)
    place = f'x="{x + shift:.1f}" y="{TOP + 10}" text-anchor="{anchor}"'
    yield f'<text class="freeze" {place}>frozen {freeze.frozen_ms} ms</text>'


def _hits(record: StallRecord, frame: _Frame, zone: tzinfo) -> Iterator[str]:
    """The tooltip of each piece of the chart."""
    for point in record.points:
        x, end = frame.of(point)
        at = datetime.fromtimestamp(record.started_s + point.at_s - point.lasted_s, zone)
        p99 = "no request" if point.p99_ms is None else f"{short_number(point.p99_ms)} ms"
        said = f"{at:%H:%M:%S} p99 {p99}, stalled {short_number(point.stalled_s)} s, "
        said += f"backup {in_bytes(_rate_of(point))}/s"
        size = f'x="{x:.1f}" y="{TOP}" width="{max(end - x, 0.5):.1f}" height="{RATE_TOP + RATE_HEIGHT - TOP}"'
        yield f'<rect class="hit" {size}><title>{said}</title></rect>'


def backup_summary(record: StallRecord, zone: tzinfo) -> str:
    """What the chart shows, in words."""

    def clock(at_s: float) -> str:
        return f"{datetime.fromtimestamp(record.started_s + at_s, zone):%H:%M:%S}"

    seen = [(point.p99_ms, point.at_s) for point in record.points if point.p99_ms]
    text = f"Chart of the night, {clock(0.0)} to {clock(record.duration_s)}. "
    if seen:
        (highest_ms, at_s), median_ms = max(seen), statistics.median(p99_ms for p99_ms, _ in seen)
        text += f"p99 of the guest's disk requests: median {short_number(median_ms)} ms, highest "
        text += f"{short_number(highest_ms)} ms at {clock(at_s)}. "
    base_ms = baseline_p99_ms(record)
    if base_ms:
        text += f"Before the backup: {short_number(base_ms)} ms. "
    stalled = [point for point in record.points if point.stalled_s > 0]
    if stalled:
        began, ended = clock(stalled[0].at_s - stalled[0].lasted_s), clock(stalled[-1].at_s)
        seconds = short_number(sum(point.stalled_s for point in stalled))
        text += f"Stalled for {seconds} s in all, between {began} and {ended}. "
    else:
        text += "No stall. "
    rates = [_rate_of(point) for point in record.points]
    text += f"Backup rate: median {in_bytes(statistics.median(rates))}/s, lowest {in_bytes(min(rates))}/s. "
    if record.freeze is not None and record.freeze.at_s is not None and record.freeze.frozen_ms is not None:
        text += f"Frozen for {record.freeze.frozen_ms} ms at {clock(record.freeze.at_s)}. "
    speeds = speeds_of(record)
    limits = [speed.speed_bytes_per_s for speed in speeds if speed.speed_bytes_per_s]
    if limits:
        text += f"The governor limited the backup to {in_bytes(min(limits))}/s to {in_bytes(max(limits))}/s from "
        text += f"{clock(speeds[0].at_s)} on. "
    return text.strip()
