"""The governor's hand: sees one guest's backup job through the sampler's looks, and moves its speed on the same
connection. What it does is decided by rules/governor.py.

    the job       appears; a busy guest's begins slowly (not if it was found on its way, by a daemon started anew)
    a look        disks and jobs as QEMU tells them -> one sample -> one step of the rule
    a change      the record is written (governor_record.py), then the speed is set
    the end       the original speed, the summary, the account

It touches only the jobs of this run's backup (guest/backup_tracker.py), and of these only the ones whose speed is the
one it found or the one it set. A speed that you set yourself is left alone. Whatever fails, the job gets its original
speed; a job that has ended meanwhile is the normal end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured, value_of
from pvehook.deadline import Deadline
from pvehook.errors import NotActive, Refused
from pvehook.guest.block_stats import DiskSample
from pvehook.guest.qmp import BlockJob, QmpConnection
from pvehook.host.node import Node
from pvehook.records.journal import Log
from pvehook.records.stall_record import Baseline, GovernorSummary, SpeedPoint
from pvehook.rescue.speed_record import (
    SpeedRecord,
    known_originals,
    remove_record,
    restore_speed,
    write_record,
)
from pvehook.rules.governor import IDLE_BELOW, SELDOM_PER_S, starting, step
from pvehook.rules.governor_policy import NOTHING_KNOWN, Course, Setup, advice
from pvehook.rules.governor_readings import TAIL_PART, Sample, target_ms
from pvehook.rules.governor_state import Action, Bounds, Culprit, State, free_bytes_per_s
from pvehook.rules.latency import disks_between
from pvehook.settings import GovernorConfig, GovernorMode

LOOK_EVERY_S: Final = 0.5
YOUNG_EVERY_S: Final = 0.1
"""While its job is awaited, in its first moments, and while it starts: what is too fast, the guest has to wait for."""
YOUNG_S: Final = 3.0

RELEASE_S: Final = 2.0
"""A phase waits for it. What is not put back by then is told, and its record stays for the next daemon."""

POINTS_KEPT: Final = 200
REASONS_KEPT: Final = 12
EVENTS_AT_MOST: Final = 20
"""A guest that goes on and off all night has its account, and not an event a minute."""
REFUSALS_AT_MOST: Final = 3

_TOLD: Final = ("slow", "free", "give-up", "deadline", "lost")
"""Steps in between are in the account's chart."""


class SpeedChange(NamedTuple):
    """What is to be done with one job."""

    device: str
    bytes_per_s: int


