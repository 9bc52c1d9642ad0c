"""The writeback pacer: keeps the dirty pages of one growing archive few, from outside, so that the kernel has no burst
to write out in front of a guest on the same disk.

    vzdump          appends to TARGET with `.dat` for its last extension, through the page cache
    the pacer       every step (2 MiB), as soon as it is there and the disk has next to nothing to do:
                    start its writeback, wait until the step before is on the disk, drop that one from the page cache

On a disk that is never quiet a step is begun when the archive is 32 MiB ahead. At most two steps are in flight. Each
guest's backup has a thread for it, which the kernel may keep waiting for as long as the disk likes. It never writes,
and losing it costs nothing: then the kernel writes back as it always did.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing

from pvehook.contract.section_config import Section
from pvehook.errors import NodeError
from pvehook.host.mounts import follow_links, read_mounts
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup, locate_dump, locate_volume, read_storages, volumes_of, within_look
from pvehook.host.writeback import GrowingFile, NotTheFile, requests_in_flight
from pvehook.records.journal import Log
from pvehook.rules.pacing import QUIET_AT_MOST, DumpPlace, End, PacerRecord, Pacing, growing_file, is_due, judge_pacing
from pvehook.settings import PacerConfig, PacerMode

DEADLINE_S = 24 * 3600.0  # most of it can be the wait for the archive: a container's first rsync takes hours
APPEARS_EVERY_S = 0.1  # the file is looked for so often; what was written by then is caught up with, step by step
STOP_WITHIN_S = 1.0
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.005, 0.25
"""Between them a quarter of the time that the last step took. A step that waits for a quiet disk waits the shortest."""

MIB = 1 << 20


class Pacer:
    """One guest's archive. `start` it with the guest's backup, `stop` it when the summary is written."""

    def __init__(
        self, node: Node, reader: TimelyReader, log: Log, backup: Backup, target: str | None, config: PacerConfig
    ) -> None:
        self._node = node
        self._reader = reader
        self._log = log
        self._backup = backup
        self._file = growing_file(target)
        self._record = PacerRecord(config.mode, None, config.step_mib * MIB)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pacer-{backup.vmid}", daemon=True)
        self._until_s = time.monotonic() + DEADLINE_S

    @property
    def record(self) -> PacerRecord:
        """What was done so far; final after `stop`, unless the disk holds the thread: then its end is `blocked`."""
        record = self._record
        if self._stopped.is_set() and self._thread.is_alive() and record.end == "running":
            return record._replace(end="blocked", why="the disk did not take a step in time; left to itself")
        return record

    def start(self) -> None:
        """Returns at once: which disks lie under guest and archive is found out by the thread. Where none can be
        started, the kernel writes back as it always did."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._log.error("fault", message=f"pacer: {error}; the backup goes on", vmid=self._backup.vmid)

    def stop(self) -> None:
        """No step is begun any more. Waits for the one that is, but not for long: the kernel may hold it."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_WITHIN_S)

    def _run(self) -> None:
        end: End = "failed"
        try:
            pacing = decide_pacing(self._node, self._reader, self._backup, self._file, self._record.mode)
            self._record = self._record._replace(pacing=pacing)
            if not pacing.acts or self._file is None:
                return
            end, why = self._pace_file(self._file)
        except NotTheFile as error:
            end, why = "refused", str(error.strerror)
        except OSError as error:
            why = str(error)
        except Exception as fault:  # a fault of ours costs the pacing and nothing else
            why = repr(fault)
            self._log.error("fault", message=f"pacer: {fault!r}; the backup goes on", vmid=self._backup.vmid)
        self._record = self._record._replace(end=end, why=why, cpu_s=time.thread_time())
        if self._record.has_paced or end in ("refused", "failed"):
            self._report()

    def _pace_file(self, name: str) -> tuple[End, str]:
        """As soon as it is there."""
        while not self._is_over():
            try:
                file = GrowingFile(*os.path.split(self._node.path(name)))
            except FileNotFoundError:
                self._stopped.wait(APPEARS_EVERY_S)
                continue
            with closing(file):
                self._record = self._record._replace(end="running", file=name)
                return self._pace(file)
        return ("stopped", "") if self._stopped.is_set() else ("too-long", "no archive was begun")

    def _pace(self, file: GrowingFile) -> tuple[End, str]:
        """Goes on until the archive has its final name, and then through what is left of it."""
        step = self._record.step_bytes
        started = done = 0  # bytes: writeback begun up to here, over up to here
        step_began_s = time.monotonic()
        wait_s = SHORTEST_WAIT_S
        while not self._is_over():
            place = file.place()  # before the size: what is renamed does not grow any more
            size = file.size_bytes()
            if place == "deleted":
                return "deleted", "vzdump threw the archive away"
            behind_bytes = max(size - started, self._record.most_behind_bytes)
            self._record = self._record._replace(most_behind_bytes=behind_bytes)
            due = is_due(size - started, step, place == "elsewhere")
            if due == "now" or (due == "when-quiet" and self._is_disk_quiet()):
                length = min(step, size - started)
                self._take_step(file, (started, length), (done, started - done))
                done, started = started, started + length
                now_s = time.monotonic()
                wait_s = min(max((now_s - step_began_s) / 4, SHORTEST_WAIT_S), LONGEST_WAIT_S)
                step_began_s = now_s
            elif place == "elsewhere":
                self._take_step(file, (size, 0), (done, size - done))
                return "complete", ""
            else:
                self._stopped.wait(SHORTEST_WAIT_S if due == "when-quiet" else wait_s)
        if not self._stopped.is_set():
            return "too-long", "it grew for longer than a day"
        # The last phases may come before the last sample: by then the archive is complete all the same.
        left_bytes = file.size_bytes() - done
        end: End = "complete" if file.place() == "elsewhere" else "stopped"
        return end, f"the last {left_bytes / MIB:.1f} MiB were left to the kernel" if left_bytes else ""

    def _take_step(self, file: GrowingFile, new: tuple[int, int], before: tuple[int, int]) -> None:
        """Each an offset and a length in bytes; a length of 0 is none."""
        began_s = time.monotonic()
        if new[1]:
            file.start_writeback(*new)
        if before[1]:
            file.wait_for_writeback(*before)
        took_s = time.monotonic() - began_s
        if before[1]:
            file.drop_from_cache(*before)
        record = self._record
        self._record = record._replace(
            paced_bytes=record.paced_bytes + before[1],
            steps=record.steps + bool(before[1]),
            blocked_s=record.blocked_s + took_s,
            worst_step_s=max(record.worst_step_s, took_s),
        )

    def _is_disk_quiet(self) -> bool:
        disks = self._record.pacing.disks if self._record.pacing else ()
        return all(requests_in_flight(self._node, disk) <= QUIET_AT_MOST for disk in disks)

    def _is_over(self) -> bool:
        return self._stopped.is_set() or time.monotonic() > self._until_s

    def _report(self) -> None:
        record = self._record
        pacing = record.pacing
        self._log.info(
            "pacer-done",
            message=f"guest {self._backup.vmid}: {in_words(record)}",
            vmid=self._backup.vmid,
            pacer=record.mode,
            reason=pacing.reason if pacing else None,
            reason_detail=pacing.why if pacing else None,
            end=record.end,
            end_detail=record.why or None,
            file=record.file,
            paced_bytes=record.paced_bytes,
            steps=record.steps,
            step_bytes=record.step_bytes,
            blocked_s=round(record.blocked_s, 3),
            worst_step_s=round(record.worst_step_s, 3),
            most_behind_bytes=record.most_behind_bytes,
            cpu_s=round(record.cpu_s, 3),
        )


def in_words(record: PacerRecord) -> str:
    """The record in one sentence, for people."""
    if not record.has_paced:
        why = record.why or (record.pacing.why if record.pacing else "the disks were not found in time")
        return f"the archive's writeback was not paced: {why}"
    text = (
        f"the archive's writeback was paced: {record.paced_bytes / MIB:.0f} MiB in {record.steps} steps of "
        f"{record.step_bytes / MIB:g} MiB, waited {record.blocked_s:.1f} s for the disk, "
        f"at most {record.worst_step_s:.2f} s for a step"
    )
    ended = "" if record.end == "complete" else f"; {record.end}"
    return f"{text}{ended}; {record.why}" if record.why else f"{text}{ended}"


def decide_pacing(node: Node, reader: TimelyReader, backup: Backup, file: str | None, mode: PacerMode) -> Pacing:
    """Finds the disks, each within its time. `file` is the growing archive's path as Proxmox spells it."""
    if mode == "off" or file is None:
        return judge_pacing(mode, file, "not read", "not read")
    try:
        storages = read_storages(node, reader)
        dump = within_look(reader, "the disks under the archive", lambda: _dump_place(node, backup, file, storages))
    except NodeError as error:
        return judge_pacing(mode, file, str(error), "not read")

    try:
        used = [each for each in volumes_of(node, reader, backup) if not each.is_cdrom and each.volume != "none"]
        volumes = within_look(
            reader,
            f"the disks under guest {backup.vmid}",
            lambda: [(each.key, locate_volume(node, each.volume, storages)) for each in used],
        )
    except NodeError as error:
        return judge_pacing(mode, file, dump, str(error))
    return judge_pacing(mode, file, dump, volumes)


def _dump_place(node: Node, backup: Backup, file: str, storages: Sequence[Section]) -> DumpPlace:
    directory = os.path.dirname(file)
    _, mount = follow_links(node.path(directory), read_mounts(node))
    where = locate_dump(node, directory, backup.storeid, storages)
    return DumpPlace(mount.mount_point, mount.fs_type, mount.is_network, mount.is_in_memory, mount.is_fuse, where)
