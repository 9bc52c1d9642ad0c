"""The table of a whole run, at `job-end`: 80 columns of plain ASCII, because Proxmox mails it.

pvehook: guest                backup      idle   effect of idle I/O priority
         VM 101 web           ok          6/6    compressor only, dump honoured
         VM 103 db            refused     -      -
"""

from __future__ import annotations

from collections.abc import Iterable

from pvehook.records.guest_record import GuestRecord

WIDTH = 80
_ROW = "{head:<9}{guest:<20.20} {result:<11.11} {idle:<6} {effect}"


def job_table(guests: Iterable[GuestRecord]) -> list[str]:
    """One line a guest, in the order of the run; nothing for a run that came to no guest.

    `idle` is threads read back as idle, of those that were seen.
    """
    rows = [_row(guest) for guest in guests]
    if not rows:
        return []
    title = _ROW.format(
        head="pvehook:", guest="guest", result="backup", idle="idle", effect="effect of idle I/O priority"
    )
    return [title, *rows]


def _row(guest: GuestRecord) -> str:
    kind = {"qemu": "VM", "lxc": "CT"}.get(guest.vmtype or "", "guest")
    threads = sum(each[1] for each in guest.idle.values())
    confirmed = sum(each[2] for each in guest.idle.values())
    begun = guest.result != "refused"
    line = _ROW.format(
        head="",
        guest=_ascii(f"{kind} {guest.vmid} {guest.name or ''}"),
        result=guest.result,
        idle=f"{confirmed}/{threads}" if begun and threads else "-",
        effect=_ascii(guest.effect_in_short) if begun else "-",
    )
    return line[:WIDTH].rstrip()


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")
