"""The node's night: who was backed up when, and who suffered when, in its own backup and beside the backups of others.

rows      a guest each: its backups, and the pieces of time in which it suffered; in order of their backups' start,
          then those that were not backed up, the worst first
rates     what all backups read, and the governor's limit, for each column of the picture
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Measured
from pvehook.contract.text import printable
from pvehook.records.beside_record import BesideRecord
from pvehook.records.figures import severity_key
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import PastBackup
from pvehook.records.stall_record import Chart
from pvehook.report.beside import SUFFERED, Beside, total
from pvehook.report.trends import NAME_LIMIT
from pvehook.rules.stalls import SLOWED_AFTER_S

ROWS_MOST: Final = 60
LONGEST_S: Final = 2 * 86400
"""What is later than this after the first backup's start was dated by a wrong clock."""


class Suffered(NamedTuple):
    """A piece of time in which a guest suffered, in seconds since the epoch."""

    from_s: float
    to_s: float
    stalled: bool
    """Else it was slowed."""


class Row(NamedTuple):
    """One guest's."""

    vmid: int
    title: str
    backups: tuple[PastBackup, ...]
    """Its own; none: it was in no job, or refused."""
    charts: tuple[Chart, ...]
    """One for each of them."""
    beside: Beside | None
    """None: it did not suffer beside others, or was not watched: only those who suffered are on record."""
    marks: tuple[Suffered, ...]

    @property
    def stalled_s(self) -> Measured[float]:
        """In its own backups."""
        return total([each.stalled_s for each in self.backups]) if self.backups else Absent("it was not backed up")

    @property
    def slowed_s(self) -> Measured[float]:
        """In its own backups."""
        return total([each.slowed_s for each in self.backups]) if self.backups else Absent("it was not backed up")

    @property
    def key(self) -> tuple[int, float, float]:
        """In its own backups or beside others': the worst is the highest."""
        return _badness(self.backups, self.beside)

    @property
    def suffered(self) -> bool:
        """In its own backup or beside others'."""
        in_own = any(each.severity in SUFFERED for each in self.backups)
        return in_own or (self.beside is not None and self.beside.suffered)


class NodeNight(NamedTuple):
    """See the top of this file. Times in seconds since the epoch."""

    began_s: float
    ended_s: float
    rows: tuple[Row, ...]
    left_out: int
    """Guests with better nights than any of these."""
    guests: int
    """That were backed up, those left out among them."""
    window_ends_s: tuple[float, ...]
    """When the window closed, or was to close."""

    @property
    def duration_s(self) -> float:
        return max(self.ended_s - self.began_s, 1.0)


def node_night(
    backups: Sequence[PastBackup],
    beside: Sequence[Beside],
    chart_of: Callable[[PastBackup], Chart],
    records_of: Callable[[Beside], Beside],
    window_ends_s: Iterable[float] = (),
) -> NodeNight | None:
    """Of the backups of one night and of those who suffered beside them; None where there is neither. Charts and
    records are read for the rows that are shown only."""
    own: dict[int, list[PastBackup]] = {}
    for backup in sorted(backups, key=lambda each: each.started_s):
        own.setdefault(backup.vmid, []).append(backup)
    others = {each.vmid: each for each in beside if each.vmid in own or each.suffered}
    vmids = sorted(own.keys() | others.keys(), key=lambda vmid: (_badness(own.get(vmid, ()), others.get(vmid)), -vmid))
    if not vmids:
        return None
    shown = []
    for vmid in reversed(vmids[-ROWS_MOST:]):
        found = others.get(vmid)
        read = records_of(found) if found is not None and found.suffered else found
        mine = own.get(vmid, [])
        shown.append(_row(vmid, mine, tuple(map(chart_of, mine)), read))
    shown.sort(key=lambda row: (not row.backups, row.backups[0].started_s if row.backups else 0.0))
    times_s = [at_s for each in backups for at_s in (each.started_s, each.started_s + each.duration_s)]
    times_s += [at_s for row in shown for mark in row.marks for at_s in (mark.from_s, mark.to_s)]
    if not times_s:
        times_s = [at_s for each in others.values() for run in each.runs for at_s in (run.started_s, run.ended_s)]
    began_s = min(times_s)
    ended_s = max(at_s for at_s in times_s if at_s <= began_s + LONGEST_S)
    ends_s = sorted(at_s for at_s in set(window_ends_s) if began_s < at_s < ended_s + (ended_s - began_s) / 4)
    ended_s = max(ended_s, *ends_s) if ends_s else ended_s
    return NodeNight(began_s, ended_s, tuple(shown), len(vmids) - len(shown), len(own), tuple(ends_s))


