"""By whom a backup is steered: the guest in backup, or the patient beside it that is worst off. Pure.

    need of a guest = its latency ÷ its own target, at most 1 for one that has too little in flight to suffer

The law (governor_law.py) follows one guest at a time. Another one takes its place when its need is clearly greater and
above 1, or when the one that steered has none or is gone; never in the middle of a trial, which has to be judged by
the guest it was made for. Need alone is misled by an idle guest of which one request in flight took long: it hid a
busy one, thirty of whose requests waited, for 0.8 s (tests/rules/node_model.py). So one that suffers clearly, several
of its requests at a time, comes first. While the backup starts, a busy neighbour steers instead of an idle guest in
backup, which is well at any speed.

A guest for which slowing did not pay is put aside for as long as the law rests, and with it those who suffered through
the same trial no less. The others still count; as long as three are aside nobody new is tried, so that a night of
other people's load does not become one trial after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from pvehook.contract.latency import REQUEST_KINDS, RequestCounters
from pvehook.rules import governor_constants as c
from pvehook.rules.governor_readings import Bounds, Reading, Sample, reading_of
from pvehook.rules.governor_state import Action, Resting, Starting, State, Throttling, Trying, Watching
from pvehook.rules.latency import sum_of
from pvehook.rules.patients import PatientSample

OWN: Final = 0
"""Stands for the guest in backup; Proxmox numbers guests from 100 on."""


class Patient(NamedTuple):
    """One guest that the backup may be steered by."""

    target_ms: float
    name: str | None = None
    was_idle: bool = False
    is_busy: bool = False
    """So much that a backup at full speed would be felt at once."""
    is_spared: bool = True
    """False: by an administrator's rule it never steers."""
    recent: tuple[Sample, ...] = ()
    reading: Reading | None = None
    """Of the recent samples; the last one with a request for as long as it is silent after slow ones."""
    seen_s: float = -math.inf
    aside_until_s: float = -math.inf
    cut: float = c.FIRST_CUT
    rest_s: float = c.FIRST_REST_S
    """What its trials have taught, for when it steers again."""

    @property
    def need(self) -> float:
        """How badly off it is: above 1 its latency is above its target, and enough is in flight that it suffers."""
        reading = self.reading
        if reading is None or reading.in_flight < c.IDLE_IN_FLIGHT:
            return 0.0
        need = reading.latency_ms / self.target_ms
        return need if reading.in_flight >= c.SUFFERS_IN_FLIGHT else min(need, 1.0)

    @property
    def has_several_in_flight(self) -> bool:
        """So many requests that its latency is no chance of one."""
        return self.reading is not None and self.reading.in_flight >= c.CLEARLY_IN_FLIGHT

    @property
    def suffers_clearly(self) -> bool:
        return self.need > c.CLEARLY_ABOVE and self.has_several_in_flight

    def is_not_helped(self, before_ms: float) -> bool:
        """Whether it suffers though the backup is slowed, and not much less than at `before_ms`."""
        latency_ms = self.reading.latency_ms if self.reading is not None else 0.0
        return latency_ms > max(self.target_ms, c.HALVED * before_ms)

    def seen(self, sample: Sample) -> Patient:
        """With one more sample."""
        from_s = sample.at_s - c.RANKED_S  # what began earlier, as a quiet guest's rare look, would hide what is new
        recent = tuple(each for each in self.recent if each.at_s - each.period_s >= from_s)[-c.RANKED_SAMPLES :]
        recent = (*recent, sample)
        reading = reading_of(recent)
        silent_s = sample.at_s - self.seen_s
        was_slow = self.reading is not None and self.reading.latency_ms > self.target_ms
        if not reading.operations and was_slow and sample.waits is not False and silent_s < c.IDLE_AFTER_S:
            return self._replace(recent=recent)  # it may wait for all that it has asked for
        return self._replace(recent=recent, reading=reading, seen_s=sample.at_s)


_NOBODY: Final[Mapping[int, Patient]] = MappingProxyType({})


