"""What one guest suffered beside the backups of others in one run: an event of the journal.

VM 101 (web): stalled for 17 s, slowed for 41 s beside the backups of VM 103, VM 105, CT 110 and 2 more; p99 of
its requests 15 ms before and 2405 ms beside them; a backup was slowed for it for 12 s
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pvehook.contract.measured import value_of
from pvehook.contract.text import printable
from pvehook.records.beside_record import BesideBackup, BesideRecord
from pvehook.records.figures import beside_figures, encode_figure, short_number
from pvehook.records.guest_summary import guest_number, seconds_in_words
from pvehook.records.journal import Log

NAMED: Final = 3
"""Backups, the worst first. The record has them all."""


def report_suffering(log: Log, record: BesideRecord) -> None:
    """`guest-suffered`, once a run, for a guest that suffered."""
    if not suffered(record):
        return
    write = log.warning if record.severity in ("stalled", "locked-up") else log.info
    write("guest-suffered", message=beside_message(record), **beside_done_fields(record))


def suffered(record: BesideRecord) -> bool:
    """Whether there is something to tell: not of a guest that was well, nor of one that could not be watched."""
    return record.severity not in ("none", "unknown")


def beside_message(record: BesideRecord) -> str:
    """One sentence: the guest, what it suffered, beside whose backups, whether they were slowed for it."""
    name = f" ({printable(record.name)})" if record.name else ""
    text = f"{guest_number(record.vmtype, record.vmid)}{name}: {seconds_in_words(record.stalled_s, record.slowed_s)}"
    parts = [f"{text} beside {backups_in_words(record.beside)}"]
    before, during = value_of(record.baseline_p99_ms), value_of(record.p99_ms)
    if during is not None:
        earlier = f"{short_number(before)} ms before and " if before is not None else ""
        parts.append(f"p99 of its requests {earlier}{short_number(during)} ms beside them")
    parts.append(slowed_in_words(record))
    if record.unknown:
        parts.append(f"whether it shares their disks is not known ({printable(record.unknown[0])})")
    return "; ".join(parts)


def beside_done_fields(record: BesideRecord) -> dict[str, object]:
    """The journal's fields; a missing figure is `absent: why` or `broken: why`."""
    return {
        "vmid": record.vmid,
        "guest": record.name,
        "vmtype": record.vmtype,
        "severity": record.severity,
        **{name: encode_figure(figure) for name, figure in beside_figures(record).items()},
        "seen_by": record.seen_by,
        "beside": [_backup_in_short(each) for each in record.beside],
        "not_known": record.unknown or None,
    }


def slowed_in_words(record: BesideRecord) -> str:
    """Whether a backup was slowed for it."""
    slowed_s = sum(each.slowed_backup_s for each in record.beside)
    return f"a backup was slowed for it for {short_number(slowed_s)} s" if slowed_s else "no backup was slowed for it"


def backups_in_words(backups: Sequence[BesideBackup], *, seconds: bool = False) -> str:
    """`VM 103's backup`; `the backups of VM 103, CT 110 and 2 more`, with the seconds that it stalled beside each."""
    if not backups:
        return "others' backups"
    if len(backups) == 1:
        return f"{guest_number(backups[0].vmtype, backups[0].vmid)}'s backup"
    named = [
        guest_number(each.vmtype, each.vmid) + (f" ({short_number(each.stalled_s)} s)" if seconds else "")
        for each in backups[:NAMED]
    ]
    if len(backups) > NAMED:
        named.append(f"{len(backups) - NAMED} more")
    return f"the backups of {', '.join(named[:-1])} and {named[-1]}"


def _backup_in_short(each: BesideBackup) -> str:
    """`VM 103: 12 s stalled, 41 s slowed, shared`."""
    text = f"{short_number(each.stalled_s)} s stalled, {short_number(each.slowed_s)} s slowed, {each.exposure}"
    return f"{guest_number(each.vmtype, each.vmid)}: {text}"
