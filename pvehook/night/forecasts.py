"""What is expected of guests' next backups, from the history of turns and from their disks' sizes.

May take seconds, where /etc/pve or the history's disk is slow: in a phase it is asked in a thread with a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from pvehook.contract.guest_config import backup_size_bytes, parse_container, parse_vm
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between
from pvehook.records.guest_forecast import GuestForecast, RunForecast
from pvehook.records.history import DAY_S, reading
from pvehook.rules.fair_turns import BACKUPS_COMPARED, Waiting
from pvehook.rules.forecast import Expected, PastBackup, expected, rates_of, timeline

LOOKED_BACK_DAYS: Final = 60
"""So far back a weekly job has enough turns too."""
READ_S: Final = 1.0
_OWN_TURNS: Final = 2
"""A guest's turns in the same job count alone from so many on: another job may write to a slower storage."""


def past_turns(path: str, now_s: float) -> list[Attempt]:
    """The turns in this history, the oldest first. Raises NodeError."""
    if not os.path.exists(path):
        return []  # a node that has not backed up anything yet
    with reading(path) as history:
        return attempts_between(history, now_s - LOOKED_BACK_DAYS * DAY_S, now_s)


def disk_sizes(node: Node, reader: TimelyReader, vmids: Collection[int]) -> dict[int, int | None]:
    """How many bytes each guest's backup reads at most; None: not known."""
    return {vmid: _size(node, reader, vmid) for vmid in vmids}


def run_forecast(
    vmids: Collection[int],
    job_id: str | None,
    turns: Sequence[Attempt],
    sizes: Mapping[int, int | None],
    now_s: float,
    closes_s: float | None,
) -> RunForecast:
    """Of a run of these guests that begins now. `turns`: of all guests, the oldest first."""
    of: dict[int, list[Attempt]] = {}
    for turn in turns:
        of.setdefault(turn.vmid, []).append(turn)
    rates = [rate for each in of.values() for rate in rates_of(_past(each[-3:], now_s))]
    known = {vmid: _expected(of.get(vmid, ()), job_id, sizes.get(vmid), rates, now_s) for vmid in sorted(vmids)}
    line = timeline(list(known.items()), now_s, closes_s)
    guests = []
    for place, (vmid, each) in zip(line.turns, known.items(), strict=True):
        own = of.get(vmid, [])
        good = [one.started_s for one in own if one.result == "ok"]
        began = [one.started_s for one in own if one.result != "refused"]
        end_s = place.end_s[0] if place.end_s is not None else None
        guests.append(
            GuestForecast(vmid, each, end_s, tuple(good[: -BACKUPS_COMPARED - 1 : -1]), began[-1] if began else None)
        )
    return RunForecast(now_s, closes_s, tuple(guests))


def waiting(guest: GuestForecast, now_s: float, is_bound: bool) -> Waiting:
    """The guest as fair turns take it, now."""
    each = guest.expected
    return Waiting(
        guest.vmid,
        takes_s=each.alone_s if each is not None else 0.0,
        error_s=(each.longest_s - each.expected_s) if each is not None else 0.0,
        backups_s=tuple(now_s - at_s for at_s in guest.backups_s),
        last_turn_s=now_s - guest.last_turn_s if guest.last_turn_s is not None else None,
        is_bound=is_bound,
    )


def _expected(
    turns: Sequence[Attempt], job_id: str | None, size_bytes: int | None, rates: Sequence[float], now_s: float
) -> Expected | None:
    of_job = [turn for turn in turns if turn.job_id == job_id and turn.result == "ok"]
    counted = of_job if job_id is not None and len(of_job) >= _OWN_TURNS else turns
    return expected(_past(counted[-LOOKED_BACK_DAYS:], now_s), size_bytes, rates)


def _past(turns: Sequence[Attempt], now_s: float) -> list[PastBackup]:
    return [
        PastBackup(now_s - turn.started_s, turn.duration_s, turn.cost_s or 0.0, turn.copied_bytes, turn.result == "ok")
        for turn in turns
        if turn.result in ("ok", "cancelled")
    ]


def _size(node: Node, reader: TimelyReader, vmid: int) -> int | None:
    for directory, parse in (("qemu-server", parse_vm), ("lxc", parse_container)):
        try:
            text = reader.text(node.path(f"/etc/pve/{directory}/{vmid}.conf"), READ_S)
        except NodeError:
            return None
        if text is not None:
            return backup_size_bytes(text, parse(text))
    return None
