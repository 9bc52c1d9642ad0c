"""Everything that watches one guest's backup, what acts on what it sees, and the record that is made of it.

begin                   the sampler's thread, the pacer's thread, the governor on the sampler's connection; the other
                        guests of the node are watched beside it from here on (node_watch.py)
read_guest_counters     pre-stop, while nobody needs the agent
archive_begins          PVE may freeze from here on
finish                  backup-end: the last sample is taken while vzdump goes on
record                  log-end: judged and kept
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pvehook.config.in_force import InForce
from pvehook.contract.block_job import BlockJob
from pvehook.contract.measured import Absent, Broken, value_of
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.qmp import QmpConnection
from pvehook.host.clock import at
from pvehook.host.timely_files import TimelyReader
from pvehook.host.versions import Versions as NodeVersions
from pvehook.records.context import Context
from pvehook.records.guest_record import FreezeSummary, GuestRecord
from pvehook.records.stall_record import FreezeOutcome, IdlePriority, PacerSummary, StallRecord, Versions
from pvehook.rules.admission import WINDOW_OPEN
from pvehook.rules.governor_readings import NOTHING_KNOWN, NightShare
from pvehook.rules.pacing import PacerRecord
from pvehook.rules.stalls import Seen, judge
from pvehook.rules.window import window_state
from pvehook.throttle.governor import Governor
from pvehook.throttle.governor_setup import look_up
from pvehook.throttle.pacer import Pacer
from pvehook.throttle.pacer import in_words as pacer_in_words
from pvehook.watch.backup_sampler import BackupSampler, Views
from pvehook.watch.node_watch import NodeWatch
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
        watch: NodeWatch,
        disks: TimelyReader,
        guest: GuestRecord,
        in_force: InForce,
        pve_may_freeze: Callable[[], bool],
        night: NightShare = NOTHING_KNOWN,
    ) -> None:
        """`pve_may_freeze`: whether agent and monitor belong to PVE and the freeze now."""
        self._context = context
        self._records = records
        self._watch = watch
        self._guest = guest
        self._metrics = in_force.config.metrics
        self._rules = in_force.config.governor
        self._night = night
        backup = records.run.backup_of(guest)
        self._pacer = Pacer(context.node, disks, context.log, backup, guest.target, in_force.config.pacer)
        self._governor: Governor | None = None
        self._sampler: BackupSampler | None = None
        now = at(context.clock, in_force.window.zone)
        closes_at = window_state(in_force.window, now).closes_at if guest.admitted_by == WINDOW_OPEN else None
        self._window_closes_s = closes_at.timestamp() if closes_at is not None else None
        if self._metrics.mode == "on":
            self._governor = self._governor_of(in_force)
            self._sampler = BackupSampler(
                context,
                guest,
                self._metrics,
                self._governor,
                lambda counters: watch.baseline_of(guest.vmid, counters, records.past_baseline(guest.vmid)),
                lambda counters: watch.requests_before(guest.vmid, counters),
                pve_may_freeze,
            )

    def begin(self) -> None:
        """Also for a daemon that was restarted in the middle of it. Returns at once."""
        self._pacer.start()
        if self._sampler is not None:
            self._sampler.begin()
            self._watch.load_begins(self._guest, self._governor, self._sampler.wake, self._rules)

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
            self._context.log.error("fault", message=f"first limit: {fault!r}", vmid=self._guest.vmid)

    def finish(self) -> None:
        """The backup is over. Returns at once."""
        if self._governor is not None:
            self._governor.know_archive(shares_disk(self._pacer.record))
        if self._sampler is not None:
            self._watch.load_ends(self._guest.vmid)
            self._sampler.finish()

    def record(self, deadline: Deadline) -> StallRecord | None:
        """The guest's record, kept in the history. None: metrics are off."""
        self._guest.seen = None
        self._pacer.stop()
        if self._sampler is None:
            return None
        views = self._sampler.views(min(deadline.left_s() - KEEP_S, LAST_SAMPLE_S))
        if views is None:
            return None
        versions = self._records.versions(deadline)
        record = _record(
            self._records.run.upid, self._guest, views, self._pacer.record, versions, self._window_closes_s
        )
        self._records.keep(record, self._metrics, deadline)
        return record

    def leave(self) -> None:
        """The daemon leaves while the backup runs; the next one goes on from the run's record. The speed is
        restored."""
        if self._sampler is not None:
            self._watch.load_ends(self._guest.vmid)
            self._sampler.leave()
        self._pacer.stop()

    def _governor_of(self, in_force: InForce) -> Governor | None:
        """None for a container, whose reading has no speed that could be set."""
        guest = self._guest
        if guest.vmtype == "lxc":
            return None
        node, reader, config = self._context.node, self._context.readers.config, in_force.config.governor
        mode, setup = look_up(node, reader, config, guest.vmid, guest.name, self._records.run.job_id)
        since_start_s = max(self._context.clock.steady_s() - guest.started_steady_s, 0.0)
        closes_s: float | None = None
        if self._window_closes_s is not None:
            closes_s = time.monotonic() + self._window_closes_s - self._context.clock.now_s()
        governor = Governor(
            node,
            guest.vmid,
            mode,
            config,
            self._context.log,
            setup=setup,
            window_closes_s=closes_s,
            night=self._night,
            picked_up_s=since_start_s if guest.seen is not None else None,
        )
        if guest.mode == "suspend":  # PVE resumes it when its archive is written
            governor.know_paused()
        return governor


