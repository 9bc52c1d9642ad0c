"""How every guest of the node stands: its last good backup, its missed turns, whether it is overdue, and why.

    for each in standings(node, reader, in_force, now_s):
        if each.is_overdue:
            print(each.vmid, each.cause, each.ways_out)

Reads the jobs of the node and the history of turns, changes nothing. May take seconds, where /etc/pve or the history's
disk is slow: in a phase it is asked in a thread with a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from pvehook.config.in_force import InForce
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.errors import NodeError
from pvehook.host.clock import local_zone
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.night.forecasts import disk_sizes, past_turns, run_forecast
from pvehook.night.promises import NodeGuest, Promises, read_promises
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import last_good_s, turns_since_good
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import history_file, reading
from pvehook.records.known_guests import KnownGuest, known_guests
from pvehook.report.standing import Standing
from pvehook.rules.overdue import TURN_COMES_WITHIN_S, Facts, Promise, Turn, judge
from pvehook.rules.window import Window

NAME_LIMIT = 64


class _Past(NamedTuple):
    last_good_s: Mapping[int, float]
    turns: Mapping[int, Sequence[Attempt]]
    known: Mapping[int, KnownGuest]


def standings(
    node: Node, reader: TimelyReader, in_force: InForce, now_s: float, history: str | None = None
) -> list[Standing]:
    """Of every guest of this node, also those in no job: the overdue first, then by missed turns. `history` is another
    file than the node's. Raises NodeError when the jobs or the history cannot be read."""
    promises = read_promises(node, reader, in_force.config.window.exempt)
    path = history or history_file(node)
    past = _read_past(path, now_s)
    promises = _with_needs(promises, past, node, reader, path, now_s)
    zone = local_zone(node)
    overdue_after = in_force.config.window.overdue_after
    found = [_standing(guest, promises, past, now_s, zone, in_force.window, overdue_after) for guest in promises.guests]
    return sorted(found, key=lambda each: (-each.is_overdue, -each.missed_turns, each.vmid))


def standings_beside(
    history: str, nodes: Collection[str], node: Node, in_force: InForce, now_s: float
) -> Measured[tuple[Standing, ...]]:
    """For a report on a history that has turns of these `nodes`: as `standings`, absent where it is of other nodes than
    this one, or where this one has no guests; broken where something cannot be read."""
    name = os.uname().nodename.partition(".")[0]
    if name not in {each.partition(".")[0] for each in nodes}:
        return Absent(f"the history is of node {printable(', '.join(nodes))}, the jobs are of {printable(name)}")
    try:
        found = standings(node, TimelyReader(), in_force, now_s, history)
    except (NodeError, OSError) as error:
        return Broken(printable(str(error)))
    return tuple(found) if found else Absent("/etc/pve has no guest of this node")


def _with_needs(
    promises: Promises, past: _Past, node: Node, reader: TimelyReader, history: str, now_s: float
) -> Promises:
    """With how long those jobs take whose guests were refused: only then it is part of a cause."""
    refused = {vmid for vmid, turns in past.turns.items() if any(each.result == "refused" for each in turns)}
    jobs = {each.job for vmid in refused & promises.of.keys() for each in promises.of[vmid]}
    if not jobs:
        return promises
    turns = past_turns(history, now_s)
    needs: dict[str, float | None] = {}
    for job in jobs:
        vmids = [vmid for vmid, each in promises.of.items() if job in (one.job for one in each)]
        guests = run_forecast(vmids, job, turns, disk_sizes(node, reader, vmids), now_s, None).guests
        known = [each.expected.expected_s for each in guests if each.expected is not None]
        needs[job] = sum(known) if len(known) == len(guests) else None
    with_needs = {
        vmid: tuple(each._replace(needs_s=needs.get(each.job)) for each in those) for vmid, those in promises.of.items()
    }
    return promises._replace(of=with_needs)


def _read_past(path: str, now_s: float) -> _Past:
    if not os.path.exists(path):
        return _Past({}, {}, {})  # a node that has not backed up anything yet
    with reading(path) as history:
        return _Past(last_good_s(history, now_s), turns_since_good(history, now_s), known_guests(history))


def _standing(
    guest: NodeGuest, promises: Promises, past: _Past, now_s: float, zone: tzinfo, window: Window, overdue_after: int
) -> Standing:
    vmid = guest.vmid
    good_s = past.last_good_s.get(vmid)
    turns = past.turns.get(vmid, ())
    known = past.known.get(vmid)
    promised_s = _promised_s(promises.of[vmid], past, vmid, now_s)
    facts = Facts(
        vmid,
        None if good_s is None else datetime.fromtimestamp(good_s, zone),
        datetime.fromtimestamp(now_s if promised_s is None else promised_s, zone),
        promises.of[vmid],
        [Turn(datetime.fromtimestamp(each.started_s, zone), each.result, each.reason) for each in turns],
        promises.disabled[vmid],
    )
    verdict = judge(facts, datetime.fromtimestamp(now_s, zone), window, overdue_after)
    title = f"{guest_number(guest.vmtype, vmid)} {printable(guest.name or '', NAME_LIMIT)}".rstrip()
    in_job, logged_s = bool(facts.promises), known.overdue_logged_s if known else None
    return Standing(vmid, title, good_s, in_job, *verdict, promised_s=promised_s, overdue_logged_s=logged_s)


def _promised_s(promises: Sequence[Promise], past: _Past, vmid: int, now_s: float) -> float | None:
    """Since when a job takes the guest; None: none does. A clock that was ahead for a night is not believed."""
    if not promises:
        return None
    known, good_s = past.known.get(vmid), past.last_good_s.get(vmid)
    if known is not None and known.promised_s is not None:
        return min(known.promised_s, now_s)
    if not past.known and good_s is not None:
        return good_s  # pvehook has just come, and what is on record was read from Proxmox's logs
    # It is new in a job, and the start that brought its first turn was before that.
    since_s = now_s - TURN_COMES_WITHIN_S if past.known else 0.0
    firsts = [each.started_s for each in past.turns.get(vmid, ()) if each.started_s > since_s]
    return firsts[0] - TURN_COMES_WITHIN_S if firsts else now_s
