"""What guests suffered beside the backups of others: a guest's runs of one night put together; and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, time, timedelta, tzinfo
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.records.beside_history import PastBeside
from pvehook.records.beside_record import BesideBackup, BesideRecord
from pvehook.records.figures import severity_key, short_number
from pvehook.records.guest_summary import guest_number
from pvehook.report.trends import NAME_LIMIT
from pvehook.rules.stalls import SEVERITIES

SUFFERED: Final = ("slowed", "stalled", "locked-up")


class Beside(NamedTuple):
    """One guest in one night beside the backups of others."""

    runs: tuple[PastBeside, ...]
    """At least one, the oldest first."""
    records: tuple[BesideRecord, ...] = ()
    """Of these runs, where they were read and can be."""

    @property
    def vmid(self) -> int:
        return self.runs[-1].vmid

    @property
    def title(self) -> str:
        """`VM 104 db`, fit to be shown."""
        last = self.runs[-1]
        return f"{guest_number(last.vmtype, last.vmid)} {printable(last.name or '', NAME_LIMIT)}".rstrip()

    @property
    def severity(self) -> str:
        return max((run.severity for run in self.runs), key=_rank)

    @property
    def suffered(self) -> bool:
        return self.severity in SUFFERED

    @property
    def stalled_s(self) -> Measured[float]:
        return total([run.stalled_s for run in self.runs])

    @property
    def slowed_s(self) -> Measured[float]:
        return total([run.slowed_s for run in self.runs])

    @property
    def slowest(self) -> PastBeside:
        """The run with the highest p99."""
        return max(self.runs, key=lambda run: run.p99_ms if isinstance(run.p99_ms, float) else -1.0)

    @property
    def key(self) -> tuple[int, float, float]:
        """The worst is the highest."""
        return severity_key(self.severity, self.stalled_s, self.slowed_s)

    @property
    def backups(self) -> list[BesideBackup]:
        """Whose, the worst first; one for each guest. Empty without records."""
        found: dict[int, BesideBackup] = {}
        for each in (backup for record in self.records for backup in record.beside):
            other = found.get(each.vmid)
            found[each.vmid] = each if other is None else _both(each, other)
        return sorted(found.values(), key=lambda each: (each.stalled_s, each.slowed_s), reverse=True)

    @property
    def unknown(self) -> list[str]:
        """Why it is not known what it shares."""
        return list(dict.fromkeys(why for record in self.records for why in record.unknown))


def night_of(at_s: float, zone: tzinfo) -> tuple[float, float]:
    """The noon before this instant and the noon after it: a night is not cut at midnight."""
    at = datetime.fromtimestamp(at_s, zone)
    first = at.date() if at.hour >= 12 else at.date() - timedelta(days=1)
    began, ended = (datetime.combine(first + timedelta(days=days), time(12), zone) for days in (0, 1))
    return began.timestamp(), ended.timestamp()


def by_guest(runs: Iterable[PastBeside]) -> list[Beside]:
    """The guests of one night, the worst first."""
    found: dict[int, list[PastBeside]] = {}
    for run in runs:
        found.setdefault(run.vmid, []).append(run)
    return sorted(
        (Beside(tuple(each)) for each in found.values()), key=lambda each: (each.key, -each.vmid), reverse=True
    )


def by_night(runs: Iterable[PastBeside], zone: tzinfo) -> list[Beside]:
    """One guest's nights in which it suffered, the last first."""
    nights: dict[float, list[PastBeside]] = {}
    for run in runs:
        nights.setdefault(night_of(run.started_s, zone)[0], []).append(run)
    found = (Beside(tuple(nights[began_s])) for began_s in sorted(nights, reverse=True))
    return [each for each in found if each.suffered]


def with_records(beside: Beside, read: Callable[[int], Measured[BesideRecord]]) -> Beside:
    """The same with its records, each read by its row's id."""
    found = (read(run.id) for run in beside.runs)
    return beside._replace(records=tuple(each for each in found if not isinstance(each, (Absent, Broken))))


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else -1


def _both(one: BesideBackup, other: BesideBackup) -> BesideBackup:
    """Of two runs."""
    return one._replace(
        watched_s=one.watched_s + other.watched_s,
        stalled_s=one.stalled_s + other.stalled_s,
        slowed_s=one.slowed_s + other.slowed_s,
        slowed_backup_s=one.slowed_backup_s + other.slowed_backup_s,
    )


def total(figures: Sequence[Measured[float]]) -> Measured[float]:
    """Of at least one, as far as it is known: what is missing adds nothing to what was measured."""
    known = [each for each in figures if not isinstance(each, (Absent, Broken))]
    return sum(known) if known else next((each for each in figures if isinstance(each, Broken)), figures[0])


# In words


def whose(beside: Beside, form: str = "{} ({} s)") -> list[str]:
    """`VM 103 (15 s)` for each backup, by what it suffered most of; without its record only whose was the worst."""
    if not beside.records:
        worst = {run.worst_vmid: run.worst_vmtype for run in beside.runs if run.worst_vmid is not None}
        return [guest_number(vmtype, vmid) for vmid, vmtype in worst.items()]
    stalls = any(each.stalled_s for each in beside.backups)
    seconds = ((each, each.stalled_s if stalls else each.slowed_s) for each in beside.backups)
    return [
        form.format(guest_number(each.vmtype, each.vmid), short_number(some_s)) for each, some_s in seconds if some_s
    ]


def suffered_in_words(beside: Beside) -> str:
    """`stalled 17 s, slowed 40 s, p99 15 > 2405 ms`; what is missing or zero is left out."""
    parts = []
    for word, seconds in (("stalled", beside.stalled_s), ("slowed", beside.slowed_s)):
        if not isinstance(seconds, (Absent, Broken)) and seconds:
            parts.append(f"{word} {short_number(seconds)} s")
    before, during = beside.slowest.baseline_p99_ms, beside.slowest.p99_ms
    if not isinstance(during, (Absent, Broken)):
        was = "" if isinstance(before, (Absent, Broken)) else f"{short_number(before)} > "
        parts.append(f"p99 {was}{short_number(during)} ms")
    return ", ".join(parts) or beside.severity


def backup_in_words(each: BesideBackup) -> str:
    """`VM 103's backup: stalled 15 s, slowed 30 s; it was slowed for this guest for 34 s`."""
    seconds = (("stalled", each.stalled_s), ("slowed", each.slowed_s))
    text = ", ".join(f"{word} {short_number(some_s)} s" for word, some_s in seconds if some_s) or "nothing"
    if each.exposure != "shared":
        text += "; on other disks" if each.exposure == "elsewhere" else "; whether they share a disk is not known"
    if each.slowed_backup_s:
        text += f"; it was slowed for this guest for {short_number(each.slowed_backup_s)} s"
    return f"{guest_number(each.vmtype, each.vmid)}'s backup: {text}"