def shares_disk(paced: PacerRecord) -> bool | None:
    """Whether archive and guest are on one disk, as far as the pacer knows."""
    known = {"shared-disk": True, "no-shared-disk": False, "network": False}
    return known.get(paced.pacing.reason) if paced.pacing is not None else None


def _record(
    upid: str,
    guest: GuestRecord,
    views: Views,
    paced: PacerRecord,
    versions: NodeVersions,
    window_closes_s: float | None,
) -> StallRecord:
    """What was sampled and what was done, with the verdict on it. `guest` has ended."""
    ended_s = guest.ended_s if guest.ended_s is not None else guest.started_s
    baseline = value_of(views.baseline)
    verdict = judge(
        Seen(
            duration_s=ended_s - guest.started_s,
            vcpus=len(views.disks.vcpus) if views.disks is not None else 1,
            guest=views.guest,
            hypervisor=views.hypervisor,
            host=views.host,
            frozen_ms=guest.freeze.frozen_ms if guest.freeze is not None else None,
            shares_disk=shares_disk(paced),
            baseline_write_ms=baseline.write.mean_ms if baseline is not None else None,
        )
    )
    return StallRecord(
        node=os.uname().nodename,
        job=upid,
        vmid=guest.vmid,
        name=guest.name,
        vmtype=guest.vmtype,
        mode=guest.mode,
        result=guest.result,
        started_s=guest.started_s,
        ended_s=ended_s,
        backup_bytes=views.backup_bytes,
        verdict=verdict,
        guest=views.guest,
        hypervisor=views.hypervisor,
        host=views.host,
        baseline=views.baseline,
        points=views.points,
        freeze=_freeze(guest.freeze, guest.started_s),
        idle=IdlePriority(
            threads=sum(each[1] for each in guest.idle.values()),
            confirmed=sum(each[2] for each in guest.idle.values()),
            effect=guest.effect_in_short,
        ),
        governor=views.governor,
        pacer=PacerSummary(
            mode=paced.mode,
            state="paced" if paced.has_paced and paced.end == "complete" else pacer_in_words(paced),
            paced_bytes=paced.paced_bytes,
            step_bytes=paced.step_bytes,
            waited_s=paced.blocked_s,
        ),
        admitted_by=guest.admitted_by,
        versions=Versions(
            pve_manager=value_of(versions.pve_manager),
            qemu=views.disks.qemu if views.disks is not None else None,
            kernel=value_of(versions.kernel),
        ),
        sampler_cpu_s=views.cpu_s,
        window_closes_s=window_closes_s,
    )


def _freeze(freeze: FreezeSummary | None, started_s: float) -> FreezeOutcome | None:
    if freeze is None:
        return None
    at_s = freeze.frozen_at_s - started_s if freeze.frozen_at_s is not None else None
    if at_s is not None and at_s < 0:
        at_s = None  # the clock was set
    partly = freeze.mountpoints if freeze.consistency == "partly-consistent" else None
    listed = tuple(partly) if partly is not None else None
    return FreezeOutcome(freeze.action, freeze.consistency, freeze.frozen_ms, freeze.why, at_s, listed)
