"""Everything that watches one guest's backup, and what acts on what it sees.

begin                   the sampler's thread, the pacer's thread, the governor on the sampler's connection
read_guest_counters     pre-stop, while nobody needs the agent
archive_begins          PVE may freeze from here on
finish                  backup-end: the last sample is taken while vzdump goes on
record                  log-end: judged and kept
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from pvehook.config.in_force import InForce
from pvehook.contract.block_job import BlockJob
from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.qmp import QmpConnection
from pvehook.host.timely_files import TimelyReader
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.stall_record import StallRecord
from pvehook.rules.admission import WINDOW_OPEN
from pvehook.rules.window import window_state
from pvehook.throttle.governor import Governor
from pvehook.throttle.governor_setup import look_up
from pvehook.throttle.pacer import Pacer
from pvehook.watch.backup_record import backup_record, shares_disk
from pvehook.watch.backup_sampler import BackupSampler
from pvehook.watch.run_records import RunRecords

LAST_SAMPLE_S = 4.5
"""How long log-end waits for a guest's last sample, if QEMU and the guest hang."""
KEEP_S = 2.0
"""Of log-end's time, what is kept back for writing the record. A last sample that is not there by then is left out."""


class GuestMonitor:
    """One guest's. Every method is quick or has a deadline, and none raises."""

    def __init__(
        self,
        context: Context,
        records: RunRecords,
        disks: TimelyReader,
        guest: GuestRecord,
        in_force: InForce,
        pve_may_freeze: Callable[[], bool],
    ) -> None:
        """`pve_may_freeze`: whether agent and monitor belong to PVE and the freeze now."""
        self._context = context
        self._records = records
        self._guest = guest
        self._metrics = in_force.config.metrics
        pacer = self._pacer = Pacer(
            context.node,
            disks,
            records.log,
            records.run.backup_of(guest),
            guest.target,
            in_force.config.pacer.mode,
            in_force.config.pacer.step_mib,
        )
        self._has_pacer = True
        self._governor = self._governor_of(in_force) if self._metrics.mode == "on" else None
        self._sampler: BackupSampler | None = None
        if self._metrics.mode == "on":
            self._sampler = BackupSampler(
                context,
                guest,
                self._metrics,
                self._governor,
                lambda counters: records.baseline_of(guest.vmid, counters),
                lambda: shares_disk(pacer.record),
                pve_may_freeze,
                records.log,
            )

    def begin(self) -> None:
        """Also for a daemon that was restarted in the middle of it. Returns at once."""
        try:
            self._pacer.start()
        except RuntimeError as error:  # no thread could be started; the kernel writes back as it always did
            self._has_pacer = False
            self._records.log.error("fault", message=f"pacer: {error}; the backup goes on", vmid=self._guest.vmid)
        if self._sampler is not None:
            self._records.baselines.taken(self._guest.vmid)
            self._sampler.begin()

    def read_guest_counters(self, deadline: Deadline, silent_agent: Absent | Broken | None) -> None:
        """The guest's own counters, now. A silent agent is not asked a second time."""
        if self._sampler is not None:
            self._sampler.read_guest_counters(deadline, silent_agent)

    def archive_begins(self) -> None:
        """From here on PVE may freeze, and the backup's job may come."""
        if self._sampler is not None:
            self._sampler.archive_begins()

    def limit_backup(self, qmp: QmpConnection, jobs: tuple[BlockJob, ...], deadline: Deadline) -> None:
        """The governor's first limit, on the connection of the freeze, which sees the jobs before the sampler does."""
        try:
            if self._governor is not None:
                self._governor.backup_begins(qmp, jobs, deadline)
        except GuestError:
            pass  # the sampler sets it, after the thaw
        except Exception as fault:  # a fault of ours costs the first limit, never the thaw
            self._records.log.error("fault", message=f"first limit: {fault!r}", vmid=self._guest.vmid)

    def finish(self) -> None:
        """The backup is over. Returns at once."""
        if self._sampler is not None:
            self._sampler.finish()

    def record(self, deadline: Deadline) -> StallRecord | None:
        """The guest's record, kept in the history. None: metrics are off."""
        self._guest.seen = None
        if self._has_pacer:
            self._pacer.stop()
        if self._sampler is None:
            return None
        views = self._sampler.views(min(deadline.left_s() - KEEP_S, LAST_SAMPLE_S))
        if views is None:
            return None
        versions = self._records.versions(deadline)
        record = backup_record(self._records.run, self._guest, views, self._pacer.record, versions)
        self._records.keep(record, self._metrics, deadline)
        return record

    def leave(self) -> None:
        """The daemon leaves while the backup runs; the next one goes on from the run's record. The speed is
        restored."""
        if self._sampler is not None:
            self._sampler.leave()
        if self._has_pacer:
            self._pacer.stop()

    def _governor_of(self, in_force: InForce) -> Governor | None:
        """None for a container, whose reading has no speed that could be set."""
        guest = self._guest
        if guest.vmtype == "lxc":
            return None
        node, config = self._context.node, in_force.config.governor
        mode, setup = look_up(node, self._context.reader, config, guest.vmid, guest.name, self._records.run.job_id)
        now_s = self._context.clock.now_s()
        closes_s: float | None = None
        state = window_state(in_force.window, datetime.fromtimestamp(now_s, in_force.window.zone))
        if guest.admitted_by == WINDOW_OPEN and state.closes_at is not None:
            closes_s = time.monotonic() + state.closes_at.timestamp() - now_s
        return Governor(
            node,
            guest.vmid,
            mode,
            config,
            self._records.log,
            setup=setup,
            window_closes_s=closes_s,
            since_start_s=max(self._context.clock.steady_s() - guest.started_steady_s, 0.0),
            picked_up=guest.seen is not None,
        )