class Steering(NamedTuple):
    """Who may steer one backup, and who does."""

    patients: Mapping[int, Patient] = _NOBODY
    """By number, the guest in backup under OWN."""
    by: int = OWN
    pending: tuple[PatientSample, ...] = ()
    """Of the patient that steers, since the law's last step."""
    copied_bytes: int = 0
    copied_in_s: float = 0.0
    """What the backup copied since then, and in how long."""
    before_ms: Mapping[int, float] = MappingProxyType({})
    """Everybody's latency when the last trial began."""
    not_helped: frozenset[int] = frozenset()
    """Who suffered at its end all the same."""

    def with_patient(self, vmid: int, patient: Patient) -> Steering:
        return self._replace(patients={**self.patients, vmid: patient})

    def without(self, vmid: int) -> Steering:
        return self._replace(patients={each: kept for each, kept in self.patients.items() if each != vmid})

    def seen(self, sample: PatientSample) -> Steering:
        """With one more look at a patient; nothing changes for one that is not known."""
        patient = self.patients.get(sample.vmid)
        if patient is None:
            return self
        steering = self.with_patient(sample.vmid, patient.seen(sample_of(sample)))
        if sample.vmid != self.by:
            return steering
        return steering._replace(pending=(*self.pending, sample)[-c.RANKED_SAMPLES :])

    def copied(self, copied_bytes: int, period_s: float) -> Steering:
        """With what the backup has copied meanwhile."""
        return self._replace(copied_bytes=self.copied_bytes + copied_bytes, copied_in_s=self.copied_in_s + period_s)

    @property
    def spares_own(self) -> bool:
        """Whether the guest in backup counts too."""
        return OWN not in self.patients or self.patients[OWN].is_spared

    def bounds(self, own: Bounds) -> Bounds:
        """Of whoever steers."""
        patient = self.patients.get(self.by)
        if self.by == OWN or patient is None:
            return own
        return own._replace(target_ms=patient.target_ms, was_idle=patient.was_idle, is_neighbours=True)

    @property
    def has_busy_neighbour(self) -> bool:
        """Whether a patient beside the backup is so busy that it would feel the backup at full speed at once."""
        return any(each.is_busy and each.is_spared for vmid, each in self.patients.items() if vmid != OWN)

    def starts_slowly(self, own: Bounds) -> bool:
        """Whether the backup begins slowly, for its own guest's sake or a neighbour's."""
        return self.has_busy_neighbour or (own.starts_slowly and self.spares_own)


def sample_of(look: PatientSample) -> Sample:
    """A look as the law's readings are made of it."""
    return Sample(look.at_s, look.period_s, look.completed, 0, 0, look.waits)


def candidates(steering: Steering, at_s: float) -> dict[int, Patient]:
    """Who may steer now."""
    aside = [vmid for vmid, each in steering.patients.items() if at_s < each.aside_until_s]
    return {
        vmid: each
        for vmid, each in steering.patients.items()
        if each.is_spared
        and vmid not in aside
        and at_s - each.seen_s <= c.FRESH_S
        and (len(aside) < c.MOST_ASIDE or vmid in (OWN, steering.by))
    }


def chosen(steering: Steering, law: State, at_s: float) -> int:
    """Who steers from now on."""
    if isinstance(law.phase, Starting) and not law.phase.burst_is_over:
        return OWN  # how fast the backup would be shows in its own samples, which come more often
    now, may = steering.by, candidates(steering, at_s)
    if isinstance(law.phase, Trying) and (now == OWN or now in may):
        return now
    best = max(may, key=lambda vmid: (may[vmid].suffers_clearly, may[vmid].need, vmid == now), default=OWN)
    most = may[best].need if best in may else 0.0
    if now not in may:
        # The guest in backup keeps its place where there is nobody to take it: put aside, it rests.
        return best if most > 0 else OWN
    needs = may[now].need
    busy = max((vmid for vmid in may if may[vmid].is_busy), key=lambda vmid: may[vmid].need, default=None)
    if isinstance(law.phase, Starting) and busy is not None and may[now].was_idle and needs <= 1:
        return busy  # how an idle guest fares tells nothing, and the backup would double its speed by that
    if needs <= 0 and most > 0:
        # A guest that was idle all the time and is well is no reason to go on: whoever called for it rests now.
        return now if may[best].was_idle and most <= 1 else best
    is_clearer = may[best].suffers_clearly and not may[now].has_several_in_flight
    return best if is_clearer or (most > 1 and most > c.TAKES_OVER_ABOVE * needs) else now


