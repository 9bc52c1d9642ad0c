"""Backups of guests that have no good one on record, as Proxmox lists them on its storages: of before pvehook, where
the tasks' logs are gone and the archives are not in a local directory. `pvehook night --ask-storages`; asked through
pvesh, which needs the network, so the daemon in its sandbox cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from pvehook.contract.storage_config import why_no_backup
from pvehook.contract.storage_content import StoredBackup, parse_content
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.pvesh import pvesh_get
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import read_storages
from pvehook.night.promises import read_node_guests
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import last_good_s
from pvehook.records.history import reading
from pvehook.records.history_writing import append_attempts

ONE_S: Final = 60.0
"""For one storage."""
ALL_S: Final = 300.0


class Asked(NamedTuple):
    """What became of it."""

    guests: tuple[int, ...]
    """That had no good backup on record."""
    found: tuple[int, ...]
    """Those of them that have backups on a storage, which are in the history now."""
    problems: tuple[str, ...]
    """Storages that did not answer, with the reason."""


def ask_storages(
    node: Node, reader: TimelyReader, history: str, now_s: float, keep_days: int, says: Callable[[str], None]
) -> Asked:
    """May take ALL_S. `says` is called before each storage is asked. Raises NodeError where the guests, the storages or
    the history cannot be read."""
    until = Deadline.after(ALL_S)
    known: set[int] = set()
    if os.path.exists(history):
        with reading(history) as database:
            known = set(last_good_s(database, now_s))
    guests = {guest.vmid for guest in read_node_guests(node, reader)} - known
    problems: list[str] = []
    backups: dict[tuple[int, float], StoredBackup] = {}
    storages = read_storages(node, reader) if guests else []
    name = os.uname().nodename.partition(".")[0]
    for storage in storages:
        if why_no_backup(storages, storage.id, name) is not None:
            continue
        says(f"asking storage {storage.id} ({storage.type})")
        path = f"/nodes/{name}/storage/{storage.id}/content"
        try:
            listed = parse_content(pvesh_get(node, path, {"content": "backup"}, until.within(ONE_S).left_s()))
        except (NodeError, ValueError) as error:
            problems.append(f"storage {storage.id}: {error}")
            continue
        backups |= {(each.vmid, each.began_s): each for each in listed if each.vmid in guests}
    turns = [_turn(each) for each in sorted(backups.values(), key=lambda each: each.began_s) if each.began_s <= now_s]
    if turns:
        news = append_attempts(history, turns, now_s=now_s, keep_days=keep_days, are_read=True)
        if news is not None:
            says(news)
    return Asked(tuple(sorted(guests)), tuple(sorted({turn.vmid for turn in turns})), tuple(problems))


def _turn(backup: StoredBackup) -> Attempt:
    return Attempt(
        vmid=backup.vmid,
        started_s=backup.began_s,
        ended_s=backup.began_s,  # how long it took is not listed
        node=os.uname().nodename,
        job="",
        job_id=None,
        trigger="unknown",
        name=None,
        vmtype=backup.vmtype,
        mode=None,
        result="ok",
        reason="",
    )
