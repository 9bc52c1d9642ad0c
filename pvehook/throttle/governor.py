"""The governor's hand: does what rules/governor.py finds ready, on the connection of one of the sampler's samples.

know_patient, take    who else may suffer from this backup, and what is seen of them; from the node's watching thread
act       persist, then set, then report; a record that cannot be written, or a speed that QEMU keeps refusing, ends it
release   the backup is over, or nobody samples it any more: the original speed
summary   what was done, for the guest's record
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pvehook.contract.block_job import BlockJob, DiskSample
from pvehook.contract.measured import Measured, value_of
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import NotActive, Refused
from pvehook.guest.qmp import QmpConnection
from pvehook.host.node import Node
from pvehook.records.journal import Log
from pvehook.records.stall_record import Baseline, GovernorSummary, SpeedPoint
from pvehook.rescue.speed_record import SpeedRecord, read_record, remove_record, restore_speed, write_record
from pvehook.rules import governor as rule
from pvehook.rules.governor_constants import ACTIVITY_S, SAMPLE_EVERY_S, TAKES_OVER_ABOVE, UNLIMITED
from pvehook.rules.governor_policy import Setup, advice
from pvehook.rules.governor_readings import (
    NOTHING_KNOWN,
    Bounds,
    NightShare,
    effective_latency_ms,
    in_mb_per_s,
    target_ms,
)
from pvehook.rules.governor_state import Action
from pvehook.rules.latency import NS_PER_MS, disks_between
from pvehook.rules.patients import PatientSample
from pvehook.rules.steering import OWN, Patient, Steering, look_every_s
from pvehook.settings import GovernorConfig, GovernorMode

RELEASE_S: Final = 1.5  # a phase waits for it; what is not restored by then is reported, and its record stays
POINTS_KEPT: Final = 200
REASONS_KEPT: Final = 12
EVENTS_KEPT: Final = 20  # a guest that suffers on and off all night has its summary, and not an event per minute
MAX_REFUSALS: Final = 3
NAME_CHARACTERS: Final = 40
LOCK_S: Final = 0.05  # for the first limit, while the guest is frozen


class Governor:
    """One guest's backup: `act` at each sample, `release` when it is over."""

    def __init__(
        self,
        node: Node,
        vmid: int,
        mode: GovernorMode,
        config: GovernorConfig,
        log: Log,
        *,
        setup: Setup,
        window_closes_s: float | None = None,
        night: NightShare = NOTHING_KNOWN,
        picked_up_s: float | None = None,
    ) -> None:
        """`window_closes_s` is on the monotonic clock. `picked_up_s`: the daemon was restarted so long after this
        backup's start, which is not to begin slowly again."""
        self._node = node
        self._vmid = vmid
        self._mode = mode
        self._config = config
        self._log = log
        self._setup = setup
        self._since_start_s = picked_up_s or 0.0
        self._bounds = Bounds(
            target_ms=self._target_ms(None),
            original_bytes_per_s=UNLIMITED,
            stretch_at_most=config.stretch_at_most,
            starts_slowly=picked_up_s is None,
            window_closes_s=window_closes_s,
            night=night,
        )
        itself = Patient(self._bounds.target_ms, is_spared=False)
        steering = Steering() if setup.is_spared else Steering({OWN: itself})
        self._governor = rule.Governor(acts=mode == "on", steering=steering)
        self._lock = threading.Lock()  # `backup_begins` is called by another thread than `act`
        self._news: deque[Callable[[Steering], Steering]] = deque()  # of patients, while `act` has the lock
        self._is_released = mode == "off"
        self._picked_up = picked_up_s is not None
        self._last: DiskSample | None = None
        self._knows_activity = mode == "off" or self._picked_up  # then it begins as it is
        self._seen_s = self._seen_ms = 0.0
        self._seen_operations = 0
        self._inherited: rule.Speeds | None = None
        self._refusals = 0
        self._first_s: float | None = None
        self._events = 0
        self._reasons: list[str] = []
        self._points: list[SpeedPoint] = []
        self._point_every_s = 0.0

    @property
    def sample_every_s(self) -> float:
        """How soon it would like the next sample."""
        return SAMPLE_EVERY_S if self._mode == "off" else self._governor.sample_every_s

    @property
    def knows_guest(self) -> bool:
        """Whether it knows how busy the guest is without a backup."""
        return self._knows_activity or self._seen_s >= ACTIVITY_S

    def know_baseline(self, baseline: Measured[Baseline]) -> None:
        """How the guest was before its backup, or before its last ones."""
        before = value_of(baseline)
        if before is None:
            if not self._knows_activity:  # its disks have not been used since it was started
                self._bounds = self._bounds.with_activity(0, 0.0, 1.0)
            return
        self._bounds = self._bounds._replace(target_ms=self._target_ms(before))
        if before.source != "since-start":
            self.know_activity(*_requests_before(before), before.lasted_s)

    def know_activity(self, operations: int, total_ms: float, seconds: float) -> None:
        """How much the guest asked its disks before its backup. What is told first counts."""
        if not self._knows_activity and seconds >= ACTIVITY_S:
            self._bounds = self._bounds.with_activity(operations, total_ms, seconds)
            self._knows_activity = True

    def know_paused(self) -> None:
        """It stands still while its archive is written: nothing of it has to wait for the backup."""
        self.know_activity(0, 0.0, ACTIVITY_S)

    def know_archive(self, shares_disk: bool | None) -> None:
        """Whether the archive is written to a disk of the guest's, once that is known: for the advice."""
        self._setup = self._setup._replace(shares_disk=shares_disk)

    # Those beside it

    @property
    def steers(self) -> int | None:
        """The patient by which the backup is steered now; None: the guest in backup itself."""
        by = self._governor.steering.by
        return by if by != OWN else None

    @property
    def is_slowed(self) -> bool:
        """Whether the backup is slowed now because somebody suffers."""
        law = self._governor.law
        return law is not None and law.is_throttled

    def know_patient(
        self,
        vmid: int,
        name: str | None,
        before: Measured[Baseline],
        requests_before: tuple[int, float, float] | None,
    ) -> None:
        """A running guest that shares disks with this backup, or may do so: how it was before, and how many requests it
        made in how many milliseconds and seconds, where that is known."""
        baseline = value_of(before)
        if requests_before is None and baseline is not None and baseline.source != "since-start":
            requests_before = *_requests_before(baseline), baseline.lasted_s
        activity = Bounds(0.0, 0, 1.0, starts_slowly=False)
        if requests_before is not None and requests_before[2] >= ACTIVITY_S:
            activity = activity.with_activity(*requests_before)
        name = printable(name, NAME_CHARACTERS) if name else None
        patient = Patient(self._target_ms(baseline), name, activity.was_idle, is_busy=activity.starts_slowly)
        self._tell(lambda steering: steering.with_patient(vmid, patient))

    def forget_patient(self, vmid: int) -> None:
        """It was stopped or is gone, or nothing can be seen of it."""
        self._tell(lambda steering: steering.without(vmid))

    def take(self, sample: PatientSample) -> bool:
        """One look at a patient. True: the backup's speed may have to be changed for it, so `act` is wanted soon."""
        self._tell(lambda steering: steering.seen(sample))
        if self._is_released or self._governor.law is None:
            return False
        steering = self._governor.steering
        patient = steering.patients.get(sample.vmid)
        if patient is None or not patient.is_spared:
            return False
        return sample.vmid == steering.by or patient.need > TAKES_OVER_ABOVE

    def standing(self, vmid: int) -> tuple[float, bool] | None:
        """A patient's target in milliseconds, and whether it is put aside now because slowing the backup did not help
        it; None: it was not made known."""
        patient = self._governor.steering.patients.get(vmid)
        if patient is None:
            return None
        return patient.target_ms, time.monotonic() < patient.aside_until_s

    def look_every_s(self, vmid: int) -> float:
        """How soon it would like the next look at this patient."""
        return look_every_s(self._governor.steering, vmid, self._governor.law)

    def _tell(self, news: Callable[[Steering], Steering]) -> None:
        """The watching thread must not wait for `act`, which may wait for QEMU: then `act` takes it with its next."""
        self._news.append(news)
        if self._lock.acquire(blocking=False):
            try:
                self._take_news()
            finally:
                self._lock.release()

    def _take_news(self) -> None:
        steering = self._governor.steering
        while self._news:
            steering = self._news.popleft()(steering)
        self._governor = self._governor._replace(steering=steering)

    def act(self, qmp: QmpConnection, sample: DiskSample, deadline: Deadline) -> None:
        """One sample, on its own connection. Raises GuestError where QEMU does not answer."""
        with self._lock:
            self._note_activity(sample)
            self._step(qmp, sample, deadline)

    def backup_begins(self, qmp: QmpConnection, jobs: tuple[BlockJob, ...], deadline: Deadline) -> None:
        """The first limit, on the connection of whoever sees the jobs first: the freeze's thread, before the thaw.
        What the workers send until a limit is set stands in front of what waited in the guest meanwhile."""
        if self._lock.acquire(timeout=LOCK_S):  # else the sampler is at it
            try:
                self._step(qmp, DiskSample(time.monotonic(), self._last.disks if self._last else (), jobs), deadline)
            finally:
                self._lock.release()

    def _step(self, qmp: QmpConnection, sample: DiskSample, deadline: Deadline) -> None:
        if self._is_released:
            return
        if self._inherited is None:
            left = read_record(self._node, self._vmid)
            self._inherited = rule.Speeds(left.original, left.ours) if left is not None else rule.NOTHING_SET
        self._take_news()
        was = self._governor
        self._governor, ready = rule.step(was, sample, self._bounds, self._inherited)
        try:
            self._persist(ready.persist)
        except OSError as error:  # nobody could restore the speed if we died, so it is not set
            self._governor = self._governor._replace(is_recorded=was.is_recorded)
            self._stop(f"its backup is not slowed, the record cannot be written: {error}")
            return
        for device, bytes_per_s in ready.set.items():
            try:
                qmp.set_job_speed(device, bytes_per_s, deadline)
            except NotActive:
                continue  # it has ended since the sample: the normal end
            except Refused as refusal:
                self._refusals += 1
                if self._refusals == MAX_REFUSALS:
                    self._stop(f"QEMU refused the backup's speed {self._refusals} times: {refusal}")
        for report in ready.report:
            self._report(report)
        self._point(sample.at_s)

    def release(self) -> None:
        """The original speed, if there still is a job. From here on nothing is set any more."""
        with self._lock:
            self._is_released = True
        if self._governor.is_recorded:
            done = restore_speed(self._node, self._vmid, RELEASE_S)
            if done is not None and not done.done:
                self._log.error("governor-not-restored", message=done.text, vmid=self._vmid)
        if self._governor.law is not None and self._governor.suffered:
            summary = self.summary()
            self._log.info(
                "governor-done",
                message=f"VM {self._vmid}: {_in_words(summary, OWN in self._governor.suffered)}",
                vmid=self._vmid,
                mode=summary.mode,
                slowed_s=round(summary.slowed_s, 1),
                cost_s=round(summary.cost_s, 1),
                least_bytes_per_s=summary.least_bytes_per_s,
                target_ms=summary.target_ms,
                beside=list(summary.beside) or None,
                advice=list(summary.advice) or None,
            )
        self._governor = self._governor._replace(law=None, last=None, is_recorded=False)

    def summary(self) -> GovernorSummary:
        """What was done."""
        done = self._governor
        return GovernorSummary(
            mode=self._mode,
            slowed_s=done.slowed_s,
            cost_s=done.cost_s,
            least_bytes_per_s=done.lowest_bytes_per_s,
            target_ms=self._bounds.target_ms if done.jobs_changed_s is not None else None,
            reasons=tuple(self._reasons),
            beside=tuple(sorted(done.suffered - {OWN})),
            advice=advice(self._vmid, self._setup, done.culprit) if done.suffered else (),
            speeds=tuple(self._points),
        )

    def _note_activity(self, sample: DiskSample) -> None:
        """The first guest of a run has no baseline that tells how often it asked: its samples before the backup do."""
        last, self._last = self._last, sample
        if self._knows_activity or last is None or self._governor.law is not None:
            return
        kinds = disks_between(last.disks, sample.disks).values()
        self._seen_s += sample.at_s - last.at_s
        self._seen_operations += sum(each.operations for each in kinds)
        self._seen_ms += sum(each.total_time_ns for each in kinds) / NS_PER_MS
        if self._seen_s >= ACTIVITY_S:
            self._bounds = self._bounds.with_activity(self._seen_operations, self._seen_ms, self._seen_s)

    def _target_ms(self, before: Baseline | None) -> float:
        baseline_ms = latency_before_ms(before) if before is not None else None
        return target_ms(baseline_ms, self._config.latency_floor_s * 1000, self._config.latency_factor)

    def _steering_target_ms(self) -> float:
        """Of the guest that steers."""
        return self._governor.steering.bounds(self._bounds).target_ms

    def _persist(self, speeds: rule.Speeds | None) -> None:
        if speeds == rule.NOTHING_SET:
            remove_record(self._node, self._vmid)
        elif speeds is not None:
            qmp_path = self._node.path(f"/var/run/qemu-server/{self._vmid}.qmp")
            write_record(self._node, SpeedRecord(self._vmid, qmp_path, *speeds))

    def _stop(self, reason: str) -> None:
        self._governor = self._governor._replace(acts=False, has_observed=True)
        self._keep(reason)
        self._log.warning("governor-stopped", message=f"VM {self._vmid}: {reason}", vmid=self._vmid)

    def _report(self, report: Action) -> None:
        self._keep(report.reason)
        self._events += 1
        if self._events <= EVENTS_KEPT:
            self._log.info(
                "governor-speed",
                message=f"VM {self._vmid}: {report.reason}",
                vmid=self._vmid,
                action=report.kind,
                bytes_per_s=None if report.kind == "observe" else report.bytes_per_s,
                target_ms=round(self._steering_target_ms(), 1),
                culprit=report.culprit,
                steered_by=self.steers,
            )

    def _keep(self, reason: str) -> None:
        if len(self._reasons) < REASONS_KEPT and reason not in self._reasons:
            self._reasons.append(reason)

    def _point(self, at_s: float) -> None:
        """For the record's chart."""
        self._first_s = at_s if self._first_s is None else self._first_s
        law, since_s = self._governor.law, at_s - self._first_s + self._since_start_s
        is_due = not self._points or since_s - self._points[-1].at_s >= self._point_every_s
        if law is None or self._governor.last is None or not is_due:
            return
        latency_ms = None if self._governor.jobs_changed_s == at_s else law.latency_ms
        limit = self._governor.limit_bytes_per_s
        self._points.append(SpeedPoint(since_s, limit, latency_ms, self._steering_target_ms()))
        if len(self._points) > POINTS_KEPT:
            self._points = self._points[::2]
            self._point_every_s = 2 * (since_s - self._points[0].at_s) / POINTS_KEPT