class Governor:
    """One guest's backup. Used by one thread: `act` at each look, `release` when the backup is over."""

    def __init__(
        self,
        node: Node,
        vmid: int,
        mode: GovernorMode,
        config: GovernorConfig,
        log: Log,
        *,
        setup: Setup = NOTHING_KNOWN,
        window_closes_s: float | None = None,
        since_start_s: float = 0.0,
        picked_up: bool = False,
    ) -> None:
        """`window_closes_s` is on the monotonic clock. `picked_up`: the daemon was restarted `since_start_s` after this
        backup's start, so jobs that are there already are its own."""
        self._node = node
        self._vmid = vmid
        self._qmp_path = node.path(f"/var/run/qemu-server/{vmid}.qmp")
        self._mode = mode
        self._config = config
        self._log = log
        self._setup = setup
        self._window_closes_s = window_closes_s
        self._since_start_s = since_start_s
        self._baseline_ms: float | None = None
        self._starts_slowly = not picked_up
        self._was_idle = False
        self._first_s: float | None = None
        self._seen_s: float | None = None
        self._turn_s: float | None = None
        """When a job appeared, or went: then the next disk's may appear."""
        self._last: DiskSample | None = None
        self._offsets: dict[str, int] = {}
        self._originals: dict[str, int] = {}
        self._manually_limited: set[str] = set()
        self._ours: tuple[int, ...] = ()
        self._recorded = False
        self._state: State | None = None
        self._refusals = 0
        self._stopped = ""
        self._told = 0
        self._slowed_s = 0.0
        self._observed = False
        self._cost_s = 0.0
        self._least: int | None = None
        self._reasons: list[str] = []
        self._suffered = False
        self._culprit: Culprit | None = None
        self._points: list[SpeedPoint] = []
        self._point_every_s = 0.0

    @property
    def next_look_s(self) -> float:
        """How soon it would like the next look, to be asked once the archive has begun."""
        if self._mode == "off":
            return LOOK_EVERY_S
        if self._turn_s is None or self._seen_s is None:
            return YOUNG_EVERY_S
        is_starting = self._state is not None and self._state.phase == "starting"
        return YOUNG_EVERY_S if is_starting or self._seen_s - self._turn_s < YOUNG_S else LOOK_EVERY_S

    def know_baseline(self, baseline: Measured[Baseline]) -> None:
        """How the guest was before its backup."""
        before = value_of(baseline)
        self._baseline_ms = felt_before_ms(before) if before is not None else None
        if before is not None and on_their_way_before(before) < IDLE_BELOW:
            self._starts_slowly = False  # who asks for nearly nothing is not kept waiting
            self._was_idle = requests_a_second_before(before) < SELDOM_PER_S

    def know_archive(self, shares_disk: bool | None) -> None:
        """Whether the archive is written to a disk of the guest's, once that is found out: for the advice."""
        self._setup = self._setup._replace(shares_disk=shares_disk)

    def act(self, qmp: QmpConnection, look: DiskSample, deadline: Deadline) -> None:
        """One look, on its own connection. Raises GuestError where QEMU does not answer."""
        for change in self.tick(look):
            try:
                qmp.set_job_speed(change.device, change.bytes_per_s, deadline)
            except NotActive:
                continue  # it has ended since the look: the normal end
            except Refused as refusal:
                self._refused(refusal)

    def tick(self, look: DiskSample) -> list[SpeedChange]:
        """What is to be set after this look. The record is written."""
        if self._mode == "off":
            return []
        self._seen_s = look.at_s
        self._first_s = look.at_s if self._first_s is None else self._first_s
        jobs = self._recognised(look.jobs)
        if not jobs:
            if self._last is not None:
                self._last, self._turn_s = None, look.at_s
            return []
        if self._last is None or self._state is None:
            self._begin(look, jobs)
        else:
            self._step(self._last, look, jobs)
        self._last = look
        self._offsets = {job.device: job.offset_bytes for job in jobs}
        return self._changes(jobs)

    def release(self, patience_s: float = RELEASE_S) -> None:
        """The backup is over, or nobody looks at it any more: the original speed, if there still is a job."""
        if self._recorded:
            done = restore_speed(self._node, self._vmid, patience_s)
            if done is not None and not done.done:
                self._log.error("governor-not-put-back", message=done.text, vmid=self._vmid)
            self._recorded = False
        if self._state is not None and self._suffered:
            summary = self.summary()
            self._log.info(
                "governor-done",
                message=f"VM {self._vmid}: {in_words(summary)}",
                vmid=self._vmid,
                mode=summary.mode,
                slowed_s=round(summary.slowed_s, 1),
                cost_s=round(summary.cost_s, 1),
                least_bytes_per_s=summary.least_bytes_per_s,
                target_ms=summary.target_ms,
                advice=list(summary.advice) or None,
            )
        self._state = self._last = None

    def summary(self) -> GovernorSummary:
        """What was done, for the guest's record."""
        return GovernorSummary(
            mode=self._mode,
            slowed_s=self._slowed_s,
            cost_s=self._cost_s,
            least_bytes_per_s=self._least,
            target_ms=self._target_ms() if self._turn_s is not None else None,
            reasons=tuple(self._reasons),
            advice=advice(self._vmid, self._setup, Course(self._suffered, self._culprit)),
            speeds=tuple(self._points),
        )

    # Which jobs

    def _recognised(self, jobs: Sequence[BlockJob]) -> list[BlockJob]:
        for job in jobs:
            if job.offset_bytes < self._offsets.get(job.device, 0):
                self._forget(job.device)
        self._learn_originals([job for job in jobs if job.device not in self._originals])
        return [job for job in jobs if self._is_as_left(job)]

    def _learn_originals(self, jobs: Sequence[BlockJob]) -> None:
        if not jobs:
            return
        speeds = [(job.device, job.speed_bytes_per_s) for job in jobs]
        known = known_originals(self._node, self._vmid, speeds)
        for device, now in speeds:
            self._originals[device] = known.get(device, now)
            if device in known:
                self._ours = (*self._ours, now)  # an earlier daemon's

    def _forget(self, device: str) -> None:
        self._originals.pop(device, None)
        self._manually_limited.discard(device)
        self._last = None

    def _is_as_left(self, job: BlockJob) -> bool:
        if job.device in self._manually_limited:
            return False
        if job.speed_bytes_per_s in (self._originals[job.device], *self._ours):
            return True
        self._manually_limited.add(job.device)
        text = (
            f"the speed of {job.device} was set to {job.speed_bytes_per_s / 1e6:.3g} MB/s by somebody else: "
            "the governor leaves it alone"
        )
        self._note(text)
        self._tell("yield", text, job.speed_bytes_per_s)
        return False

    # One look

    def _begin(self, look: DiskSample, jobs: Sequence[BlockJob]) -> None:
        """The job has appeared, or is seen again after the looks were lost."""
        self._turn_s = look.at_s
        original = self._original(jobs)
        if self._state is None:
            starts = self._starts_slowly and self._mode == "on"
            self._state = starting(self._bounds(jobs)) if starts else State(original)
        else:
            self._state = State(original, cut=self._state.cut, rest_s=self._state.rest_s)
        self._point(look.at_s, None)

    def _step(self, last: DiskSample, look: DiskSample, jobs: Sequence[BlockJob]) -> None:
        assert self._state is not None  # noqa: S101  (asked by the caller)
        period_s = look.at_s - last.at_s
        if period_s <= 0:
            return
        copied = sum(max(job.offset_bytes - self._offsets.get(job.device, 0), 0) for job in jobs)
        sample = Sample(
            at_s=look.at_s,
            period_s=period_s,
            completed=disks_between(last.disks, look.disks),
            copied_bytes=copied,
            remaining_bytes=sum(max(job.length_bytes - job.offset_bytes, 0) for job in jobs),
        )
        was = self._state
        bounds = self._bounds(jobs)
        state, action = step(was, sample, bounds)
        if was.phase in ("trying", "steering") and not self._stopped:
            self._slowed_s += period_s
            free = free_bytes_per_s(was)
            self._cost_s += period_s * max(1 - copied / period_s / free, 0.0) if free else 0.0
        self._suffered |= action.kind in ("slow", "deadline")
        if self._mode == "observe" and action.kind == "slow":
            # What would have come of it cannot be seen, so it stays at the first step and is told once.
            self._observe(action)
            state, action = was._replace(over=()), Action("none", was.bytes_per_s, "")
        self._state = state
        self._carry(look, action)

    def _observe(self, action: Action) -> None:
        if not self._observed:
            self._observed = True
            reason = f"observed only, nothing is set: {action.reason}"
            self._note(reason)
            self._tell("observe", reason, None)

    def _carry(self, look: DiskSample, action: Action) -> None:
        assert self._state is not None  # noqa: S101  (asked by the caller)
        self._culprit = action.culprit or self._culprit
        if action.kind in _TOLD:
            self._note(action.reason)
            self._tell(action.kind, action.reason, action.bytes_per_s)
        if action.kind != "none" and self._state.phase in ("trying", "steering"):
            self._least = min(self._least or action.bytes_per_s, action.bytes_per_s)
        self._point(look.at_s, self._state.last_ms)

    def _changes(self, jobs: Sequence[BlockJob]) -> list[SpeedChange]:
        """By level, not by edge: a change that got lost is made at the next look, and so is that of the next disk."""
        assert self._state is not None  # noqa: S101  (asked by the caller)
        original = self._original(jobs)
        slowed = self._state.bytes_per_s != original and not self._stopped
        wanted = {job.device: self._wanted(job.device, slowed=slowed) for job in jobs}
        changes = [
            SpeedChange(job.device, wanted[job.device]) for job in jobs if job.speed_bytes_per_s != wanted[job.device]
        ]
        if slowed and changes:
            in_force = {job.speed_bytes_per_s for job in jobs} & set(self._ours)
            self._ours = tuple(in_force | set(wanted.values()))
            if not self._write_ahead():
                return []
        elif not slowed and not changes and self._recorded:
            remove_record(self._node, self._vmid)
            self._recorded, self._ours = False, ()
        return changes

    def _wanted(self, device: str, *, slowed: bool) -> int:
        assert self._state is not None  # noqa: S101  (asked by the caller)
        original = self._originals[device]
        if not slowed:
            return original
        return min(self._state.bytes_per_s, original) if original else self._state.bytes_per_s

    def _write_ahead(self) -> bool:
        left = SpeedRecord(self._vmid, self._qmp_path, self._originals, self._ours)
        try:
            write_record(self._node, left)
        except OSError as error:
            # Nobody could put it back if we died, so it is not slowed.
            self._stop(f"its backup is not slowed, the record cannot be written: {error}")
            return False
        self._recorded = True
        return True

    def _refused(self, refusal: Refused) -> None:
        self._refusals += 1
        if self._refusals == REFUSALS_AT_MOST:
            self._stop(f"QEMU refused the backup's speed {self._refusals} times: {refusal}")

    def _stop(self, text: str) -> None:
        if not self._stopped:
            self._stopped = text
            self._note(text)
            self._log.warning("governor-stopped", message=f"VM {self._vmid}: {text}", vmid=self._vmid)

    def _bounds(self, jobs: Sequence[BlockJob]) -> Bounds:
        return Bounds(
            target_ms=self._target_ms(),
            original_bytes_per_s=self._original(jobs),
            stretch_at_most=self._config.stretch_at_most,
            was_idle=self._was_idle,
            window_closes_s=self._window_closes_s,
        )

    def _original(self, jobs: Sequence[BlockJob]) -> int:
        """Of the job that runs now: a transaction's jobs run one after the other."""
        running = next((job for job in jobs if job.offset_bytes < job.length_bytes), jobs[0])
        return self._originals[running.device]

    def _target_ms(self) -> float:
        return target_ms(self._baseline_ms, self._config.latency_floor_s * 1000, self._config.latency_factor)

    # Telling

    def _tell(self, kind: str, reason: str, bytes_per_s: int | None) -> None:
        self._told += 1
        if self._told > EVENTS_AT_MOST:
            return
        self._log.info(
            "governor-speed",
            message=f"VM {self._vmid}: {reason}",
            vmid=self._vmid,
            action=kind,
            bytes_per_s=bytes_per_s,
            target_ms=round(self._target_ms(), 1),
            culprit=self._culprit if kind == "give-up" else None,
        )

    def _note(self, reason: str) -> None:
        if len(self._reasons) < REASONS_KEPT and reason not in self._reasons:
            self._reasons.append(reason)

    def _point(self, at_s: float, latency_ms: float | None) -> None:
        assert self._state is not None  # noqa: S101  (a look was taken)
        assert self._first_s is not None  # noqa: S101  (a look was taken)
        speed = self._state.bytes_per_s
        since_s = at_s - self._first_s + self._since_start_s
        if self._points and since_s - self._points[-1].at_s < self._point_every_s:
            return
        self._points.append(SpeedPoint(since_s, speed, latency_ms, self._target_ms()))
        if len(self._points) > POINTS_KEPT:
            self._points = self._points[::2]
            self._point_every_s = 2 * (since_s - self._points[0].at_s) / POINTS_KEPT


