"""A night on paper: a guest, its backup job and the disks below them, and the governor that looks every half second.

Deterministic, on a clock of its own. The disks are those of tests/bench/disk_models.py. The job is what QEMU's is:
so many workers, each reads 1 MiB and writes it to the target; a limit that lets the next chunk through when the bytes
before it are paid for; a guest's first write to 64 KiB that are not copied yet waits until these are copied, and their
bytes are paid for by the job's limit, but not held by it.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

from pvehook.contract.latency import Histogram, RequestCounters, our_boundaries_ns
from pvehook.rules.governor_constants import IDLE_IN_FLIGHT, IDLE_REQUESTS_PER_S, UNLIMITED
from pvehook.rules.governor_law import advance, first_state
from pvehook.rules.governor_readings import Bounds, Sample, reading_of, target_ms
from pvehook.rules.governor_state import Action, Starting, State
from tests.bench.disk_models import MIB, DiskModel, Kind, Queue, stalled_s

CLUSTER = 64 * 1024
LOOK_EVERY_S, FIRST_LOOKS_EVERY_S, FIRST_S = 0.5, 0.1, 3.0
BOUNDARIES_NS = our_boundaries_ns()
LONGEST_DEBT_S = 1.0
BEFORE_S = 5.0


class Guest(NamedTuple):
    """What the guest asks of its disk, as long as `busy` says so."""

    per_s: float = 120.0
    writes: float = 0.7
    bytes: int = 8192
    at_once: int = 32
    """Requests that it sends before it waits for one; the others wait in the guest, and their age counts."""
    busy: Callable[[float], bool] = lambda _: True


class Night(NamedTuple):
    """How it went."""

    duration_s: float
    served: tuple[tuple[float, float], ...]
    """When each request was asked and when it was answered."""
    stalled_s: float
    """In which a request was on its way for more than 100 ms."""
    actions: tuple[tuple[float, Action], ...]
    speeds: tuple[int, ...]
    """After each look."""
    state: State

    @property
    def p99_ms(self) -> float:
        ordered = sorted((done_s - asked_s) * 1000 for asked_s, done_s in self.served)
        return ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0

    def kinds(self) -> list[str]:
        return [action.kind for _, action in self.actions]

    def reasons(self) -> str:
        return "\n".join(action.reason for _, action in self.actions)


class Counter:
    def __init__(self) -> None:
        self.operations = self.bytes = self.total_ns = 0
        self.counts = [0] * (len(BOUNDARIES_NS) + 1)

    def add(self, latency_s: float, length: int) -> None:
        nanoseconds = round(latency_s * 1e9)
        self.operations += 1
        self.bytes += length
        self.total_ns += nanoseconds
        self.counts[bisect.bisect_right(BOUNDARIES_NS, nanoseconds)] += 1

    def seen(self) -> RequestCounters:
        histogram = Histogram(BOUNDARIES_NS, tuple(self.counts))
        return RequestCounters(self.operations, self.bytes, self.total_ns, histogram)


def counters() -> dict[str, Counter]:
    return {kind: Counter() for kind in ("read", "write", "flush")}


class Play:
    def __init__(
        self, source: DiskModel, target: DiskModel | None, guest: Guest, size: int, workers: int, seed: int
    ) -> None:
        self.source = Queue(source, seed)
        self.target = Queue(target, seed + 1) if target else None
        self.guest, self.size, self.workers = guest, size, workers
        self.chance = random.Random(seed + 2)
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        self.limit = 0
        self.paid_until_s = 0.0
        self.asked_at_s = -1.0
        self.cursor = 0
        self.copied: set[int] = set()
        self.busy_workers = 0
        self.copied_bytes = 0
        self.in_copy: dict[int, float] = {}
        self.on_their_way = 0
        self.waiting: list[tuple[float, Kind]] = []
        self.counters = counters()
        self.served: list[tuple[float, float]] = []
        self.done_at_s: float | None = None

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when_s, self.number, what))

    def completed(self) -> dict[str, RequestCounters]:
        """What was completed since this was asked last."""
        seen = {kind: counter.seen() for kind, counter in self.counters.items()}
        self.counters = counters()
        return seen

    def run_until(self, until_s: float) -> None:
        while self.events and self.events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self.events)
            what()
        self.now_s = until_s

    # The job

    def start_job(self) -> None:
        for _ in range(self.workers):
            self.next_chunk()

    def set_limit(self, bytes_per_s: int) -> None:
        self.limit = bytes_per_s
        self.paid_until_s = min(self.paid_until_s, self.now_s + LONGEST_DEBT_S)
        self.wake()

    def wake(self) -> None:
        for _ in range(self.workers - self.busy_workers):
            self.next_chunk()

    def next_chunk(self) -> None:
        while self.cursor < self.size and self.cursor // CLUSTER in self.copied:
            self.cursor += CLUSTER
        if self.cursor >= self.size:
            if self.busy_workers == 0 and self.done_at_s is None and not self.in_copy:
                self.done_at_s = self.now_s
            return
        if self.limit and self.now_s < self.paid_until_s - 1e-9:
            if self.asked_at_s != self.paid_until_s:
                self.asked_at_s = self.paid_until_s
                self.at(self.paid_until_s, self.wake)
            return
        begin, clusters = self.cursor, 0
        while clusters < MIB // CLUSTER and self.cursor < self.size and self.cursor // CLUSTER not in self.copied:
            self.copied.add(self.cursor // CLUSTER)
            self.cursor += CLUSTER
            clusters += 1
        length = clusters * CLUSTER
        self.pay(length)
        self.busy_workers += 1

        def read() -> None:
            if self.target is None:
                written()
            else:
                self.at(self.target.done_s(self.now_s, "write", begin, length), written)

        def written() -> None:
            self.busy_workers -= 1
            self.copied_bytes += length
            self.wake()
            if self.cursor >= self.size:
                self.next_chunk()

        self.at(self.source.done_s(self.now_s, "read", begin, length), read)

    def pay(self, length: int) -> None:
        if self.limit:
            paid = max(self.paid_until_s, self.now_s) + length / self.limit
            self.paid_until_s = min(paid, self.now_s + max(LONGEST_DEBT_S, length / self.limit))

    # The guest

    def start_guest(self) -> None:
        self.at(0.0, self.arrives)
        self.at(0.5, self.flushes)

    def arrives(self) -> None:
        if self.guest.busy(self.now_s):
            self.ask("write" if self.chance.random() < self.guest.writes else "read")
        self.at(self.now_s + self.chance.expovariate(self.guest.per_s), self.arrives)

    def flushes(self) -> None:
        if self.guest.busy(self.now_s):
            self.ask("flush")
        self.at(self.now_s + 1.0, self.flushes)

    def ask(self, kind: Kind) -> None:
        self.waiting.append((self.now_s, kind))
        self.send()

    def send(self) -> None:
        while self.waiting and self.on_their_way < self.guest.at_once:
            asked_s, kind = self.waiting.pop(0)
            self.on_their_way += 1
            offset = self.chance.randrange(self.size // 4096) * 4096
            self.first_copy(asked_s, self.now_s, kind, offset)

    def first_copy(self, asked_s: float, sent_s: float, kind: Kind, offset: int) -> None:
        cluster = offset // CLUSTER
        if kind != "write" or cluster in self.copied or self.done_at_s is not None:
            self.serve(asked_s, sent_s, kind, offset)
            return
        self.copied.add(cluster)
        self.in_copy[cluster] = self.now_s
        self.pay(CLUSTER)

        def read() -> None:
            if self.target is None:
                copied()
            else:
                self.at(self.target.done_s(self.now_s, "write", cluster * CLUSTER, CLUSTER), copied)

        def copied() -> None:
            del self.in_copy[cluster]
            self.copied_bytes += CLUSTER
            self.serve(asked_s, sent_s, kind, offset)
            self.wake()

        self.at(self.source.done_s(self.now_s, "read", cluster * CLUSTER, CLUSTER), read)

    def serve(self, asked_s: float, sent_s: float, kind: Kind, offset: int) -> None:
        length = 0 if kind == "flush" else self.guest.bytes

        def answered() -> None:
            self.on_their_way -= 1
            self.counters[kind].add(self.now_s - sent_s, length)
            if self.done_at_s is None:
                self.served.append((asked_s, self.now_s))
            self.send()

        self.at(self.source.done_s(self.now_s, kind, offset, length), answered)


def night(
    source: DiskModel,
    *,
    target: DiskModel | None = None,
    guest: Guest | None = None,
    size_mib: int = 1500,
    workers: int = 16,
    governed: bool = True,
    bwlimit: int = UNLIMITED,
    window_s: float | None = None,
    stretch_at_most: float = 1.9,
    seed: int = 1,
    longest_s: float = 600.0,
    late_at_most_s: float = 0.0,
) -> Night:
    """Plays one backup to its end; its guest began `BEFORE_S` earlier. `window_s`: the window closes so long after.
    `late_at_most_s`: on a busy node every second look, by chance, comes so much later than it should, and every second
    speed is in force half as late."""
    play = Play(source, target, guest or Guest(), size_mib * MIB, workers, seed)
    play.done_at_s = BEFORE_S
    play.start_guest()
    play.run_until(BEFORE_S)
    before = reading_of([Sample(BEFORE_S, BEFORE_S, play.completed(), 0, 0)])
    guest_is_busy = before.in_flight >= IDLE_IN_FLIGHT
    bounds = Bounds(
        target_ms=target_ms(before.latency_ms if before.operations else None, 10.0, 3.5),
        original_bytes_per_s=bwlimit,
        stretch_at_most=stretch_at_most,
        starts_slowly=guest_is_busy,
        was_idle=not guest_is_busy and before.operations / BEFORE_S < IDLE_REQUESTS_PER_S,
        window_closes_s=BEFORE_S + window_s if window_s is not None else None,
    )
    play.done_at_s = None
    play.served = []
    play.limit = bwlimit
    actions, speeds = [], []
    state = first_state(bounds)
    began = not governed
    play.start_job()
    copied_before = 0
    chance, lag_s = random.Random(seed + 3), 0.0

    def late_s(at_most_s: float) -> float:
        return chance.uniform(0.2, 1.0) * at_most_s if at_most_s and chance.random() < 0.5 else 0.0

    while play.done_at_s is None and play.now_s < BEFORE_S + longest_s:
        is_young = play.now_s < BEFORE_S + FIRST_S or isinstance(state.phase, Starting)
        period_s = FIRST_LOOKS_EVERY_S if is_young else LOOK_EVERY_S
        period_s += late_s(late_at_most_s)
        play.run_until(play.now_s + period_s)
        completed = play.completed()
        if not governed:
            continue
        if not began:  # the first look only sees the job
            began, copied_before = True, play.copied_bytes
            play.set_limit(state.bytes_per_s)
            continue
        copied = play.copied_bytes
        sample = Sample(play.now_s, lag_s + period_s, completed, copied - copied_before, play.size - copied)
        copied_before = copied
        state, action = advance(state, sample, bounds)
        lag_s = 0.0
        if action is not None:
            actions.append((play.now_s - BEFORE_S, action))
            lag_s = late_s(late_at_most_s / 2)
            play.run_until(play.now_s + lag_s)
            play.set_limit(state.bytes_per_s)
        speeds.append(state.bytes_per_s)
    return Night(
        duration_s=(play.done_at_s or play.now_s) - BEFORE_S,
        served=tuple(play.served),
        stalled_s=stalled_s(play.served),
        actions=tuple(actions),
        speeds=tuple(speeds),
        state=state,
    )