def latency_before_ms(before: Baseline) -> float | None:
    """The baseline as the rule reads latency; None without a request."""
    operations, total_ms = _requests_before(before)
    return effective_latency_ms(total_ms / operations, before.p99_ms) if operations else None


def _requests_before(before: Baseline) -> tuple[int, float]:
    """How many, and how long all of them took, in milliseconds."""
    kinds = (before.read, before.write, before.flush)
    return sum(each.operations for each in kinds), sum(each.operations * (each.mean_ms or 0.0) for each in kinds)


def _in_words(summary: GovernorSummary, has_own: bool) -> str:
    """The backup in one line. `has_own`: the guest in backup suffered itself."""
    some = f"guest{'s' if len(summary.beside) > 1 else ''} {', '.join(map(str, summary.beside))} beside it"
    who = " and ".join(["its guest"] * has_own + [some] * bool(summary.beside))
    did = f"{who} suffered and its backup was not slowed"
    if summary.slowed_s:
        least = f", down to {in_mb_per_s(summary.least_bytes_per_s)}" if summary.least_bytes_per_s else ""
        for_whom = f" for {who}" if summary.beside else ""
        did = f"its backup was slowed for {summary.slowed_s:.0f} s{for_whom}{least}, which cost {summary.cost_s:.0f} s"
    return f"governor {summary.mode}: " + "; ".join((did, *summary.advice))
