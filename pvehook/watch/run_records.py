"""What is kept of one run's guests: the history, node_exporter's file, and what the run's table shows.

Every file is read and written within a deadline: a disk that hangs costs a record its place in the history, and no
phase its time.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from pvehook.contract.measured import Broken
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.regular_file import replace_file
from pvehook.host.task_log import why_backup_failed
from pvehook.host.versions import Versions, read_versions
from pvehook.records.attempt import Attempt
from pvehook.records.beside_record import BesideRecord
from pvehook.records.beside_summary import report_suffering
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.history import history_file, last_records, last_samples, past_baselines, reading
from pvehook.records.history_writing import append, append_attempts, append_beside, keep_guests
from pvehook.records.known_guests import KnownGuest
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import Baseline, StallRecord
from pvehook.records.textfile import GuestSamples, Kind, exposition, guest_samples
from pvehook.settings import MetricsConfig
from pvehook.watch.baselines import of_last_backups

T = TypeVar("T")

HISTORY_S = 1.0
"""How long a phase waits for the history's disk. What is not there by then is written all the same, if it can be."""
TEXTFILE_DAYS = 35.0
"""A guest without a backup for so long is gone from node_exporter's file."""


class RunRecords:
    """One run's. No method raises."""

    def __init__(self, context: Context, run: RunState) -> None:
        self.run = run
        self._context = context
        self._path = history_file(context.node)
        self._records: dict[int, StallRecord] = {}
        self._samples: dict[int, GuestSamples] = {}
        self._versions: Versions | None = None

    def past_baseline(self, vmid: int) -> Baseline | None:
        """Of this VM's last backups; None: there is none, or the history does not answer in time."""
        past: list[Baseline] = []
        with contextlib.suppress(NodeError):  # a history that cannot be read is reported where it is written
            past = self._within(Deadline.after(HISTORY_S), self._path, lambda: past_baselines(self._path, vmid))
        return of_last_backups(past)

    def versions(self, deadline: Deadline) -> Versions:
        """Of Proxmox VE and the kernel; read once, they are the same for all guests of a run."""
        if self._versions is None:
            try:
                self._versions = self._within(deadline, "dpkg's status", lambda: read_versions(self._context.node))
            except NodeError as error:
                return Versions(kernel=Broken(str(error)), pve_manager=Broken(str(error)))
        return self._versions

    def of(self, guests: Sequence[GuestRecord], deadline: Deadline) -> dict[int, StallRecord]:
        """By guest, for the run's table. What a daemon that died had made is taken from the history."""
        records = dict(self._records)
        if all(guest.vmid in records or guest.result == "refused" for guest in guests):
            return records
        # The clock may have been set back since the run began.
        since_s = min((self.run.started_s, *(guest.started_s for guest in guests)))
        try:
            kept = self._within(deadline, self._path, lambda: _records_since(self._path, since_s))
        except NodeError:
            return records  # then the table has no figures for them
        return {each.vmid: each for each in kept if each.job == self.run.upid} | records

    def keep(self, record: StallRecord, config: MetricsConfig, deadline: Deadline) -> None:
        """In the history, and for Prometheus. Losing either costs a log line."""
        self._records[record.vmid] = replace(record, points=())  # the chart is for the history alone
        self._samples[record.vmid] = guest_samples(record)
        now_s, days = self._context.clock.now_s(), config.keep_days
        append_it = partial(append, self._path, record, now_s=now_s, keep_days=days)
        self._keep(append_it, now_s, config, deadline, record.vmid)

    def keep_beside(self, records: Sequence[BesideRecord], config: MetricsConfig, deadline: Deadline) -> None:
        """What guests suffered beside the backups of others, at the run's end: also in the journal. As `keep`."""
        if config.mode != "on" or not (records or self.run.began):
            return
        for record in records:
            report_suffering(self._context.log, record)
        now_s, days = self._context.clock.now_s(), config.keep_days
        append_them = partial(append_beside, self._path, records, now_s=now_s, keep_days=days)
        self._keep(append_them, now_s, config, deadline)

    def keep_attempts(self, attempts: Sequence[Attempt], config: MetricsConfig, deadline: Deadline) -> None:
        """Turns of guests, also those that were refused: whatever is measured, who has no backup must be known."""
        now_s, days = self._context.clock.now_s(), config.keep_days
        append_them = partial(append_attempts, self._path, attempts, now_s=now_s, keep_days=days)
        self._append_within(append_them, deadline, attempts[0].vmid if len(attempts) == 1 else None)

    def keep_guests(self, guests: Mapping[int, KnownGuest], config: MetricsConfig, deadline: Deadline) -> None:
        """Which guests the node has, and who of them is overdue; also for Prometheus. As `keep`."""
        now_s, days = self._context.clock.now_s(), config.keep_days
        keep_them = partial(keep_guests, self._path, guests, now_s=now_s, keep_days=days)
        self._keep(keep_them, now_s, config, deadline)

    def why_failed(self, vmid: int, deadline: Deadline) -> str | None:
        """vzdump's own words about it; None: they cannot be read in time."""
        try:
            read = partial(why_backup_failed, self._context.node, self.run.upid, vmid)
            return self._within(deadline, "vzdump's task log", read)
        except NodeError:
            return None

    def _append_within(self, append_it: Callable[[], str | None], deadline: Deadline, vmid: int | None) -> None:
        log = self._context.log
        try:
            news = self._within(deadline, self._path, lambda: self._append(append_it))
            if news is not None:
                log.warning("history-moved", message=news, vmid=vmid)
        except NodeError as error:
            log.error("history-not-kept", message=str(error), vmid=vmid)

    def _keep(
        self,
        append_it: Callable[[], str | None],
        now_s: float,
        config: MetricsConfig,
        deadline: Deadline,
        vmid: int | None = None,
    ) -> None:
        self._append_within(append_it, deadline, vmid)
        if config.textfile is None:
            return
        target = self._context.node.path(config.textfile)
        try:
            self._within(deadline, target, lambda: self._write_textfile(target, now_s))
        except NodeError as error:
            self._context.log.error(
                "textfile-not-written",
                message=f"{config.textfile} was not written: {error}; the service may write below "
                "/var/lib/prometheus/node-exporter, for another directory see the comment at metrics.textfile",
                vmid=vmid,
            )

    def _within(self, deadline: Deadline, what: str, question: Callable[[], T]) -> T:
        """In the history's thread. Raises NodeError for whatever fails or takes too long."""
        try:
            return self._context.readers.history.within(deadline.within(HISTORY_S).left_s(), what, question)
        except OSError as error:
            raise NodeError(str(error)) from error

    def _append(self, append_it: Callable[[], str | None]) -> str | None:
        os.makedirs(self._context.node.state_dir, mode=0o700, exist_ok=True)
        return append_it()

    def _write_textfile(self, target: str, now_s: float) -> None:
        """With a history that cannot be read there are at least the backups of this run."""
        try:
            own, beside, standing = last_samples(self._path, now_s - TEXTFILE_DAYS * 86400, now_s)
        except NodeError:
            own, beside, standing = {}, {}, {}
        text = exposition(own | self._samples, beside, standing, _guests_of(self._context.node))
        replace_file(target, text, mode=0o644)  # node_exporter runs as a user of its own


def _records_since(path: str, since_s: float) -> list[StallRecord]:
    with reading(path) as history:
        return last_records(history, since_s)


def _guests_of(node: Node) -> dict[int, Kind]:
    """The guests that this node has, by their configurations' names. May hang, as all of /etc/pve may."""
    kinds: tuple[tuple[str, Kind], ...] = (("qemu-server", "qemu"), ("lxc", "lxc"))
    return {
        int(name.removesuffix(".conf")): kind
        for directory, kind in kinds
        for name in os.listdir(node.path(f"/etc/pve/{directory}"))
        if re.fullmatch(r"[1-9][0-9]{2,8}\.conf", name)
    }