def felt_before_ms(before: Baseline) -> float | None:
    """The baseline as the rule feels latency: the mean of all requests, or the part of the p99 that counts."""
    kinds = [latency for latency in (before.read, before.write, before.flush) if latency.mean_ms is not None]
    operations = sum(each.operations for each in kinds)
    if not operations:
        return None
    mean_ms = sum((each.mean_ms or 0.0) * each.operations for each in kinds) / operations
    return max(mean_ms, TAIL_PART * (before.p99_ms or 0.0))


def requests_a_second_before(before: Baseline) -> float:
    return sum(each.operations for each in (before.read, before.write, before.flush)) / max(before.lasted_s, 1e-3)


def on_their_way_before(before: Baseline) -> float:
    """Requests, on average (Little's law)."""
    kinds = (before.read, before.write, before.flush)
    return sum(each.operations * (each.mean_ms or 0.0) for each in kinds) / 1000 / max(before.lasted_s, 1e-3)


def in_words(summary: GovernorSummary) -> str:
    """The night in one line."""
    if not summary.slowed_s:
        did = "its guest suffered and its backup was not slowed"
    else:
        least = f", down to {summary.least_bytes_per_s / 1e6:.3g} MB/s" if summary.least_bytes_per_s else ""
        did = f"its backup was slowed for {summary.slowed_s:.0f} s{least}, which cost {summary.cost_s:.0f} s"
    helped = f"; {'; '.join(summary.advice)}" if summary.advice else ""
    return f"governor {summary.mode}: {did}{helped}"
