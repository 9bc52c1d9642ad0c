"""One guest's night as characters: latency on a logarithmic scale against the line from before, and below it the
backup's rate, the governor's limit, stalls and the freeze.

      100 │      ▃▇█▆      ▂
       10 │┄┄┄▂▄▆█████▆▅▃▄▆█▅▃┄┄┄┄
        1 │██████████████████████▇
          └───────────────────────
           02:00:13       02:41:09
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Final

from pvehook.contract.measured import Absent, Broken
from pvehook.records.figures import in_bytes, short_number
from pvehook.records.stall_record import Point, SpeedPoint, StallRecord
from pvehook.report.terminal_style import TerminalStyle

ROWS: Final = 9
LEFT: Final = 9  # of the scale and the labels


def baseline_p99_ms(record: StallRecord) -> float | None:
    """The baseline of a backup's chart."""
    before = record.baseline
    if isinstance(before, (Absent, Broken)):
        return None
    return before.p99_ms if before.p99_ms is not None else before.write.p99_ms


def speeds_of(record: StallRecord) -> tuple[SpeedPoint, ...]:
    """What the governor set."""
    return record.governor.speeds if record.governor is not None else ()


def decades(values_ms: Sequence[float]) -> tuple[int, int]:
    """The powers of ten between which all of them lie; at least one decade."""
    low = math.floor(math.log10(min(values_ms)))
    return low, max(math.ceil(math.log10(max(values_ms))), low + 1)


def chart_lines(record: StallRecord, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """The chart of a record that has points."""
    width = style.columns - LEFT
    at_s = [(column + 0.5) / width * record.duration_s for column in range(width)]
    columns = [_point_at(record, moment_s) for moment_s in at_s]
    base_ms = baseline_p99_ms(record)
    seen_ms = [point.p99_ms for point in record.points if point.p99_ms]
    lines = ["p99 of the guest's disk requests, ms" + (f"; before: {short_number(base_ms)}" if base_ms else "")]
    if seen_ms:
        lines += _latency_rows(columns, base_ms, *decades([*seen_ms, base_ms or seen_ms[0]]), style)
    lines.append(f"{'└' if style.unicode else '+':>{LEFT}}" + ("─" if style.unicode else "-") * width)
    began, ended = (f"{datetime.fromtimestamp(at_s, zone):%H:%M:%S}" for at_s in (record.started_s, record.ended_s))
    lines.append(f"{'':>{LEFT}}{began}{ended:>{width - len(began)}}")
    rates = [point.backup_bytes / point.lasted_s if point is not None and point.lasted_s else None for point in columns]
    lines.append(_strip("backup", rates, style))
    scales = f"backup: up to {in_bytes(max((rate for rate in rates if rate), default=0.0))}/s"
    limits = [_limit_at(record, moment_s) for moment_s in at_s]
    if any(limits):
        lines.append(_strip("limit", limits, style))
        scales += f"; limit: up to {in_bytes(max(limit or 0.0 for limit in limits))}/s, blank for none"
    lines.append(_marks("stalled", [point is not None and point.stalled_s > 0 for point in columns], style))
    freeze = record.freeze
    if freeze is not None and freeze.at_s is not None and record.duration_s > 0:
        at = min(int(freeze.at_s / record.duration_s * width), width - 1)
        lines.append(_marks("frozen", [column == at for column in range(width)], style))
    lines.append(" " * LEFT + scales)
    return [line.rstrip() for line in lines]


def _latency_rows(
    columns: Sequence[Point | None], base_ms: float | None, low: int, high: int, style: TerminalStyle
) -> list[str]:
    rows = []
    per_row = (high - low) / ROWS
    labels = {round((decade - low) / per_row): short_number(10.0**decade) for decade in range(low, high)}
    for index in reversed(range(ROWS)):
        bottom = low + index * per_row
        is_base = base_ms is not None and bottom <= math.log10(base_ms) < bottom + per_row
        empty = ("┄" if style.unicode else "-") if is_base else " "
        filled = "".join(_cell(point, bottom, per_row, empty, style) for point in columns)
        rows.append(f"{labels.get(index, ''):>{LEFT - 2}} {'│' if style.unicode else '|'}{filled}")
    return rows


def _cell(point: Point | None, bottom: float, per_row: float, empty: str, style: TerminalStyle) -> str:
    height = (math.log10(point.p99_ms) - bottom) / per_row if point is not None and point.p99_ms else 0.0
    if height <= 0:
        return empty
    return style.bars[min(int(height * len(style.bars)), len(style.bars) - 1)] if style.unicode else "#"


def _point_at(record: StallRecord, at_s: float) -> Point | None:
    return next((point for point in record.points if point.at_s - point.lasted_s <= at_s <= point.at_s), None)


def _limit_at(record: StallRecord, at_s: float) -> int | None:
    """The governor's; None: there was none."""
    in_force = [speed.speed_bytes_per_s for speed in speeds_of(record) if speed.at_s <= at_s]
    return in_force[-1] or None if in_force else None


def _strip(label: str, values: Sequence[float | None], style: TerminalStyle) -> str:
    most = max((value for value in values if value), default=1.0)
    cells = [" " if value is None else style.bars[round(value / most * (len(style.bars) - 1))] for value in values]
    return f"{label:<{LEFT}}" + "".join(cells)


def _marks(label: str, marks: Sequence[bool], style: TerminalStyle) -> str:
    mark, none = ("█", "·") if style.unicode else ("!", ".")
    return f"{label:<{LEFT}}" + "".join(mark if each else none for each in marks)
