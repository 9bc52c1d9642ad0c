"""A night on paper with neighbours: the backup of governor_model.py, and guests that only live on the same disks.

The governor is the whole rule (pvehook/rules/governor.py) with its steering. Neighbours are looked at as often as it
asks, and at once when their block device's own counters show, ten times a second, that they wait.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from pvehook.contract.block_job import BlockJob, DiskSample
from pvehook.contract.latency import REQUEST_KINDS, DiskCounters, RequestCounters
from pvehook.rules import governor as rule
from pvehook.rules.governor_constants import UNLIMITED
from pvehook.rules.governor_readings import NOTHING_KNOWN, Bounds, NightShare, Sample, reading_of, target_ms
from pvehook.rules.governor_state import Action
from pvehook.rules.latency import sum_of
from pvehook.rules.patients import PatientSample
from pvehook.rules.steering import Patient, look_every_s
from tests.bench.disk_models import MIB, DiskModel, Kind, Queue, stalled_s
from tests.rules.governor_model import BEFORE_S, Guest, Play, counters

DEVICE = "drive-scsi0"
FIRST_LOOK_S = 0.1
WAITS_ABOVE = 3.0
WAITS_ABOVE_MS = 10.0
IDLE = Guest(per_s=2)


class Neighbour:
    """One guest beside the backup. Its disk is on the same queue, unless it has one of its own."""

    def __init__(self, play: Play, guest: Guest, seed: int, queue: Queue | None) -> None:
        self.play, self.guest, self.queue = play, guest, queue or play.source
        self.chance = random.Random(seed)
        self.on_their_way = 0
        self.waiting: list[tuple[float, Kind]] = []
        self.counters = counters()
        self.first_looks = counters()
        self.looked_s = 0.0
        self.served: list[tuple[float, float]] = []
        play.at(0.0, self.arrives)

    def arrives(self) -> None:
        if self.guest.busy(self.play.now_s):
            kind: Kind = "write" if self.chance.random() < self.guest.writes else "read"
            self.waiting.append((self.play.now_s, kind))
            self.send()
        self.play.at(self.play.now_s + self.chance.expovariate(self.guest.per_s), self.arrives)

    def send(self) -> None:
        while self.waiting and self.on_their_way < self.guest.at_once:
            asked_s, kind = self.waiting.pop(0)
            self.on_their_way += 1
            offset = self.chance.randrange(self.play.size // 4096) * 4096
            done_s = self.queue.done_s(self.play.now_s, kind, offset, self.guest.bytes)
            self.play.at(done_s, partial(self.answered, asked_s, self.play.now_s, kind))

    def answered(self, asked_s: float, sent_s: float, kind: Kind) -> None:
        self.on_their_way -= 1
        self.counters[kind].add(self.play.now_s - sent_s, self.guest.bytes)
        self.first_looks[kind].add(self.play.now_s - sent_s, self.guest.bytes)
        if self.play.done_at_s is None:
            self.served.append((asked_s, self.play.now_s))
        self.send()

    def look(self, vmid: int) -> PatientSample:
        seen = {kind: each.seen() for kind, each in self.counters.items()}
        self.counters = counters()
        now_s, period_s = self.play.now_s, self.play.now_s - self.looked_s
        self.looked_s = now_s
        return PatientSample(vmid, now_s, period_s, seen, waits=self.on_their_way > 0)

    def waits_ms(self) -> float:
        found = sum_of(each.seen() for each in self.first_looks.values())
        self.first_looks = counters()
        return found.total_time_ns / 1e6 / found.operations if found.operations else 0.0


class GuestNight(NamedTuple):
    p99_ms: float
    stalled_s: float


class NodeNight(NamedTuple):
    """How it went."""

    duration_s: float
    guests: Mapping[int, GuestNight]
    """Neighbours by number; the guest in backup is 0."""
    actions: tuple[tuple[float, Action], ...]
    governor: rule.Governor

    def kinds(self) -> list[str]:
        return [action.kind for _, action in self.actions]

    def reasons(self) -> str:
        return "\n".join(action.reason for _, action in self.actions)


def node_night(  # noqa: PLR0915  (one loop)
    source: DiskModel,
    neighbours: Mapping[int, Guest],
    *,
    guest: Guest = IDLE,
    elsewhere: Mapping[int, DiskModel] | None = None,
    size_mib: int = 1500,
    workers: int = 16,
    governed: bool = True,
    spares_own: bool = True,
    limit: int = UNLIMITED,
    seed: int = 1,
    longest_s: float = 600.0,
    stretch_at_most: float = 1.9,
    window_s: float | None = None,
    night: NightShare = NOTHING_KNOWN,
) -> NodeNight:
    """Plays one backup to its end. `elsewhere`: neighbours whose disk is another one. `window_s` after the backup's
    start the window closes."""
    play = Play(source, None, guest, size_mib * MIB, workers, seed)
    play.done_at_s = BEFORE_S
    play.start_guest()
    own_queue = {vmid: Queue(model, seed + vmid) for vmid, model in (elsewhere or {}).items()}
    beside = {vmid: Neighbour(play, each, seed + vmid, own_queue.get(vmid)) for vmid, each in neighbours.items()}
    play.run_until(BEFORE_S)
    before = reading_of([Sample(BEFORE_S, BEFORE_S, play.completed(), 0, 0)])
    bounds = _bounds(before.latency_ms if before.operations else None, before.operations, before.in_flight)._replace(
        stretch_at_most=stretch_at_most,
        window_closes_s=BEFORE_S + window_s if window_s is not None else None,
        night=night,
    )
    governor = rule.Governor(acts=governed)
    before_ms = {}
    for vmid, each in beside.items():
        looked = each.look(vmid)
        each.waits_ms()
        own = reading_of([Sample(looked.at_s, looked.period_s, looked.completed, 0, 0)])
        found = _bounds(own.latency_ms if own.operations else None, own.operations, own.in_flight)
        patient = Patient(found.target_ms, was_idle=found.was_idle, is_busy=found.starts_slowly)
        governor = governor._replace(steering=governor.steering.with_patient(vmid, patient))
        before_ms[vmid] = own.latency_ms
    if not spares_own:
        own_patient = Patient(bounds.target_ms, is_spared=False)
        governor = governor._replace(steering=governor.steering.with_patient(0, own_patient))
    play.done_at_s, play.served = None, []
    play.limit = limit
    play.start_job()
    speed, total, actions = limit, _nothing(), []
    next_own_s, next_first_s = play.now_s, play.now_s
    next_look_s = dict.fromkeys(beside, play.now_s)
    while play.done_at_s is None and play.now_s < BEFORE_S + longest_s:
        play.run_until(min(next_own_s, next_first_s, *next_look_s.values()) if governed else play.now_s + 0.5)
        if not governed:
            play.completed()
            continue
        now_s = play.now_s
        if now_s >= next_first_s:
            next_first_s = now_s + FIRST_LOOK_S
            for vmid, each in beside.items():
                if each.waits_ms() > max(WAITS_ABOVE * before_ms[vmid], WAITS_ABOVE_MS):
                    next_look_s[vmid] = min(next_look_s[vmid], now_s)
        for vmid, each in beside.items():
            if now_s >= next_look_s[vmid]:
                look = each.look(vmid)
                governor = governor._replace(steering=governor.steering.seen(look))
                patient = governor.steering.patients[vmid]
                next_look_s[vmid] = now_s + look_every_s(governor.steering, vmid, governor.law)
                if vmid == governor.steering.by or patient.need > 1.5:
                    next_own_s = now_s
        if now_s < next_own_s:
            continue
        total = _added(total, play.completed())
        disks = (DiskCounters("scsi0", "scsi0", *(total[kind] for kind in REQUEST_KINDS)),)
        job = BlockJob(DEVICE, "backup", play.copied_bytes, play.size, speed)
        governor, ready = rule.step(governor, DiskSample(now_s, disks, (job,)), bounds, rule.NOTHING_SET)
        actions += [(now_s - BEFORE_S, each) for each in ready.report]
        if DEVICE in ready.set:
            speed = ready.set[DEVICE]
            play.set_limit(speed)
        next_own_s = now_s + governor.sample_every_s
    guests = {0: play.served, **{vmid: each.served for vmid, each in beside.items()}}
    return NodeNight(
        duration_s=(play.done_at_s or play.now_s) - BEFORE_S,
        guests={vmid: GuestNight(_p99_ms(served), stalled_s(served)) for vmid, served in guests.items()},
        actions=tuple(actions),
        governor=governor,
    )


def _bounds(latency_ms: float | None, operations: int, in_flight: float) -> Bounds:
    bounds = Bounds(target_ms(latency_ms, 10.0, 3.5), UNLIMITED, stretch_at_most=1.9)
    return bounds.with_activity(operations, in_flight * BEFORE_S * 1000, BEFORE_S)


def _p99_ms(served: list[tuple[float, float]]) -> float:
    ordered = sorted((done_s - asked_s) * 1000 for asked_s, done_s in served)
    return ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0


def _nothing() -> dict[str, RequestCounters]:
    return {kind: RequestCounters(0, 0, 0, None) for kind in REQUEST_KINDS}


def _added(total: Mapping[str, RequestCounters], more: Mapping[str, RequestCounters]) -> dict[str, RequestCounters]:
    return {kind: sum_of((more[kind], total[kind])) for kind in REQUEST_KINDS}
