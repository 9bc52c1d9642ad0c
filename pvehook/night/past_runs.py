"""Turns that no daemon of ours saw, or whose end none saw: before pvehook came, or while its daemon was away. They are
read from what Proxmox keeps: its tasks' logs, and the archives in local dump directories.

Nothing waits for it: it is read in a thread of the daemon's, at its start and after each run.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime, tzinfo
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from pvehook.contract.archive_name import parse_archive_name
from pvehook.contract.storage_config import why_no_backup
from pvehook.contract.task_log import ListedTask, LoggedGuest, LoggedResult, TaskLog, parse_task_log
from pvehook.contract.upid import Upid
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.clock import local_zone
from pvehook.host.job_states import JOB_STATES, job_states
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, identify
from pvehook.host.task_log import TASKS, task_log, vzdump_tasks
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import directory_of, read_storages
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import guests_with_attempts, known_jobs
from pvehook.records.context import Context
from pvehook.records.history import DAY_S, reading
from pvehook.records.history_writing import append_attempts

T = TypeVar("T")

TOTAL_S: Final = 60.0
RESERVE_S: Final = 20.0
"""Of it, for what comes after the logs."""
READ_S: Final = 5.0
"""For one file or directory, and for the history."""
MOST_TASKS: Final = 200
"""Of one reading, the newest first."""
MOST_FILES: Final = 20_000
"""Of one dump directory."""
RECENT_DAYS: Final = 2.0
"""A run that ended so lately is read although some of its turns are on record: a daemon that was away for a while, or a
node that died, may have missed others of it."""
LONGEST_DAYS: Final = 2.0
"""An archive that was written so much later than its backup began was copied there."""

_LOCAL_DIRECTORIES: Final = ("dir", "btrfs")


class PastRuns:
    """Brings the history up to date with what Proxmox keeps. The daemon's threads may share it."""

    def __init__(self, context: Context, history: str) -> None:
        self._context = context
        self._history = history
        self._one_at_a_time = threading.Lock()
        self._until = Deadline.after(TOTAL_S)
        self._files = TimelyReader()
        self._storages = TimelyReader()  # its own: a dump directory may hang where the history's disk answers
        self._read: set[str] = set()
        """Tasks whose logs were read to their end."""

    def read(self, keep_days: int) -> None:
        """Takes TOTAL_S at most. What cannot be read costs a line in the journal."""
        with self._one_at_a_time:
            self._until = Deadline.after(TOTAL_S)
            try:
                self._read_all(keep_days)
            except NodeError as error:
                self._context.log.warning("past-runs-not-read", message=f"past runs of vzdump: {error}")

    def _read_all(self, keep_days: int) -> None:
        """Raises NodeError for what could not be read, once everything else is kept."""
        node, now_s = self._context.node, self._context.clock.now_s()
        tasks = self._within(TASKS, lambda: vzdump_tasks(node) if os.path.isdir(node.path(TASKS)) else None)
        if tasks is None:
            return  # no Proxmox VE

        def append(attempts: Sequence[Attempt]) -> None:
            keep = partial(append_attempts, self._history, attempts, now_s=now_s, keep_days=keep_days, are_read=True)
            if (news := self._within(self._history, keep)) is not None:
                self._context.log.warning("history-moved", message=news)

        append([])  # brings an older history up to date: it could not be read
        zone = self._within("/etc/localtime", partial(local_zone, node))
        known = self._within(self._history, partial(_from_history, self._history, known_jobs))
        tasks = [task for task in tasks if task.upid.started_s >= now_s - keep_days * DAY_S]
        wanted = [task for task in tasks if self._is_wanted(task, known, now_s)][:MOST_TASKS]
        attempts, problems = self._from_logs(wanted, zone)
        append(attempts)
        archives = self._from_archives(zone)
        append(archives)
        self._context.log.debug(
            "past-runs-read",
            message=f"{len(wanted)} logs of vzdump's runs tell of {len(attempts)} turns; {len(archives)} archives of "
            "guests of whom nothing else is known",
        )
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise NodeError(f"{problems[0]}{more}")

    def _is_wanted(self, task: ListedTask, known: Mapping[str, bool], now_s: float) -> bool:
        upid = task.upid
        if upid.text in self._read and known.get(upid.text, True):
            return False
        process = ProcessId(upid.pid, upid.start_ticks)
        if task.ended_s is None and identify(self._context.node, upid.pid) == process:
            return False  # it runs
        is_recent = (task.ended_s or upid.started_s) >= now_s - RECENT_DAYS * DAY_S
        return is_recent or not known.get(upid.text, False)

    def _from_logs(self, tasks: Sequence[ListedTask], zone: tzinfo) -> tuple[list[Attempt], list[NodeError]]:
        attempts: list[Attempt] = []
        problems: list[NodeError] = []
        states = self._within(JOB_STATES, partial(job_states, self._context.node))
        jobs = {state.upid: state.job_id for state in states}  # of each job the last run
        for task in tasks:
            upid = task.upid
            if self._until.left_s() < RESERVE_S:
                problems.append(NodeError(f"not all of {len(tasks)} logs could be read in {TOTAL_S:g} s"))
                break
            try:
                log = self._within(upid.text, partial(_read_log, self._context.node, upid.text))
            except NodeError as error:
                problems.append(error)
                continue
            if log is None:
                continue
            if log.result != "unknown":
                self._read.add(upid.text)
            turns = attempts_of(upid, log, zone)
            if (job_id := jobs.get(upid.text)) is not None:
                turns = [turn._replace(job_id=job_id, trigger="schedule") for turn in turns]
            attempts += turns
        return sorted(attempts, key=lambda attempt: attempt.started_s), problems

    def _from_archives(self, zone: tzinfo) -> list[Attempt]:
        """Of the node's guests of whom nothing else is known. Raises NodeError."""
        node, name = self._context.node, os.uname().nodename
        known = self._within(self._history, partial(_from_history, self._history, guests_with_attempts))
        guests = self._within("/etc/pve", partial(_guests_of, node), self._storages) - known
        if not guests:
            return []
        storages = read_storages(node, self._storages)
        found: dict[tuple[int, float], Attempt] = {}
        for storage in storages:
            directory = directory_of(storage, "backup", "dump")
            is_local = storage.type in _LOCAL_DIRECTORIES and directory is not None
            if is_local and why_no_backup(storages, storage.id, name.partition(".")[0]) is None:
                read = partial(_archives_in, node.path(directory or ""), guests, zone, name)
                for attempt in self._within(f"storage {storage.id}", read, self._storages):
                    found[attempt.vmid, attempt.started_s] = attempt
        return sorted(found.values(), key=lambda attempt: attempt.started_s)

    def _within(self, what: str, question: Callable[[], T], reader: TimelyReader | None = None) -> T:
        """Raises NodeError for whatever fails or takes too long."""
        try:
            return (reader or self._files).within(self._until.within(READ_S).left_s(), what, question)
        except OSError as error:
            raise NodeError(f"{what}: {error.strerror or error}") from error


