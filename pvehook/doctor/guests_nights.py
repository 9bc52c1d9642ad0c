"""Which guests stalled in the last nights, by the history."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final, NamedTuple

from pvehook.contract.measured import value_of
from pvehook.host.node import Node
from pvehook.records.beside_history import beside_between
from pvehook.records.figures import causes_in_short
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import DAY_S, history_file, reading
from pvehook.records.nights import backups_between
from pvehook.report.beside import night_of

NIGHTS: Final = 7
STALLED: Final = ("stalled", "locked-up")


class BadNight(NamedTuple):
    """A backup, a guest's own or those of others in one run, in which it stalled."""

    vmid: int
    night_s: float
    """The noon after that night, in seconds since the epoch."""
    is_last: bool
    """It was the last night that has a backup on record."""
    severity: str
    stalled_s: float | None
    """None: not known."""
    why: str
    """`slow target`, `beside the backup of VM 103`; empty: not known."""


def bad_nights(node: Node, now: datetime) -> tuple[BadNight, ...]:
    """Of the last NIGHTS nights, the last one first. `now` is in the zone that decides where days begin. Raises
    NodeError."""
    path = history_file(node)
    if not os.path.exists(path):
        return ()  # a node that has not backed up anything yet
    now_s, zone = now.timestamp(), now.tzinfo or UTC
    since_s, _ = night_of(now_s - (NIGHTS - 0.5) * DAY_S, zone)
    with reading(path) as history:
        backups = backups_between(history, since_s, now_s)
        beside = [each for each in beside_between(history, since_s, now_s) if each.started_s >= since_s]
    starts_s = [each.started_s for each in backups]
    last_s = night_of(max(starts_s), zone)[1] if starts_s else None
    found = [
        (each.vmid, each.started_s, each.severity, each.stalled_s, causes_in_short("", each.causes.split()))
        for each in backups
    ]
    found += [
        (each.vmid, each.started_s, each.severity, each.stalled_s, _beside(each.worst_vmtype, each.worst_vmid))
        for each in beside
    ]
    nights = [
        BadNight(vmid, night_s, night_s == last_s, severity, value_of(stalled_s), why)
        for vmid, started_s, severity, stalled_s, why in found
        if severity in STALLED
        for night_s in [night_of(started_s, zone)[1]]
    ]
    return tuple(sorted(nights, key=lambda each: (-each.night_s, each.vmid)))


def _beside(vmtype: str | None, vmid: int | None) -> str:
    return "beside the backups of others" if vmid is None else f"beside the backup of {guest_number(vmtype, vmid)}"
