"""What one job sees of its guests, and what it keeps of that: the history and node_exporter's file.

    job-start       the running VMs' baselines begin (baselines.py)
    backup-start    a guest's night begins (guest_night.py), and its archive's pacing (pacer.py)
    log-end         its record: judged, kept in the history, told to the journal by job.py
    job-end         what is still armed is removed

Every file lies behind a deadline: a disk that hangs costs a record its place in the history, and no phase its time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pvehook.contract.latency import DiskCounters
from pvehook.contract.measured import Broken, Measured
from pvehook.errors import NodeError
from pvehook.host.atomic_file import replace_file
from pvehook.host.timely_files import TimelyReader
from pvehook.host.versions import Versions, read_versions
from pvehook.host.volumes import Backup
from pvehook.records.history import append, last_records, past_baselines, reading
from pvehook.records.stall_record import Baseline, StallRecord
from pvehook.records.textfile import write_textfile
from pvehook.rules.admission import WINDOW_OPEN
from pvehook.rules.window import window_state
from pvehook.throttle.governor import Governor
from pvehook.throttle.governor_setup import look_up
from pvehook.throttle.pacer import Pacer
from pvehook.watch.backup_record import backup_record, shares_disk
from pvehook.watch.backup_sampler import BackupSampler
from pvehook.watch.baselines import Baselines

if TYPE_CHECKING:
    from pvehook.config.in_force import InForce
    from pvehook.host.node import Node
    from pvehook.records.context import Context
    from pvehook.records.guest_record import GuestRecord
    from pvehook.records.journal import Log
    from pvehook.records.run_state import RunState
    from pvehook.settings import MetricsConfig

LAST_LOOK_S = 4.5
"""How long log-end waits for a guest's last look: 2 s for QEMU, 2 s for the guest, if both hang."""
HISTORY_S = 1.0
"""How long a phase waits for the history's disk. What is not there by then is written all the same, if it can be."""
TEXTFILE_DAYS = 35.0
"""A guest without a backup for so long is gone from node_exporter's file."""


def history_file(node: Node) -> str:
    """Where the nights are kept."""
    return os.path.join(node.state_dir, "history.db")