def hand_over(steering: Steering, law: State, to: int, at_s: float, own: Bounds) -> tuple[Steering, State]:
    """The same backup, steered by another. What the law knew of the one before goes with that one."""
    nobody = Patient(own.target_ms)
    old, new = steering.patients.get(steering.by, nobody), steering.patients.get(to, nobody)
    if steering.by in steering.patients:
        steering = steering.with_patient(steering.by, old._replace(cut=law.cut, rest_s=law.rest_s))
    phase = law.phase
    if isinstance(phase, Starting):
        phase = phase._replace(suffering=(), was_well=False)
    elif isinstance(phase, Throttling):
        factor = new.target_ms / old.target_ms  # what it was and what it came to, in parts of the target
        before = phase.before._replace(latency_ms=phase.before.latency_ms * factor)
        phase = phase._replace(before=before, latency_ms=phase.latency_ms * factor)
    else:
        phase = Resting(new.aside_until_s) if at_s < new.aside_until_s else Watching()
        law = law._replace(bytes_per_s=own.original_bytes_per_s)  # a trial for a guest that is gone ends
    law = law._replace(
        phase=phase,
        gathered=(),
        silent_s=0.0,
        requests_per_s=0.0,
        latency_ms=0.0,
        idle_s=0.0,
        cut=new.cut,
        rest_s=new.rest_s,
    )
    steering = steering._replace(by=to, pending=(), copied_bytes=0, copied_in_s=0.0)
    last = new.recent[-1] if new.recent else None
    if to != OWN and last is not None and last.period_s <= c.RANKED_S and isinstance(phase, Watching):
        # What called for it is the first that the law sees of it.
        seen = PatientSample(to, last.at_s, last.period_s, last.completed, last.waits)
        steering = steering._replace(
            pending=(seen,), copied_bytes=int(law.copied_per_s * last.period_s), copied_in_s=last.period_s
        )
    return steering, law


def next_sample(steering: Steering, at_s: float, remaining_bytes: int) -> tuple[Steering, Sample | None]:
    """What the law gets of the patient that steers; None: it was not looked at since. A look covers another time than
    the backup's own samples do, so what was copied counts as it went on average."""
    if not steering.pending:
        return steering, None
    period_s = sum(each.period_s for each in steering.pending)
    per_s = steering.copied_bytes / max(steering.copied_in_s, 1e-3)
    completed, waits = _together(steering.pending), steering.pending[-1].waits
    sample = Sample(at_s, period_s, completed, int(per_s * period_s), remaining_bytes, waits)
    return steering._replace(pending=(), copied_bytes=0, copied_in_s=0.0), sample


def judged(steering: Steering, law: State, after: State, action: Action | None) -> Steering:
    """What a step of the law from `law` to `after` tells of everybody: the others suffered through the same trial.
    Where slowing did not pay, whoever steered is put aside, and with it those whom it did not help either."""
    if action is None:
        return steering
    if action.kind == "slow":
        readings = {vmid: each.reading for vmid, each in steering.patients.items()}
        before_ms = {vmid: reading.latency_ms for vmid, reading in readings.items() if reading is not None}
        return steering._replace(before_ms=before_ms, not_helped=frozenset())
    if law.is_throttled:
        not_helped = frozenset(
            vmid
            for vmid, each in steering.patients.items()
            if each.is_not_helped(steering.before_ms.get(vmid, 0.0))
        )
        steering = steering._replace(not_helped=not_helped)
    if action.kind == "give-up" and isinstance(after.phase, Resting):
        for vmid in steering.patients.keys() & {steering.by, *steering.not_helped}:
            aside = steering.patients[vmid]._replace(aside_until_s=after.phase.until_s)
            steering = steering.with_patient(vmid, aside)
    return steering


def look_every_s(steering: Steering, vmid: int, law: State | None) -> float:
    """How soon the next look at a patient is wanted."""
    patient = steering.patients.get(vmid)
    if patient is None or not patient.is_spared:
        return c.QUIET_LOOK_S
    if law is None:
        return c.SAMPLE_EVERY_S if patient.is_busy else c.QUIET_LOOK_S
    if isinstance(law.phase, Starting) and (vmid == steering.by or patient.is_busy):
        return c.YOUNG_EVERY_S
    if vmid == steering.by:
        return c.TRIAL_LOOK_S if isinstance(law.phase, Trying) or patient.need > 1 else c.SAMPLE_EVERY_S
    if patient.need > 1:
        return c.SAMPLE_EVERY_S
    return c.BUSY_LOOK_S if patient.need > 0 else c.QUIET_LOOK_S


def _together(samples: Sequence[PatientSample]) -> dict[str, RequestCounters]:
    return {
        kind: sum_of(each.completed[kind] for each in samples if kind in each.completed) for kind in REQUEST_KINDS
    }
