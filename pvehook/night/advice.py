"""What to change after a night: a few lines, from the records of those who suffered and from how the runs ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pvehook.contract.text import printable
from pvehook.night.run_plan import GAVE_WAY
from pvehook.records.guest_summary import guest_number
from pvehook.records.stall_record import StallRecord
from pvehook.report.night_turns import GuestTurns, NightTurns
from pvehook.report.node_night import Row
from pvehook.report.standing import Standing, way_out

MOST: Final = 5
NAMED: Final = 3
LOGS_NAMED: Final = 2


class Advice(NamedTuple):
    text: str
    commands: tuple[str, ...] = ()
    """To be typed as they are."""


def advice(
    turns: NightTurns, standings: Collection[Standing], suffered: Sequence[Row], records: Sequence[StallRecord]
) -> list[Advice]:
    """At most MOST, what matters most first. Those who are overdue have their commands elsewhere. `standings`: empty
    where they are not known."""
    found = [*_about_failed(turns), *_about_refused(turns, standings), *about_suffered(records), *_in_detail(suffered)]
    return found[:MOST]


def _about_failed(turns: NightTurns) -> list[Advice]:
    failed = [guest for result in ("failed", "worker-died", "unknown") for guest in turns.with_result(result)]
    jobs = list(dict.fromkeys(guest.counted.job for guest in failed if guest.counted is not None and guest.counted.job))
    if not jobs:
        return []
    commands = tuple(f"pvenode task log {printable(job)}" for job in jobs[:LOGS_NAMED])
    return [Advice(f"how the backup of {_titles(failed)} ended is in the task log", commands)]


def _about_refused(turns: NightTurns, standings: Collection[Standing]) -> list[Advice]:
    overdue = {each.vmid for each in standings if each.is_overdue}
    refused = [guest for guest in turns.with_result("refused") if guest.vmid not in overdue and not _gave_way(guest)]
    if not refused:
        return []
    missed = [guest for guest in refused if guest.counted is not None and guest.counted.trigger == "missed"]
    if missed:
        text = f"the node was off when {_titles(missed)} had to be backed up, and the run at boot was refused"
    else:
        text = f"{_titles(refused)} {'was' if len(refused) == 1 else 'were'} refused"
    them = "it" if len(refused) == 1 else "them"
    ways = {each.vmid: way_out(each.ways_out[0])[1] for each in standings if each.ways_out}
    if len(refused) <= NAMED and all(guest.vmid in ways for guest in refused):
        commands = tuple(ways[guest.vmid] for guest in refused)
        return [Advice(f"{text}; to back {them} up before the next run", commands)]
    whom = "".join(f" --vmid {guest.vmid}" for guest in refused) if len(refused) <= NAMED else ""
    text += f"; to back {them} up before the next run, let {them} in, then start the backup in the web interface"
    return [Advice(text, (f'pvehook allow{whom} --for 2h --reason "refused last night"',))]


def _gave_way(guest: GuestTurns) -> bool:
    """It has its turn before others in the next run: there is nothing to do."""
    return guest.counted is not None and guest.counted.reason.startswith(GAVE_WAY)


def about_suffered(records: Sequence[StallRecord]) -> list[Advice]:
    """What the governor found, each once, with those whom it would help; the worst first."""
    whom: dict[str, list[str]] = {}
    for record in records:
        for text in record.governor.advice if record.governor is not None else ():
            names = whom.setdefault(text, [])
            names.append(guest_number(record.vmtype, record.vmid))
    return [Advice(f"for {_named(names)}: {printable(text, 400)}") for text, names in whom.items()]


def _in_detail(suffered: Sequence[Row]) -> list[Advice]:
    if not suffered:
        return []
    return [Advice(f"what {suffered[0].title} suffered, in detail", (f"pvehook report --vmid {suffered[0].vmid}",))]


def _titles(guests: Sequence[GuestTurns]) -> str:
    return _named([guest.title for guest in guests])


def _named(names: Sequence[str]) -> str:
    """`VM 101, VM 102, VM 103 and 4 more`."""
    unique = list(dict.fromkeys(names))
    if len(unique) > NAMED:
        return f"{', '.join(unique[:NAMED])} and {len(unique) - NAMED} more"
    return " and ".join(filter(None, (", ".join(unique[:-1]), unique[-1])))
