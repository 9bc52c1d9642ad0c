"""What is known of one running guest while others' backups run: its last readings, and whether it waits for its disks.

    first look     block devices of its own, a container's pressure: cheap, often
    second look    QEMU's counters with histograms: over the monitor, when the guest waits or its time has come

A reading is compared with the one before only within one backup: what went on in between belongs to nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pvehook.contract.latency import DiskCounters, RequestCounters
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pressure import PressureTotals
from pvehook.host.block_counters import BlockCounters, completed_between, parse_block_stat, read_block_stat
from pvehook.host.node import Node
from pvehook.host.pressure import guest_pressure
from pvehook.records.stall_record import Baseline
from pvehook.rules.governor_constants import ACTIVITY_S
from pvehook.rules.latency import NS_PER_MS, NS_PER_S, count_from, disks_between, sum_of
from pvehook.rules.patients import Exposure, PatientSample, Resources
from pvehook.rules.stalls import SLOWED_AFTER_S
from pvehook.watch.baselines import LEAST_S, FirstReading, baseline_before, requests_between
from pvehook.watch.disk_sampler import went_back
from pvehook.watch.patients import RunningGuest, Standing
from pvehook.watch.suffering import Beside, SeenBy

WAITS_TIMES = 3.0
"""So many times its wait before the backup, and at least WAITS_MS: then it waits."""
WAITS_MS = 10.0
WAITS_ON_S = 3.0
"""For so long after it waited it is looked at as if it still did."""
FEW_REQUESTS = 20
"""With fewer it is not known how long its requests take without a backup."""


@dataclass(slots=True)
class Patient:
    """Used by one thread. Times are on the monotonic clock, loads are the run's backups by number, from 1 on."""

    guest: RunningGuest
    next_look_s: float
    """Over its monitor."""
    first: FirstReading | None = None
    """When its histograms were armed; of a container, of its block devices."""
    baseline: Measured[Baseline] | None = None
    """None: not asked for yet."""
    requests_before: tuple[int, float, float] | None = None
    load: int = 0
    """The backup beside which its requests were last read."""
    disks: tuple[DiskCounters, ...] = ()
    disks_s: float = 0.0
    refused: frozenset[str] = frozenset()
    """Disks of which QEMU keeps no histogram."""
    devices_load: int = 0
    devices_first: FirstReading | None = None
    devices_raw: list[bytes] = field(default_factory=list)
    devices: tuple[DiskCounters, ...] = ()
    devices_s: float = 0.0
    in_flight: bool | None = None
    pending_since_s: float | None = None
    """Since this look requests are in flight and none was completed."""
    knows_quiet_time: bool = False
    wait_before_ms: float | None = None
    sampled: FirstReading | None = None
    """Its devices at the last sample for the governor."""
    pressure: tuple[float, PressureTotals] | None = None
    pressure_before: tuple[float, float] = (0.0, 0.0)
    """In so much of the time some and all of the container waited for a disk before the backups."""
    is_pressed: bool = False
    """Over half of the time since the last look all of the container waited."""
    waits_until_s: float = 0.0
    misses: int = 0
    """How often in a row its monitor did not answer, and why."""
    why_missed: str = ""
    expected_in: int = 0
    """The backup for which it was looked at before its job came."""
    known_in: int = 0
    """The backup whose governor knows it."""
    exposure: Exposure = "unknown"
    unknown: tuple[str, ...] = ()
    """Why that is so."""
    placed_by: tuple[Standing | None, Resources | None, int] = (None, None, 0)
    """What `exposure` was found from, and in which backup."""
    is_spared: bool = True
    """By the administrator's rules."""
    latest: Mapping[str, RequestCounters] = field(default_factory=dict)
    """What was completed until the last look."""

    @property
    def vmid(self) -> int:
        return self.guest.vmid

    @property
    def has_monitor(self) -> bool:
        return self.guest.vmtype == "qemu"

    @property
    def device_names(self) -> tuple[str, ...]:
        return self.guest.standing.devices if self.guest.standing is not None else ()

    @property
    def shows_on_devices(self) -> bool:
        """Whether all of its volumes are block devices of the node."""
        return self.guest.standing is not None and self.guest.standing.only_devices

    @property
    def name(self) -> str | None:
        return self.guest.standing.name if self.guest.standing is not None else None

    @property
    def seen_by(self) -> SeenBy | None:
        """By what it is watched now; None: it is not."""
        if self.has_monitor and self.load and not self.misses:
            return "requests"
        if self.pressure is not None:
            return "pressure"
        return "block-devices" if self.devices_load else None

    @property
    def may_steer(self) -> bool:
        """Whether a backup may be slowed for it."""
        return None not in self.placed_by and self.exposure != "elsewhere" and self.is_spared

    def beside(self, vmid: int, vmtype: str | None) -> Beside:
        """How it stands to that guest's backup."""
        return Beside(vmid, vmtype, self.exposure)

    def waits(self, now_s: float) -> bool:
        """Now, or a moment ago."""
        return now_s < self.waits_until_s

    def know_quiet_time(self, node: Node, now_s: float) -> None:
        """What its devices show before the backups; to be called once, when they are known."""
        self.knows_quiet_time = True
        names = self.device_names
        if read := _parsed(names, [read_block_stat(node, name) for name in names]):
            self.devices_first = FirstReading(now_s, tuple(each.disk for each in read))
            if not self.has_monitor:
                self.first = self.devices_first

    def requests_to_devices(self, node: Node, now_s: float) -> tuple[int, float, float] | None:
        """What it asked of its block devices from the run's start until now, as requests_between tells it; None: it has
        none, or they were not read for long enough."""
        if self.devices_first is None or now_s - self.devices_first.at_s < ACTIVITY_S:
            return None
        read = _parsed(self.device_names, [read_block_stat(node, name) for name in self.device_names])
        return requests_between(self.devices_first, now_s, tuple(each.disk for each in read)) if read else None

    # The first look

    def look_at_devices(self, node: Node, now_s: float, load: int) -> tuple[float, float] | None:
        """Reads its block devices. Since when, and what one of the requests that completed since then took at least, in
        seconds; None: there are no devices, or it is the first look of this backup."""
        raw = [read_block_stat(node, name) for name in self.device_names]
        since_s, is_first = self.devices_s, self.devices_load != load
        if raw == self.devices_raw and not is_first and self.in_flight is False:  # idle, as most are
            self.devices_s = now_s
            return since_s, 0.0
        read = _parsed(self.device_names, raw)
        if not read:
            self.in_flight = None
            return None
        before, self.devices_raw = self.devices, raw
        self.devices, self.devices_s, self.devices_load = tuple(each.disk for each in read), now_s, load
        self.in_flight = any(each.in_flight for each in read)
        if self.wait_before_ms is None:
            self.wait_before_ms = self._wait_before(now_s)
        pending_since_s, self.pending_since_s = self.pending_since_s, now_s if self.in_flight else None
        completed = completed_between(before, self.devices)
        if is_first or completed is None:
            self.sampled = None
            return None
        operations, total_time_ns = completed
        if not operations:
            if self.in_flight and pending_since_s is not None:
                self.pending_since_s = pending_since_s
                self._note_wait(now_s, now_s - pending_since_s)
            return since_s, 0.0
        waited_s = since_s - pending_since_s if pending_since_s is not None else 0.0
        least_s = max(total_time_ns / operations / NS_PER_S, waited_s)
        self._note_wait(now_s, least_s)
        return since_s, least_s

    def look_at_pressure(self, node: Node, now_s: float) -> tuple[float, float, float] | None:
        """Of a container: since when, and for how many seconds since then all and some of it waited for a disk, beyond
        its share before the backups; None: not known."""
        totals = guest_pressure(node, self.vmid, "lxc")["io"]
        if isinstance(totals, (Absent, Broken)):
            self.pressure = None
            return None
        before, self.pressure = self.pressure, (now_s, totals)
        if before is None or totals.some_us < before[1].some_us:
            return None
        since_s, last = before
        some_before, full_before = self.pressure_before
        period_s = now_s - since_s
        full_s = max((totals.full_us - last.full_us) / 1e6 - full_before * period_s, 0.0)
        some_s = max((totals.some_us - last.some_us) / 1e6 - some_before * period_s, 0.0)
        self.is_pressed = full_s > period_s / 2
        return since_s, full_s, some_s

    def device_sample(self) -> PatientSample | None:
        """Of a container: what its block devices completed since the last sample, if there was one in this backup."""
        last, self.sampled = self.sampled, FirstReading(self.devices_s, self.devices)
        if last is None or went_back(last.disks, self.devices):
            return None
        self.latest = disks_between(last.disks, self.devices)
        return PatientSample(self.vmid, self.devices_s, self.devices_s - last.at_s, self.latest, self.in_flight)

    def _wait_before(self, now_s: float) -> float:
        """Milliseconds that a request to its devices took from the run's start to its first backup; where there were
        few, since the devices were made."""
        first = self.devices_first
        if first is not None and now_s - first.at_s >= LEAST_S:
            completed = sum_of(disks_between(first.disks, self.devices).values())
        if first is None or now_s - first.at_s < LEAST_S or completed.operations < FEW_REQUESTS:
            completed = sum_of(each for disk in self.devices for each in (disk.read, disk.write, disk.flush))
        return completed.total_time_ns / completed.operations / NS_PER_MS if completed.operations else 0.0

    def _note_wait(self, now_s: float, waited_s: float) -> None:
        if waited_s * 1000 > max(WAITS_TIMES * (self.wait_before_ms or 0.0), WAITS_MS):
            self.waits_until_s = now_s + WAITS_ON_S

    # The second look

    def is_armed(self, disks: Sequence[DiskCounters]) -> bool:
        """Whether all of its disks have a histogram that can have one: a disk may have been plugged in."""
        return all(disk.write.histogram is not None or disk.qdev in self.refused for disk in disks)

    def take_disks(self, now_s: float, disks: tuple[DiskCounters, ...], load: int) -> PatientSample | None:
        """What QEMU counted since the last look of this backup; None: this is the first one, or it counts anew."""
        before, since_s, is_first = self.disks, self.disks_s, self.load != load
        self.disks, self.disks_s, self.load = disks, now_s, load
        self.misses, self.why_missed = 0, ""
        if is_first or went_back(before, disks):
            return None
        completed = self.latest = disks_between(before, disks)
        requests = sum(each.operations for each in completed.values())
        mean_ms = sum(each.total_time_ns for each in completed.values()) / max(requests, 1) / NS_PER_MS
        histograms = [each.histogram for each in completed.values() if each.operations and each.histogram is not None]
        was_slow = any(count_from(each, round(SLOWED_AFTER_S * NS_PER_S)) for each in histograms)
        if was_slow or mean_ms > max(WAITS_TIMES * self._mean_before_ms(), WAITS_MS):
            self.waits_until_s = now_s + WAITS_ON_S
        in_flight = self.in_flight if self.shows_on_devices else None
        return PatientSample(self.vmid, now_s, now_s - since_s, completed, in_flight)

    def settle_baseline(self, now_s: float, counters: Sequence[DiskCounters]) -> Measured[Baseline]:
        """How it was before the first backup of this run; once."""
        if self.baseline is None:
            self.baseline = baseline_before(self.first, now_s, counters, self.guest.past)
            requests = requests_between(self.first, now_s, counters)
            self.requests_before = requests if requests is not None and requests[2] >= ACTIVITY_S else None
        return self.baseline

    def _mean_before_ms(self) -> float:
        before = self.baseline
        if not isinstance(before, Baseline):
            return self.wait_before_ms or 0.0
        kinds = (before.read, before.write, before.flush)
        operations = sum(each.operations for each in kinds)
        return sum(each.operations * (each.mean_ms or 0.0) for each in kinds) / max(operations, 1)


def _parsed(names: Sequence[str], raw: Sequence[bytes]) -> list[BlockCounters]:
    """Those that are there: one may have been unplugged."""
    pairs = zip(names, raw, strict=True)
    return [counters for name, text in pairs if (counters := parse_block_stat(name, text)) is not None]
