"""What each guest of the node suffers beside the backups of others, counted while they run.

It is small, however long the night: sums per backup, one histogram, and marks in time whose grain grows. As JSON it is
part of the run's recovery note, and the next daemon goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Literal, NamedTuple

from pvehook.contract.latency import Histogram, RequestCounters, our_boundaries_ns
from pvehook.contract.measured import Absent, Measured
from pvehook.records.beside_record import LOADS_KEPT, MARKS_KEPT, BesideBackup, BesideRecord, Mark
from pvehook.records.encoding import decode, encode
from pvehook.rules.latency import NS_PER_S, quantile_ms
from pvehook.rules.patients import Exposure
from pvehook.rules.stalls import (
    SLOWED_AFTER_S,
    SLOWED_FROM_S,
    STALLED_AFTER_S,
    Count,
    Severity,
    count_stall,
    count_wait,
)

SeenBy = Literal["requests", "block-devices", "pressure"]

NOTE_BYTES = 64 * 1024
"""Of the recovery note: guests that do not fit, those that suffered least, begin anew with the next daemon."""
GRAIN_S = 5.0
"""Of the marks, at first."""

_BOUNDARIES_NS = our_boundaries_ns()


class Beside(NamedTuple):
    """Whose backup it is, and whether the guest shares its disks."""

    vmid: int
    vmtype: str | None
    exposure: Exposure


@dataclass(slots=True, kw_only=True)
class Suffering:
    """One guest's, in one run. Times `at_s` are on the monotonic clock, which all daemons of one boot share."""

    vmid: int
    name: str | None
    vmtype: str
    started_s: float
    """Seconds since the epoch."""
    started_at_s: float
    seen_by: SeenBy = "requests"
    unknown: list[str] = field(default_factory=list)
    baseline_p99_ms: float | None = None
    watched_s: float = 0.0
    stalled: Count = field(default_factory=lambda: Count(STALLED_AFTER_S))
    slowed: Count = field(default_factory=lambda: Count(SLOWED_AFTER_S))
    bins: list[int] = field(default_factory=list)
    """The histogram of its requests, with our boundaries; empty: there is none."""
    parts: dict[str, BesideBackup] = field(default_factory=dict)
    """By the number of the guest in backup."""
    grain_s: float = GRAIN_S
    marks: dict[str, list[float]] = field(default_factory=dict)
    """Stalled and slowed seconds, by the how-manieth piece of `grain_s` since the start."""

    @property
    def has_suffered(self) -> bool:
        return self.stalled.total_s > 0 or self.slowed.total_s >= SLOWED_FROM_S

    def take_requests(
        self, beside: Beside, at_s: float, since_s: float, completed: Mapping[str, RequestCounters]
    ) -> None:
        """What its requests were between two looks, by QEMU's counters."""
        self.seen_by = "requests"
        for each in completed.values():
            histogram = each.histogram
            if each.operations and histogram is not None and histogram.boundaries_ns == _BOUNDARIES_NS:
                self.bins = [*map(add, self.bins or [0] * len(histogram.counts), histogram.counts)]
        stalled = count_stall(self.stalled, at_s, since_s, completed)
        slowed = count_stall(self.slowed, at_s, since_s, completed)
        if not any(each.histogram for each in completed.values()):  # QEMU keeps none: one took as long as their mean
            least_s = max((mean_s(each) for each in completed.values()), default=0.0)
            stalled = count_wait(stalled, at_s, since_s, least_s)
            slowed = count_wait(slowed, at_s, since_s, least_s)
        self._count(beside, at_s, since_s, stalled, slowed)

    def take_wait(self, beside: Beside, at_s: float, since_s: float, slowest_s: float) -> None:
        """The same by counters of its block devices: one of its requests took at least so long."""
        if not self.bins:
            self.seen_by = "block-devices"
        stalled = count_wait(self.stalled, at_s, since_s, slowest_s)
        self._count(beside, at_s, since_s, stalled, count_wait(self.slowed, at_s, since_s, slowest_s))

    def take_pressure(self, beside: Beside, at_s: float, since_s: float, full_s: float, some_s: float) -> None:
        """A container: for so long all and some of it waited for a disk, more than before."""
        self.seen_by = "pressure"
        stalled = self.stalled._replace(total_s=self.stalled.total_s + full_s)
        self._count(beside, at_s, since_s, stalled, self.slowed._replace(total_s=self.slowed.total_s + some_s))

    def take_slowing(self, beside: Beside, seconds: float) -> None:
        """For so long that backup was slowed for it."""
        part = self._part(beside)
        self.parts[str(beside.vmid)] = part._replace(slowed_backup_s=part.slowed_backup_s + seconds)

    def _count(self, beside: Beside, at_s: float, since_s: float, stalled: Count, slowed: Count) -> None:
        stalled_s, slowed_s = stalled.total_s - self.stalled.total_s, slowed.total_s - self.slowed.total_s
        self.stalled, self.slowed = stalled, slowed
        watched_s = at_s - since_s
        self.watched_s += watched_s
        part = self._part(beside)
        self.parts[str(beside.vmid)] = part._replace(
            exposure=beside.exposure,
            watched_s=part.watched_s + watched_s,
            stalled_s=part.stalled_s + stalled_s,
            slowed_s=part.slowed_s + slowed_s,
        )
        if stalled_s > 0 or slowed_s > 0:
            self._mark(at_s - self.started_at_s, stalled_s, slowed_s)

    def _part(self, beside: Beside) -> BesideBackup:
        part = self.parts.get(str(beside.vmid))
        if part is None:  # of the backups before, those stay beside which it suffered, and not all of a long night's
            self.parts = {str(each.vmid): each for each in self._worst_parts()}
            part = BesideBackup(beside.vmid, beside.vmtype, beside.exposure, 0, 0, 0)
        return part

    def _worst_parts(self) -> list[BesideBackup]:
        parts = [each for each in self.parts.values() if each.stalled_s or each.slowed_s or each.slowed_backup_s]
        return sorted(parts, key=lambda each: (each.stalled_s, each.slowed_s), reverse=True)[:LOADS_KEPT]

    def _mark(self, at_s: float, stalled_s: float, slowed_s: float) -> None:
        """Backwards from `at_s`, as it was: a request of 12 s is seen at its end."""
        piece = max(int(at_s // self.grain_s), 0)
        room_s = max(at_s - piece * self.grain_s, 0.0)
        while stalled_s > 0 or slowed_s > 0:
            here = self.marks.setdefault(str(piece), [0.0, 0.0])
            for index, seconds in enumerate((stalled_s, slowed_s)):
                here[index] += seconds if piece == 0 else min(seconds, room_s)
            if piece == 0:
                break
            stalled_s, slowed_s = max(stalled_s - room_s, 0.0), max(slowed_s - room_s, 0.0)
            piece, room_s = piece - 1, self.grain_s
        while len(self.marks) > MARKS_KEPT:
            self.grain_s *= 2
            finer, self.marks = self.marks, {}
            for number, seconds_of in finer.items():
                here = self.marks.setdefault(str(int(number) // 2), [0.0, 0.0])
                here[:] = map(sum, zip(here, seconds_of, strict=True))

    def record(self, node: str, job: str, ended_s: float) -> BesideRecord:
        """As it stays."""
        p99_ms = quantile_ms(Histogram(_BOUNDARIES_NS, tuple(self.bins)), 0.99) if self.bins else None
        no_p99 = "it made no request" if self.bins else "its requests were not seen one by one"
        return BesideRecord(
            node=node,
            job=job,
            vmid=self.vmid,
            name=self.name,
            vmtype=self.vmtype,
            started_s=self.started_s,
            ended_s=max(ended_s, self.started_s),
            watched_s=self.watched_s,
            severity=self.severity,
            stalled_s=self.stalled.total_s,
            slowed_s=self.slowed.total_s,
            p99_ms=_measured(p99_ms, no_p99),
            baseline_p99_ms=_measured(self.baseline_p99_ms, "it was not seen for long enough before the backups"),
            seen_by=self.seen_by,
            unknown=tuple(self.unknown),
            beside=tuple(self._worst_parts()),
            marks=tuple(
                Mark((int(piece) + 1) * self.grain_s, self.grain_s, *seconds)
                for piece, seconds in sorted(self.marks.items(), key=lambda mark: int(mark[0]))
            ),
        )

    @property
    def severity(self) -> Severity:
        """By the limits of a guest's own backup."""
        if self.stalled.total_s >= STALLED_AFTER_S:
            return "stalled"
        return "slowed" if self.slowed.total_s >= SLOWED_FROM_S else "none"


class Sufferings:
    """Of all guests of one run. Used by the loop that counts, and by the phases that make records of it."""

    def __init__(self, note: str) -> None:
        """`note`: what `note` gave to the recovery note of a daemon before; of another version it is nothing."""
        self._lock = threading.Lock()
        self._by_vmid: dict[int, Suffering] = {}
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            self._by_vmid = {each.vmid: each for each in decode(list[Suffering], json.loads(note or "[]"))}

    @contextlib.contextmanager
    def counted(self, vmid: int, new: Callable[[], Suffering]) -> Iterator[Suffering]:
        """One guest's, to be changed within the block."""
        with self._lock:
            if vmid not in self._by_vmid:
                self._by_vmid[vmid] = new()
            yield self._by_vmid[vmid]

    def totals_s(self, vmid: int) -> tuple[float, float]:
        """Stalled and slowed seconds so far."""
        with self._lock:
            found = self._by_vmid.get(vmid)
            return (found.stalled.total_s, found.slowed.total_s) if found is not None else (0.0, 0.0)

    def records(self, job: str, ended_s: float) -> list[BesideRecord]:
        """Of those that suffered, the worst first."""
        node = os.uname().nodename
        with self._lock:
            return [each.record(node, job, ended_s) for each in self._worst_first() if each.has_suffered]

    def note(self) -> str:
        """JSON for the recovery note, at most NOTE_BYTES."""
        texts: list[str] = []
        room = NOTE_BYTES
        with self._lock:
            for each in self._worst_first():
                text = json.dumps(encode(each))
                room -= len(text) + 2
                if not each.slowed.total_s or room < 0:
                    break
                texts.append(text)
        return f"[{', '.join(texts)}]" if texts else ""

    def _worst_first(self) -> list[Suffering]:
        suffered = self._by_vmid.values()
        return sorted(suffered, key=lambda each: (each.stalled.total_s, each.slowed.total_s), reverse=True)


def mean_s(completed: RequestCounters) -> float:
    """What these requests took, in seconds; 0 where there are none."""
    return completed.total_time_ns / completed.operations / NS_PER_S if completed.operations else 0.0


def _measured(value: float | None, why: str) -> Measured[float]:
    return value if value is not None else Absent(why)
