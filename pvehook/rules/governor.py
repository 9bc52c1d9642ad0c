"""One guest's governor, pure: a sample of its QEMU in, what to do out, in the order in which it has to be done.

    step(governor, sample, bounds) -> the next governor, and Ready:

        persist   the record by which anybody can restore the original speeds, or its removal
        set       the jobs' new speeds; none is set where the record could not be written
        report    what an administrator is told, after it has been done

How fast the backup may run is decided by governor_law.py, which jobs are its own by the sampler (guest/backup_tracker).
Of these only the ones are touched whose speed is the one found or one that we set: a speed that somebody sets by hand
is left alone. A change that was lost is made with the next sample, and the next disk's job gets the speed of the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from pvehook.contract.block_job import BlockJob, DiskSample
from pvehook.rules import governor_constants as c
from pvehook.rules.governor_law import advance, first_state, released
from pvehook.rules.governor_readings import Bounds, Culprit, Sample, in_mb_per_s
from pvehook.rules.governor_state import Action, Resting, Starting, State, Watching
from pvehook.rules.latency import disks_between
from pvehook.rules.pace import Pace
from pvehook.rules.steering import OWN, Patient, Steering, chosen, hand_over, judged, next_sample

_NO_JOBS: Final[Mapping[str, int]] = MappingProxyType({})


class Speeds(NamedTuple):
    """By which the original speeds can be restored: a job with none of our speeds is not as we left it."""

    original: Mapping[str, int]
    """By device."""
    ours: tuple[int, ...] = ()


NOTHING_SET: Final = Speeds(_NO_JOBS)


class Ready(NamedTuple):
    """What to do, in this order."""

    persist: Speeds | None = None
    """To be written before anything is set; NOTHING_SET: the record is to be removed; None: it stays as it is."""
    set: Mapping[str, int] = _NO_JOBS
    """Bytes per second by device."""
    report: tuple[Action, ...] = ()


class Governor(NamedTuple):
    """One backup, as far as it is known."""

    acts: bool  # False: it only observes; or it was stopped, since the record cannot be written or QEMU refuses
    law: State | None = None  # None: no job has appeared yet
    at_s: float | None = None
    jobs_changed_s: float | None = None  # when a job appeared, or went: then the next disk's may appear
    last: DiskSample | None = None  # None: it had no job
    offsets: Mapping[str, int] = _NO_JOBS
    speeds: Speeds = NOTHING_SET
    manually_limited: frozenset[str] = frozenset()
    is_recorded: bool = False
    has_observed: bool = False  # what it would do is reported no more
    steering: Steering = Steering()
    pace: Pace = Pace()
    limit_bytes_per_s: int = c.UNLIMITED  # of the job that runs

    # What this backup has come to so far
    suffered: frozenset[int] = frozenset()  # who was above the target at least once, of those that steered; OWN: itself
    culprit: Culprit | None = None  # why slowing was given up; None: it never was
    slowed_s: float = 0.0
    cost_s: float = 0.0  # how much longer the backup takes for it, estimated
    lowest_bytes_per_s: int | None = None

    @property
    def sample_every_s(self) -> float:
        """How soon the next sample is wanted."""
        if self.jobs_changed_s is None or self.at_s is None:
            return c.AWAITED_EVERY_S
        is_starting = self.law is not None and isinstance(self.law.phase, Starting)
        return c.YOUNG_EVERY_S if is_starting or self.at_s - self.jobs_changed_s < c.YOUNG_S else c.SAMPLE_EVERY_S


def step(governor: Governor, sample: DiskSample, bounds: Bounds, inherited: Speeds) -> tuple[Governor, Ready]:
    """One more sample. `inherited` is the record that an earlier daemon may have left."""
    governor, jobs, reports = _recognised(governor._replace(at_s=sample.at_s), sample.jobs, inherited)
    law, last = governor.law, governor.last
    if not jobs:
        changed_s = governor.jobs_changed_s if last is None else sample.at_s
        return governor._replace(last=None, jobs_changed_s=changed_s), Ready(report=reports)
    # A transaction's jobs run one after the other: what counts is the limit of the one that runs now.
    running = next((job for job in jobs if job.offset_bytes < job.length_bytes), jobs[0])
    bounds = bounds._replace(original_bytes_per_s=governor.speeds.original[running.device])
    lowest = 0.0
    if law is None:
        starts_slowly = governor.acts and governor.steering.starts_slowly(bounds) and bounds.has_time(sample.at_s)
        law = first_state(bounds._replace(starts_slowly=starts_slowly))
    elif last is None:  # seen again after samples were lost, or the next disk's
        law = State(bounds.original_bytes_per_s, cut=law.cut, rest_s=law.rest_s)
    elif sample.at_s > last.at_s:
        seen = Sample(
            at_s=sample.at_s,
            period_s=sample.at_s - last.at_s,
            completed=disks_between(last.disks, sample.disks),
            copied_bytes=sum(max(job.offset_bytes - governor.offsets.get(job.device, 0), 0) for job in jobs),
            remaining_bytes=sum(max(job.length_bytes - job.offset_bytes, 0) for job in jobs),
        )
        was_free = _is_free(law)
        governor, law, more = _steered(governor, law, seen, bounds)
        pace = governor.pace
        is_at_pace = was_free and _is_free(law) and law.has_settled
        pace = pace.measured(seen.copied_bytes, seen.period_s) if is_at_pace else pace.paused()
        governor = governor._replace(pace=pace)
        lowest, _ = law.lowest_speed(seen, bounds)
        reports += more
    governor = governor._replace(
        law=law,
        last=sample,
        offsets={job.device: job.offset_bytes for job in jobs},
        jobs_changed_s=sample.at_s if last is None else governor.jobs_changed_s,
    )
    governor, persist, changes = _changes(governor, _limit(governor, law, bounds, lowest), jobs, bounds)
    return governor, Ready(persist, changes, reports)


def _recognised(
    governor: Governor, jobs: Sequence[BlockJob], inherited: Speeds
) -> tuple[Governor, list[BlockJob], tuple[Action, ...]]:
    """Which of the jobs are to be set."""
    anew = {job.device for job in jobs if job.offset_bytes < governor.offsets.get(job.device, 0)}
    original = {device: speed for device, speed in governor.speeds.original.items() if device not in anew}
    set_by_us = list(governor.speeds.ours)
    known = governor.speeds if governor.is_recorded else inherited
    manually_limited = set(governor.manually_limited - anew)
    reports = []
    for job in jobs:
        device, now = job.device, job.speed_bytes_per_s
        if device not in original:
            original[device] = now
            if device in known.original and now in known.ours:
                original[device] = known.original[device]
                set_by_us.append(now)
    for job in jobs:
        device, now = job.device, job.speed_bytes_per_s
        if device not in manually_limited and now not in (original[device], *set_by_us):
            manually_limited.add(device)
            was_set = f"the speed of {device} was set to {in_mb_per_s(now)}"
            reports.append(Action("left-alone", now, f"{was_set} by somebody else: the governor leaves it alone"))
    governor = governor._replace(
        last=None if anew else governor.last,
        speeds=Speeds(original, tuple(set_by_us)),
        manually_limited=frozenset(manually_limited),
    )
    return governor, [job for job in jobs if job.device not in manually_limited], tuple(reports)


def _steered(
    governor: Governor, law: State, own: Sample, bounds: Bounds
) -> tuple[Governor, State, tuple[Action, ...]]:
    """One more step of the law by what was seen of whoever steers, the guest in backup or one beside it."""
    steering = governor.steering
    if steering.patients:
        itself = steering.patients.get(OWN, Patient(bounds.target_ms))
        itself = itself._replace(target_ms=bounds.target_ms, was_idle=bounds.was_idle)
        steering = steering.with_patient(OWN, itself.seen(own)).copied(own.copied_bytes, own.period_s)
        by = chosen(steering, law, own.at_s)
        if by != steering.by:
            steering, law = hand_over(steering, law, by, own.at_s, bounds)
    sample: Sample | None = own if steering.spares_own else own._replace(completed={})
    if steering.by != OWN:
        steering, sample = next_sample(steering, own.at_s, own.remaining_bytes)
    governor = governor._replace(steering=steering)
    if sample is None:
        return governor, law, ()
    governor, law, reports = _advanced(governor, law, sample, steering.bounds(bounds))
    if steering.by != OWN:
        name = steering.patients[steering.by].name
        title = f"guest {steering.by}{f' ({name})' if name else ''}, beside it"
        reports = tuple(each._replace(reason=f"{title}: {each.reason}") for each in reports)
    return governor, law, reports


def _advanced(
    governor: Governor, law: State, sample: Sample, bounds: Bounds
) -> tuple[Governor, State, tuple[Action, ...]]:
    is_free = not governor.acts or _is_free(law)
    if is_free and law.bytes_per_s != bounds.original_bytes_per_s:
        law = released(law, bounds)  # it was stopped, or the next disk's job runs and has another limit
    after, action = advance(law, sample, bounds)
    reports = (action,) if action is not None and action.reason else ()
    if action is not None and action.kind == "slow" and not governor.acts:
        # What would have come of it cannot be seen, so it stays at the first step and is reported once.
        observed = Action("observe", law.bytes_per_s, f"observed only, nothing is set: {action.reason}")
        reports = () if governor.has_observed else (observed,)
        governor, after = governor._replace(has_observed=True), law._replace(phase=Watching())
    governor = _tallied(governor, law, after, action, sample)
    governor = governor._replace(steering=judged(governor.steering, law, after, action))
    return governor, after, reports


def _tallied(governor: Governor, law: State, after: State, action: Action | None, sample: Sample) -> Governor:
    if law.is_throttled:
        free = law.free_per_s
        cost_s = sample.period_s * max(1 - sample.copied_bytes / sample.period_s / free, 0.0) if free else 0.0
        governor = governor._replace(slowed_s=governor.slowed_s + sample.period_s, cost_s=governor.cost_s + cost_s)
    if action is None:
        return governor
    if after.is_throttled:
        lowest = min(governor.lowest_bytes_per_s or after.bytes_per_s, after.bytes_per_s)
        governor = governor._replace(lowest_bytes_per_s=lowest)
    by = governor.steering.by
    suffered = governor.suffered | ({by} if action.kind in ("slow", "deadline") else set())
    # Why slowing did not help a neighbour says nothing about the target of this backup.
    culprit = (action.culprit if by == OWN else None) or governor.culprit
    return governor._replace(suffered=suffered, culprit=culprit)


def _is_free(law: State) -> bool:
    return isinstance(law.phase, (Watching, Resting))


def _limit(governor: Governor, law: State, bounds: Bounds, lowest: float) -> int:
    """The law's; or where that lets the backup run free, the pace beside a busy neighbour, if there is time for it."""
    pace = governor.pace.limit_per_s
    is_paced = _is_free(law) and governor.acts and governor.steering.has_busy_neighbour
    if not is_paced or pace is None or pace <= lowest or 0 < bounds.original_bytes_per_s <= pace:
        return law.bytes_per_s
    return bounds.limited(pace, lowest)


def _changes(
    governor: Governor, limit: int, jobs: Sequence[BlockJob], bounds: Bounds
) -> tuple[Governor, Speeds | None, Mapping[str, int]]:
    original, ours = governor.speeds
    governor = governor._replace(limit_bytes_per_s=limit)
    is_slowed = governor.acts and limit != bounds.original_bytes_per_s
    wanted = {
        job.device: min(limit, original[job.device] or limit) if is_slowed else original[job.device] for job in jobs
    }
    changes = {job.device: wanted[job.device] for job in jobs if job.speed_bytes_per_s != wanted[job.device]}
    if is_slowed and changes:
        in_force = {job.speed_bytes_per_s for job in jobs} & set(ours)
        speeds = Speeds(original, tuple(in_force | set(wanted.values())))
        return governor._replace(speeds=speeds, is_recorded=True), speeds, changes
    if governor.is_recorded and not is_slowed and not changes:
        governor = governor._replace(speeds=Speeds(original), is_recorded=False)
        return governor, NOTHING_SET, {}
    return governor, None, changes
