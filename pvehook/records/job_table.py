"""The table of a whole run, at `job-end`: overdue guests first, then the worst. 80 columns of plain ASCII, because
Proxmox mails it; only a command that is to be copied may be longer.

pvehook: 1 guest OVERDUE for a backup:
VM 104 mail: last good backup 3d03h ago, Fri 2026-11-20 02:05; refused 3 times: at
  05:12 the backup window was closed (outside 02:00-05:00)
  to back it up now: pvehook allow --vmid 104 --for 4h --reason "no backup since 2026-11-20" && vzdump 104
pvehook: 4 guests, worst first; write p99 in ms, before > during the backup
guest             backup       took  stalled   write p99   idle  cause
VM 104 mail       refused         -        -           -      -  OVERDUE
VM 103 db         ok           1h04    12.3s    4.1>1310    6/6  slow target
VM 120 shop       neighbour       -       4s      15>980  beside VM 103's backup
VM 101 web        ok          12m04       0s      24>310    6/6  -
VM 103 db stalled: slow target: each first write of the guest waits for the
  backup's copy (p99 of reads 2.1 ms (1810), of writes 1310 ms)
VM 120 shop stalled beside the backups of VM 103 (4.1 s) and VM 101 (0.2 s); a
  backup was slowed for it for 31 s
idle priority: compressor only, dump honoured: 103, 101
neighbour: suffered beside others' backups; p99 of all its requests
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from pvehook.contract.measured import Absent, Measured
from pvehook.contract.text import counted, printable
from pvehook.records.beside_record import BesideRecord
from pvehook.records.beside_summary import backups_in_words, slowed_in_words, suffered
from pvehook.records.figures import (
    ABSENT_MARK,
    BROKEN_MARK,
    before_and_during,
    beside_figures,
    causes_in_short,
    figures,
    marked,
    severity_key,
    short_duration,
    short_number,
)
from pvehook.records.guest_record import GuestRecord, consistency_in_words
from pvehook.records.guest_summary import guest_number, idle_counts
from pvehook.records.stall_record import StallRecord
from pvehook.rules.stalls import lockups_of

WIDTH = 80
NEIGHBOURS_SHOWN: Final = 10
"""Rows of guests that suffered beside others' backups: the table is mailed."""
_ROW = "{guest:<17.17} {result:<11.11} {took:>5} {stalled:>8} {p99:>11} {idle:>6}  {cause}"
_NEIGHBOUR_ROW = "{guest:<17.17} {result:<11.11} {took:>5} {stalled:>8} {p99:>11}  {cause}"
"""A neighbour has no backup whose threads could be idle, so its cause may be longer."""
_NEIGHBOUR_CAUSE = 22
OVERDUE_SHOWN: Final = 10
WAYS_SHOWN: Final = 2
Told: TypeAlias = tuple[GuestRecord, StallRecord | None]
"""A guest's backup, and what it suffered; None if it was not observed."""


class OverdueGuest(NamedTuple):
    """A guest without the backups that its jobs promise."""

    vmid: int
    title: str
    last_good: str
    """`5d03h ago, Thu 2026-11-19 02:40`."""
    cause: str
    ways_out: tuple[str, ...]
    """`what for: command`."""


def job_table(
    guests: Iterable[Told], beside: Sequence[BesideRecord], overdue: Sequence[OverdueGuest] = ()
) -> list[str]:
    """First the overdue guests, whether or not they are in this run. Then a line for each guest, and why it stalled;
    none for a run that came to no guest.

    `beside` is what guests suffered in this run beside the backups of others: the worst of them have a row for that.
    `idle` is threads read back as idle, of those that were seen.
    """
    told = list(guests)
    if not told:
        return _overdue(overdue)
    late = {each.vmid for each in overdue}
    neighbours = sorted(filter(suffered, beside), key=_neighbours_goodness)
    shown = neighbours[:NEIGHBOURS_SHOWN]
    rows: list[tuple[tuple[float, ...], str, list[str]]] = [
        *((_goodness(each, late), _row(*each, each[0].vmid in late), _why(*each)) for each in told),
        *((_neighbours_goodness(each), _neighbours_row(each), _neighbours_why(each)) for each in shown),
    ]
    rows.sort(key=lambda row: row[0])
    title = f"pvehook: {counted(len(told), 'guest')}, worst first; write p99 in ms, before > during the backup"
    columns = {"guest": "guest", "result": "backup", "took": "took", "stalled": "stalled"}
    figures_in = [row for _, row, _ in rows]
    lines = [title, _ROW.format(**columns, p99="write p99", idle="idle", cause="cause"), *figures_in]
    if more := len(neighbours) - len(shown):
        lines.append(f"and {more} more guest{'s' if more > 1 else ''} suffered beside others' backups")
    lines += [line for _, _, why in rows for line in why]
    begun = [guest for guest, _ in sorted(told, key=lambda each: _goodness(each, late)) if guest.result != "refused"]
    lines += _by_text("freeze", ((guest.vmid, _consistency(guest)) for guest in begun))
    lines += _by_text("idle priority", ((guest.vmid, guest.effect_in_short) for guest in begun))
    if shown:
        lines.append("neighbour: suffered beside others' backups; p99 of all its requests")
    if any(f" {BROKEN_MARK} " in f"{line} " or f"{BROKEN_MARK}>" in line for line in figures_in):
        lines.append(f"{ABSENT_MARK} nothing to measure   {BROKEN_MARK} could not be read")
    return [*_overdue(overdue), *(_ascii(line)[:WIDTH].rstrip() for line in lines)]