class GuestMonitor:
    """One job's. Every method is quick or has a deadline, and none raises."""

    def __init__(self, context: Context, job: RunState, log: Log) -> None:
        self._context = context
        self._job = job
        self._log = log
        # Their own: the history's disk may hang, and so may the disks under a guest; configuration waits for neither.
        self._files = TimelyReader()
        self._disks = TimelyReader()
        self._baselines = Baselines(context.node, job)
        self._config: MetricsConfig | None = None
        self._guest: GuestRecord | None = None
        self._night: BackupSampler | None = None
        self._pacer: Pacer | None = None
        self._records: dict[int, StallRecord] = {}

    # What the phases call

    def job_started(self, in_force: InForce) -> None:
        """The node's lock is ours: the guests that will come can be looked at before their turn."""
        if in_force.config.metrics.mode == "on":
            self._baselines.begin()

    def guest_started(self, guest: GuestRecord, in_force: InForce) -> None:
        """Its night begins; also for a daemon that was restarted in the middle of it."""
        self.put_down()  # of a guest whose end nobody announced: nothing of it may go on
        config = in_force.config
        self._guest, self._config = guest, config.metrics
        backup = Backup(guest.vmid, guest.vmtype, guest.mode, self._job.storeid, self._job.dumpdir)
        pacer = self._pacer = Pacer(
            self._context.node, self._disks, self._log, backup, guest.target, config.pacer.mode, config.pacer.step_mib
        )
        pacer.start()
        if config.metrics.mode == "on":
            self._baselines.taken(guest.vmid)
            self._night = BackupSampler(
                self._context,
                guest,
                config.metrics,
                self._governor_of(guest, in_force),
                lambda disks: self._baseline_of(guest.vmid, disks),
                lambda: shares_disk(pacer.record),
                self._log,
            )
            self._night.begin()

    def read_guest_counters(self) -> None:
        """pre-stop: the guest's own counters, while nobody needs its agent."""
        if self._night is not None:
            self._night.read_guest_counters()

    def archive_begins(self) -> None:
        """post-restart: from here on PVE may freeze."""
        if self._night is not None:
            self._night.archive_begins()

    def archive_over(self) -> None:
        """backup-end, backup-abort: the last look is taken while vzdump goes on."""
        if self._night is not None:
            self._night.finish()

    def summary(self, guest: GuestRecord) -> StallRecord | None:
        """log-end: the guest's record, kept in the history. None: it was not looked at."""
        if self._guest is not guest:
            return None
        night, pacer = self._night, self._pacer
        self._guest = self._night = self._pacer = None
        guest.seen = None
        if pacer is not None:
            pacer.stop()
        views = night.views(LAST_LOOK_S) if night is not None else None
        if views is None or pacer is None or guest.result == "refused":
            return None
        record = backup_record(self._job, guest, views, pacer.record, self._versions())
        self._records[guest.vmid] = record
        self._keep(record)
        return record

    def records_of(self, guests: Iterable[GuestRecord]) -> dict[int, StallRecord]:
        """By guest, for the job's table. What a daemon that died had made is taken from the history."""
        path, records = history_file(self._context.node), dict(self._records)
        if all(guest.vmid in records or guest.result == "refused" for guest in guests):
            return records
        try:
            for each in self._files.within(HISTORY_S, path, lambda: _records_since(path, self._job.started_s)):
                if each.job == self._job.upid:
                    records.setdefault(each.vmid, each)
        except (NodeError, OSError):
            pass  # then the table has no figures for them
        return records

    def job_ends(self) -> None:
        """What is armed on guests whose turn did not come is removed."""
        self._baselines.end()

    def put_down(self) -> None:
        """The daemon leaves while the job runs; the next one goes on from the job's record. The speed is put back."""
        if self._night is not None:
            self._night.put_down()
        if self._pacer is not None:
            self._pacer.stop()

    # Helpers

    def _governor_of(self, guest: GuestRecord, in_force: InForce) -> Governor | None:
        """None for a container, whose reading has no speed that could be set."""
        if guest.vmtype == "lxc":
            return None
        node, config = self._context.node, in_force.config.governor
        governed = look_up(node, self._context.reader, config, guest.vmid, guest.name, self._job.job_id)
        now_s = self._context.clock.now_s()
        state = window_state(in_force.window, datetime.fromtimestamp(now_s, in_force.window.zone))
        left_s = state.closes_at.timestamp() - now_s if state.closes_at is not None else None
        minds = guest.admitted_by == WINDOW_OPEN and left_s is not None
        return Governor(
            node,
            guest.vmid,
            governed.mode,
            config,
            self._log,
            setup=governed.setup,
            window_closes_s=time.monotonic() + left_s if minds and left_s is not None else None,
            since_start_s=max(now_s - guest.started_s, 0.0),
            picked_up=guest.seen is not None,
        )

    def _baseline_of(self, vmid: int, disks: Sequence[DiskCounters]) -> Measured[Baseline]:
        path = history_file(self._context.node)
        past: list[Baseline] = []
        try:
            past = self._files.within(HISTORY_S, path, lambda: past_baselines(path, vmid))
        except (NodeError, OSError):
            pass  # a history that cannot be read tells nothing of the past, and is reported where it is written
        return self._baselines.of(vmid, disks, past)

    def _versions(self) -> Versions:
        try:
            return self._files.within(HISTORY_S, "dpkg's status", lambda: read_versions(self._context.node))
        except (NodeError, OSError) as error:
            return Versions(kernel=Broken(str(error)), pve_manager=Broken(str(error)))

    def _keep(self, record: StallRecord) -> None:
        """In the history, and for Prometheus. Losing either costs a log line."""
        assert self._config is not None  # noqa: S101  (set when the guest's night began)
        path, now_s = history_file(self._context.node), self._context.clock.now_s()
        keep_days, textfile = self._config.keep_days, self._config.textfile
        try:
            os.makedirs(self._context.node.state_dir, mode=0o700, exist_ok=True)
            news = self._files.within(HISTORY_S, path, lambda: append(path, record, now_s=now_s, keep_days=keep_days))
            if news is not None:
                self._log.warning("history-moved", message=news, vmid=record.vmid)
        except (NodeError, OSError) as error:
            self._log.error("history-not-kept", message=str(error), vmid=record.vmid)
        if textfile is None:
            return
        target = self._context.node.path(textfile)
        try:
            self._files.within(HISTORY_S, target, lambda: self._write_textfile(target, path, record, now_s))
        except (NodeError, OSError) as error:
            self._log.error(
                "textfile-not-written",
                message=f"{textfile} was not written: {error}; the service may write below "
                "/var/lib/prometheus/node-exporter, for another directory see the comment at metrics.textfile",
                vmid=record.vmid,
            )

    def _write_textfile(self, target: str, history_path: str, record: StallRecord, now_s: float) -> None:
        """In the files' thread. With a history that cannot be read there is at least tonight."""
        records: list[StallRecord] = []
        try:
            records = _records_since(history_path, now_s - TEXTFILE_DAYS * 86400)
        except NodeError:
            pass
        there = _guests_of(self._context.node)
        records = [each for each in records if each.vmid not in self._records]
        write_textfile(target, [*records, *self._records.values(), record], there, _replace_readable)


def _records_since(path: str, since_s: float) -> list[StallRecord]:
    with reading(path) as history:
        return last_records(history, since_s)


def _guests_of(node: Node) -> set[int]:
    """The guests that this node has, by their configurations' names. May hang, as all of /etc/pve may."""
    names = [name for kind in ("qemu-server", "lxc") for name in os.listdir(node.path(f"/etc/pve/{kind}"))]
    return {int(name.removesuffix(".conf")) for name in names if re.fullmatch(r"[1-9][0-9]{2,8}\.conf", name)}


def _replace_readable(path: str, text: str) -> None:
    replace_file(path, text, mode=0o644)  # node_exporter runs as a user of its own