def attempts_of(upid: Upid, log: TaskLog, zone: tzinfo) -> list[Attempt]:
    """The turns that a task's log tells of. `zone`: the node's own. A wall-clock time that comes twice a year is the
    first one that is not before what stands above it in the log, or the one that fits how long the backup took."""
    attempts = []
    at_s = float(upid.started_s)
    for guest in log.guests:
        started_s = at_s = _instant(guest.began or guest.ended, zone, at_s)
        if guest.result != "unknown":
            at_s = _instant(guest.ended, zone, at_s, guest.took_s)
        attempts.append(_attempt(upid, guest.vmid, started_s, at_s, guest.result, _reason(upid, guest), guest))
    left = log.without_turn
    if not log.guests and not left and upid.vmid is not None and log.error:
        left = (upid.vmid,)
    why = log.error if log.result == "refused" else f"the run broke off before its turn: {log.error}; {_see(upid)}"
    return attempts + [_attempt(upid, vmid, at_s, at_s, log.result, why) for vmid in left]


def _attempt(
    upid: Upid,
    vmid: int,
    started_s: float,
    ended_s: float,
    result: LoggedResult,
    reason: str,
    guest: LoggedGuest | None = None,
) -> Attempt:
    return Attempt(
        vmid=vmid,
        started_s=started_s,
        ended_s=ended_s,
        node=upid.node,
        job=upid.text,
        job_id=None,  # vzdump's log does not name it
        trigger="unknown",
        name=guest.name if guest else None,
        vmtype=guest.vmtype if guest else None,
        mode=guest.mode if guest else None,
        result=result,
        reason=reason,
        copied_bytes=guest.read_bytes if guest else None,
    )


def _reason(upid: Upid, guest: LoggedGuest) -> str:
    if guest.result in ("ok", "refused"):
        return guest.error
    if guest.result == "unknown":
        return f"vzdump's log stops in the middle of it: vzdump or the node died; {_see(upid)}"
    return f"{guest.error or 'vzdump failed it'}; {_see(upid)}"


def _see(upid: Upid) -> str:
    return f"its log: pvenode task log {upid.text}"


def _instant(wall: datetime | None, zone: tzinfo, not_before_s: float, took_s: int | None = None) -> float:
    """Seconds since the epoch. `took_s`: how long after `not_before_s` it was, if that is known."""
    if wall is None:
        return not_before_s + (took_s or 0)
    both = sorted(wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if took_s is not None:
        return min(both, key=lambda at_s: abs(at_s - not_before_s - took_s))
    return next((at_s for at_s in both if at_s >= not_before_s - 1), both[-1])


# In the readers' threads


def _from_history(path: str, question: Callable[..., T]) -> T:
    with reading(path) as history:
        return question(history)


def _read_log(node: Node, upid: str) -> TaskLog | None:
    """None: Proxmox has deleted it."""
    try:
        return parse_task_log(task_log(node, upid))
    except FileNotFoundError:
        return None


def _guests_of(node: Node) -> set[int]:
    """By the names of their configurations."""
    names = [name for kind in ("qemu-server", "lxc") for name in os.listdir(node.path(f"/etc/pve/{kind}"))]
    return {int(name.removesuffix(".conf")) for name in names if re.fullmatch(r"[1-9][0-9]{2,8}\.conf", name)}


def _archives_in(directory: str, guests: Set[int], zone: tzinfo, node_name: str) -> list[Attempt]:
    found = []
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:  # nothing was backed up there yet
        return []
    with entries:
        for entry in islice(entries, MOST_FILES):
            archive = parse_archive_name(entry.name)
            if archive is None or archive.vmid not in guests:
                continue
            started_s = archive.began.replace(tzinfo=zone).timestamp()
            try:
                written_s = entry.stat().st_mtime
            except FileNotFoundError:  # pruned just now
                continue
            is_own = started_s <= written_s <= started_s + LONGEST_DAYS * DAY_S
            found.append(
                Attempt(
                    vmid=archive.vmid,
                    started_s=started_s,
                    ended_s=written_s if is_own else started_s,
                    node=node_name,
                    job="",
                    job_id=None,
                    trigger="unknown",
                    name=None,
                    vmtype=archive.vmtype,
                    mode=None,
                    result="ok",
                    reason="",
                )
            )
    return found