def _overdue(guests: Sequence[OverdueGuest]) -> list[str]:
    if not guests:
        return []
    lines = [f"pvehook: {counted(len(guests), 'guest')} OVERDUE for a backup:"]
    for each in guests[:OVERDUE_SHOWN]:
        lines += _wrap(f"{each.title}: last good backup {each.last_good}; {each.cause}")
        # A command is in one line, however long it is: it is to be copied.
        lines += [f"  {printable(way, 600)}" for way in each.ways_out[:WAYS_SHOWN]]
    if more := len(guests) - OVERDUE_SHOWN:
        lines += [f"and {more} more: pvehook night"] if more > 0 else []
    return [_ascii(line) for line in lines]


def _ascii(line: str) -> str:
    return line.encode("ascii", "replace").decode("ascii")


def _goodness(shown: Told, late: Collection[int]) -> tuple[float, ...]:
    """The overdue first, then the worst; among equals, a backup that failed."""
    guest, stall = shown
    on_time = float(guest.vmid not in late)
    if stall is None:
        return on_time, 0.0, 0.0, 0.0, float(guest.result == "ok")
    known = figures(stall)
    worst_first = severity_key(stall.verdict.severity, known["stalled_s"], known["slowed_s"])
    return (on_time, *(-each for each in worst_first), float(guest.result == "ok"))


def _neighbours_goodness(record: BesideRecord) -> tuple[float, ...]:
    worst_first = severity_key(record.severity, record.stalled_s, record.slowed_s)
    return (1.0, *(-each for each in worst_first), 1.0)


def _row(guest: GuestRecord, stall: StallRecord | None, is_overdue: bool) -> str:
    begun = guest.result != "refused"
    _, threads, confirmed = idle_counts(guest)
    known = figures(stall) if stall is not None else {}
    cause = "window closed"
    if begun:
        verdict = stall.verdict if stall is not None else None
        cause = causes_in_short(verdict.severity, (each.kind for each in verdict.causes)) if verdict else ""
    nothing: Measured[float] = Absent("not observed")
    return _ROW.format(
        guest=_title(guest.vmtype, guest.vmid, guest.name),
        result=guest.result,
        took=short_duration(guest.ended_s - guest.started_s) if begun and guest.ended_s is not None else ABSENT_MARK,
        stalled=_seconds(known.get("stalled_s", nothing)),
        p99=before_and_during(known.get("baseline_write_p99_ms", nothing), known.get("write_p99_ms", nothing)),
        idle=f"{confirmed}/{threads}" if begun and threads else ABSENT_MARK,
        cause="OVERDUE" if is_overdue else cause or ABSENT_MARK,
    )


def _why(guest: GuestRecord, stall: StallRecord | None) -> list[str]:
    """For a guest that stalled: each cause with its evidence, and what its kernel logged."""
    if stall is None or stall.verdict.severity not in ("stalled", "locked-up"):
        return []
    texts = [f"{cause.text} ({cause.evidence})" for cause in stall.verdict.causes[:1]]
    if found := lockups_of(stall.guest):
        number = f"{len(found)} line{'s' if len(found) > 1 else ''}"
        texts.append(f"{number} of its kernel about a lockup: {printable(found[0].text, 100)}")
    what = stall.verdict.severity.replace("-", " ")
    text = f"{_title(guest.vmtype, guest.vmid, guest.name)} {what}: {'; '.join(texts) or 'no cause was seen'}"
    return _wrap(text)


def _neighbours_row(record: BesideRecord) -> str:
    known = beside_figures(record)
    return _NEIGHBOUR_ROW.format(
        guest=_title(record.vmtype, record.vmid, record.name),
        result="neighbour",
        took=ABSENT_MARK,
        stalled=_seconds(known["stalled_s"]),
        p99=before_and_during(known["baseline_p99_ms"], known["p99_ms"]),
        cause=_neighbours_cause(record),
    )


def _neighbours_cause(record: BesideRecord) -> str:
    """Whose backup was the worst for it. A number is never cut."""
    if not record.beside:
        return "beside others' backups"
    worst = guest_number(record.beside[0].vmtype, record.beside[0].vmid)
    text = f"beside {worst}'s backup"
    return text if len(text) <= _NEIGHBOUR_CAUSE else f"beside {worst}"


def _neighbours_why(record: BesideRecord) -> list[str]:
    if record.severity not in ("stalled", "locked-up"):
        return []
    what = record.severity.replace("-", " ")
    title = _title(record.vmtype, record.vmid, record.name)
    return _wrap(f"{title} {what} beside {backups_in_words(record.beside, seconds=True)}; {slowed_in_words(record)}")


def _seconds(figure: Measured[float]) -> str:
    return marked(figure, lambda seconds: f"{short_number(seconds)}s")


def _by_text(title: str, texts: Iterable[tuple[int, str]]) -> list[str]:
    """What can be said of several guests is said once."""
    by_text: dict[str, list[int]] = {}
    for vmid, text in texts:
        by_text.setdefault(text, []).append(vmid)
    said = [f"{title}: {text}: {', '.join(map(str, vmids))}" for text, vmids in by_text.items() if text]
    return [line for text in said for line in _wrap(text)]


def _consistency(guest: GuestRecord) -> str:
    """Empty where there is nothing to say: all of it was frozen, or nothing is known of a freeze."""
    freeze = guest.freeze
    if freeze is None or freeze.consistency in (None, "filesystem-consistent", "left-to-pve"):
        return ""
    return consistency_in_words(freeze.consistency, freeze.mountpoints)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _title(vmtype: str | None, vmid: int, name: str | None) -> str:
    return f"{guest_number(vmtype, vmid)} {printable(name or '', 40)}".rstrip()