def _badness(backups: Sequence[PastBackup], beside: Beside | None) -> tuple[int, float, float]:
    keys = [severity_key(each.severity, each.stalled_s, each.slowed_s) for each in backups]
    return max([*keys, beside.key] if beside is not None else keys)


def _row(vmid: int, backups: Sequence[PastBackup], charts: tuple[Chart, ...], beside: Beside | None) -> Row:
    marks = [mark for backup, chart in zip(backups, charts, strict=True) for mark in _own(backup.started_s, chart)]
    if backups:
        last = backups[-1]
        title = f"{guest_number(last.vmtype, vmid)} {printable(last.name or '', NAME_LIMIT)}".rstrip()
    if beside is not None:
        title = beside.title
        marks += (mark for record in beside.records for mark in _beside(record))
    return Row(vmid, title, tuple(backups), charts, beside, tuple(marks))


def _own(started_s: float, chart: Chart) -> Iterable[Suffered]:
    for point in chart.points:
        if point.stalled_s > 0 or (point.p99_ms or 0.0) > SLOWED_AFTER_S * 1000:
            to_s = started_s + point.at_s
            yield Suffered(to_s - point.lasted_s, to_s, point.stalled_s > 0)


def _beside(record: BesideRecord) -> Iterable[Suffered]:
    """The last piece may reach beyond the run."""
    for mark in record.marks:
        if mark.stalled_s > 0 or mark.slowed_s > 0:
            to_s = record.started_s + mark.at_s
            yield Suffered(to_s - mark.lasted_s, min(to_s, record.ended_s), mark.stalled_s > 0)


# What was read, and the governor's limit


def rates(night: NodeNight, columns: int) -> list[float]:
    """Bytes per second that the backups of the rows read together, for each of so many equal parts of the night."""
    part_s = night.duration_s / columns
    read = [0.0] * columns
    for started_s, chart in _charts(night):
        for point in chart.points:
            to_s = started_s + point.at_s - night.began_s
            for column, seconds in _parts(to_s - point.lasted_s, to_s, part_s, columns):
                read[column] += point.backup_bytes * seconds / max(point.lasted_s, 1e-3)
    return [in_part / part_s for in_part in read]


def limits(night: NodeNight, columns: int) -> list[int | None]:
    """The governor's lowest limit in each part, in bytes per second; None: there was none."""
    part_s = night.duration_s / columns
    lowest: list[int | None] = [None] * columns
    for (started_s, chart), duration_s in zip(_charts(night), _durations_s(night), strict=True):
        ends_s = [each.at_s for each in chart.speeds[1:]] + [duration_s]
        for speed, end_s in zip(chart.speeds, ends_s, strict=False):
            from_s = started_s - night.began_s
            for column, _ in _parts(from_s + speed.at_s, from_s + end_s, part_s, columns):
                limit = speed.speed_bytes_per_s
                if limit:
                    lowest[column] = min(limit, lowest[column] or limit)
    return lowest


def _charts(night: NodeNight) -> list[tuple[float, Chart]]:
    """With when each began."""
    return [
        (backup.started_s, chart) for row in night.rows for backup, chart in zip(row.backups, row.charts, strict=True)
    ]


def _durations_s(night: NodeNight) -> list[float]:
    return [backup.duration_s for row in night.rows for backup in row.backups]


def _parts(from_s: float, to_s: float, part_s: float, columns: int) -> Iterable[tuple[int, float]]:
    """The columns that this time overlaps, and for how long."""
    first, last = (min(max(int(at_s / part_s), 0), columns - 1) for at_s in (from_s, to_s))
    for column in range(first, last + 1):
        seconds = min(to_s, (column + 1) * part_s) - max(from_s, column * part_s)
        if seconds > 0:
            yield column, seconds
