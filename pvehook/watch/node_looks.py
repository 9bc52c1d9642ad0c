"""The looks at the guests beside a backup: which one is next, what it costs, and what becomes of what is seen.

    first look     all guests in one pass: block counters, a container's pressure, what the governor wants to see soon
    second look    one guest: QEMU's counters over its monitor. Those that wait come first

All second looks share a budget: with more guests each has its turn less often, those that are well above all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pvehook.contract.latency import DiskCounters
from pvehook.contract.measured import Absent, value_of
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.block_stats import arm_histograms, read_disks
from pvehook.host.clock import Clock
from pvehook.host.node import Node
from pvehook.host.pressure import recent_io_share
from pvehook.rules.governor_constants import RANKED_S
from pvehook.rules.governor_policy import may_be_spared_for_others
from pvehook.rules.patients import PatientSample, Resources, exposure
from pvehook.settings import GovernorConfig
from pvehook.throttle.governor import Governor
from pvehook.watch.baselines import FirstReading
from pvehook.watch.patient import Patient
from pvehook.watch.patients import RunningGuest
from pvehook.watch.short_look import LookBudget, pause_after, short_look
from pvehook.watch.suffering import Suffering, Sufferings

ANSWER_S = 0.1
"""For QEMU's counters, once it has greeted."""
ARM_S = 0.5
"""For arming: some commands for each disk."""

WAITING_EVERY_S, QUIET_EVERY_S, QUIET_PER_GUEST_S = 0.5, 5.0, 0.15
"""Between two second looks at a guest that waits, and at one that is well: at least so long, and so long for each guest
of the node."""
ON_DEVICES_EVERY_S = 30.0
"""At one whose block devices all show that it is well."""
URGENT_PER_S, OTHERS_PER_S, AT_ONCE = 7.0, 7.0, 30.0
"""Second looks, all guests together; each costs the daemon 1.3 ms. Urgent are those at guests that wait, and those that
the governor waits for."""
FEW, URGENT_OF_FEW_PER_S = 20, 15.0
"""With so few guests on the node the others take little of it."""
ELSEWHERE_TIMES = 6.0
"""A guest that shares nothing with the backup is looked at so much more seldom."""
AFTER_A_LONG_TIME_S = 0.1
"""From a look that covers so long that a wait which has just begun hides in it to the next one."""
FIRST_EVERY_S, FIRST_PER_GUEST_S = 0.2, 0.015
"""Between two passes over block counters: at least the one, and the other for each guest."""

FORGOTTEN_AFTER = 3
"""So many looks in a row without an answer, and the governor does not reckon with the guest any more."""
KNOWN_WITHIN_S = 3.0
"""What a backup stands on is known within milliseconds. If it takes longer it counts as unknown."""
LAST_LOOKS_S = 1.0

_NOT_FOUND = Resources(frozenset(), ("the disks of the backup were not found in time",))


@dataclass(slots=True)
class Load:
    """One guest's backup, the `number`th of this run."""

    number: int
    vmid: int
    vmtype: str | None
    governor: Governor | None
    wake: Callable[[], None]
    """Asks for a sample of the guest in backup now."""
    config: GovernorConfig
    began_s: float
    resources: Resources | None = None
    """None: not found out yet."""
    ends: threading.Event = field(default_factory=threading.Event)


class NodeLooks:
    """Used by one thread."""

    def __init__(self, node: Node, clock: Clock, sufferings: Sufferings, will_arm: Callable[[int], None]) -> None:
        """`will_arm` is called before a VM is looked at, which arms its histograms."""
        self.patients: dict[int, Patient] = {}
        self._node = node
        self._clock = clock
        self._sufferings = sufferings
        self._will_arm = will_arm
        self._urgent = LookBudget(AT_ONCE)
        self._others = LookBudget(AT_ONCE)
        self._passed_s = 0.0
        self._known: Mapping[int, RunningGuest] | None = None

    def know_guests(self, guests: Mapping[int, RunningGuest], load: Load | None) -> None:
        """Patients for those who run. Another start is another patient; what it suffered is kept."""
        if guests is self._known:
            return
        self._known = guests
        now_s = time.monotonic()
        for vmid in self.patients.keys() - guests.keys():
            self._forget(self.patients.pop(vmid), load)
        for vmid, guest in guests.items():
            patient = self.patients.get(vmid)
            if patient is None or patient.guest.start != guest.start:
                if patient is not None:
                    self._forget(patient, load)
                patient = self.patients[vmid] = Patient(guest, now_s)
                if not patient.has_monitor:
                    patient.pressure_before = recent_io_share(self._node, vmid)
            patient.guest = guest
            if guest.standing is not None and not patient.knows_quiet_time:
                patient.know_quiet_time(self._node, now_s)

    def _forget(self, patient: Patient, load: Load | None) -> None:
        is_known = load is not None and load.number in (patient.known_in, patient.expected_in)
        if load is not None and load.governor is not None and is_known:
            load.governor.forget_patient(patient.vmid)
        patient.known_in = 0

    # The first look

    def first_looks(self, load: Load, now_s: float) -> float:
        """At all of them. When to come again."""
        for patient in self.beside(load):
            self._place(patient, load, now_s)
            if patient.may_steer and patient.expected_in != load.number:
                self._expect(patient, load, now_s)
            wanted_s = self._wanted_every_s(patient, load, now_s)
            if patient.device_names:
                self._look_at_devices(patient, load, now_s, wanted_s)
            if not patient.has_monitor and (pressed := patient.look_at_pressure(self._node, now_s)) is not None:
                since_s, full_s, some_s = pressed
                if since_s >= load.began_s:
                    with self._counted(patient) as suffering:
                        suffering.take_pressure(patient.beside(load.vmid, load.vmtype), now_s, since_s, full_s, some_s)
            if patient.has_monitor and not patient.misses:
                patient.next_look_s = min(patient.next_look_s, now_s + wanted_s)
        return now_s + max(FIRST_EVERY_S, FIRST_PER_GUEST_S * len(self.patients))

    def _look_at_devices(self, patient: Patient, load: Load, now_s: float, wanted_s: float) -> None:
        waited = patient.waits(now_s)
        seen = patient.look_at_devices(self._node, now_s, load.number)
        if patient.has_monitor and not patient.misses:
            if patient.waits(now_s) and not waited:
                patient.next_look_s = now_s
            return
        # A container, or a VM whose monitor does not answer.
        if seen is not None and not isinstance(patient.pressure, tuple):
            since_s, least_s = seen
            with self._counted(patient) as suffering:
                suffering.take_wait(patient.beside(load.vmid, load.vmtype), now_s, since_s, least_s)
        if not patient.has_monitor and (patient.sampled is None or now_s - patient.sampled.at_s >= wanted_s):
            self._know(patient, load, patient.devices)
            if (sample := patient.device_sample()) is not None:
                self._give(patient, load, sample)

    def _expect(self, patient: Patient, load: Load, now_s: float) -> None:
        """A backup begins that it may suffer from, and its job may come within a tenth of a second. How busy the guest
        is tells how that is to start; its block devices tell it at once, its monitor is next."""
        patient.expected_in = load.number
        if patient.load == load.number:  # it was looked at before it was known what it shares
            self._know(patient, load, patient.disks)
            return
        if patient.has_monitor and not patient.misses:
            patient.next_look_s = now_s
        if load.governor is not None and (requests := patient.requests_to_devices(self._node, now_s)) is not None:
            before = patient.baseline or patient.guest.past or Absent("its disks were not looked at yet")
            load.governor.know_patient(patient.vmid, patient.name, before, requests)

    def _place(self, patient: Patient, load: Load, now_s: float) -> None:
        """Whether it shares something with the backup."""
        standing, resources = patient.guest.standing, load.resources
        if resources is None and now_s - load.began_s > KNOWN_WITHIN_S:
            resources = _NOT_FOUND
        if patient.placed_by == (standing, resources, load.number):
            return
        patient.placed_by = standing, resources, load.number
        if standing is None or resources is None:
            patient.exposure, patient.unknown = "unknown", ()
            return
        patient.exposure = exposure(standing.resources, resources)
        patient.unknown = (*standing.resources.unknown, *resources.unknown) if patient.exposure == "unknown" else ()
        patient.is_spared = may_be_spared_for_others(load.config, patient.vmid, standing.name, standing.tags)
        if not patient.may_steer:
            self._forget(patient, load)

    # The second look

    def second_look(self, load: Load | None) -> float:
        """One, over a monitor, of the guest that is most in need of it, or that is to be armed. When the next one is
        due."""
        now_s = time.monotonic()
        in_backup = load.vmid if load is not None else None
        next_s = now_s + QUIET_EVERY_S
        urgent: list[tuple[float, float, int]] = []
        others: list[tuple[float, float, int]] = []
        for vmid, patient in self.patients.items():
            if patient.guest.vmtype != "qemu" or vmid == in_backup or (load is None and patient.first is not None):
                continue
            if patient.next_look_s > now_s:
                next_s = min(next_s, patient.next_look_s)
                continue
            wanted_s = self._wanted_every_s(patient, load, now_s) if load is not None else 0.0
            if load is not None and patient.load != load.number:
                others.append((0.0, patient.next_look_s, vmid))  # its first one beside this backup
            else:
                (urgent if wanted_s <= WAITING_EVERY_S else others).append((wanted_s, patient.next_look_s, vmid))
        urgent_per_s = URGENT_OF_FEW_PER_S if len(self.patients) <= FEW else URGENT_PER_S
        for due, budget, per_s in ((urgent, self._urgent, urgent_per_s), (others, self._others, OTHERS_PER_S)):
            if not due:
                continue
            # At job-start all are armed, one after the other.
            wait_s = budget.take(now_s, per_s) if load is not None else 0.0
            if not wait_s:
                self._look_at_disks(self.patients[min(due)[2]], load)
                return now_s
            next_s = min(next_s, now_s + wait_s)
        return next_s

    def _look_at_disks(self, patient: Patient, load: Load | None) -> None:
        self._will_arm(patient.vmid)  # or it was by a daemon that was killed before it could say so
        try:
            with short_look(self._node, patient.vmid, hung=patient.misses > 0) as qmp:
                disks = read_disks(qmp, Deadline.after(ANSWER_S), [each.qdev for each in patient.disks])
                if not patient.is_armed(disks):
                    deadline = Deadline.after(ARM_S)
                    arming = arm_histograms(qmp, disks, deadline)
                    patient.refused = frozenset((*arming.theirs, *(qdev for qdev, _ in arming.refused)))
                    disks = read_disks(qmp, deadline, [each.qdev for each in disks])
        except GuestError as error:
            self._missed(patient, load, error)
            return
        now_s = time.monotonic()
        if load is None:  # between backups it is only armed
            patient.first = patient.first or FirstReading(now_s, disks)
            patient.disks, patient.misses = disks, 0
            return
        since_s = patient.disks_s
        if (sample := patient.take_disks(now_s, disks, load.number)) is not None:
            with self._counted(patient) as suffering:
                suffering.take_requests(patient.beside(load.vmid, load.vmtype), now_s, since_s, sample.completed)
        self._know(patient, load, disks)
        if sample is not None:
            self._give(patient, load, sample)
        patient.next_look_s = now_s + self._wanted_every_s(patient, load, now_s)
        if sample is not None and sample.period_s > RANKED_S and patient.waits(now_s):
            # Its wait has just begun, and this look shows it among all that was quick before: the next one tells.
            patient.next_look_s = min(patient.next_look_s, now_s + AFTER_A_LONG_TIME_S)

    def _missed(self, patient: Patient, load: Load | None, error: GuestError) -> None:
        """It is left alone for a while."""
        patient.misses, patient.why_missed = patient.misses + 1, str(error)
        patient.next_look_s = time.monotonic() + pause_after(error, patient.misses)
        if load is not None and patient.misses >= FORGOTTEN_AFTER:
            self._forget(patient, load)

    def _wanted_every_s(self, patient: Patient, load: Load, now_s: float) -> float:
        quiet_s = max(QUIET_EVERY_S, QUIET_PER_GUEST_S * len(self.patients))
        if patient.shows_on_devices:
            quiet_s = max(quiet_s, ON_DEVICES_EVERY_S)
        every_s = WAITING_EVERY_S if now_s < patient.waits_until_s else quiet_s
        if patient.exposure == "elsewhere":
            return every_s * ELSEWHERE_TIMES
        if load.governor is not None and patient.known_in == load.number:
            wanted_s = load.governor.look_every_s(patient.vmid)
            if wanted_s < QUIET_EVERY_S:  # else it has no wish
                return min(every_s, wanted_s)
        return every_s

    def last_looks(self, load: Load) -> None:
        """At those that wait, before their time beside this backup ends."""
        deadline = Deadline.after(LAST_LOOKS_S)
        now_s = time.monotonic()
        for patient in self.beside(load):
            if patient.waits(now_s) and patient.has_monitor and not patient.misses and deadline.left_s() > 0:
                self._look_at_disks(patient, load)

    def beside(self, load: Load | None) -> list[Patient]:
        """All but the guest in backup."""
        return [each for each in self.patients.values() if load is None or each.vmid != load.vmid]

    def _know(self, patient: Patient, load: Load, counters: Sequence[DiskCounters]) -> None:
        """The governor is told of a patient for which it may slow the backup, before the first sample of it."""
        before = patient.settle_baseline(time.monotonic(), counters)
        if (baseline := value_of(before)) is not None:
            with self._counted(patient) as suffering:
                suffering.baseline_p99_ms = baseline.p99_ms
        if load.governor is not None and patient.may_steer and patient.known_in != load.number:
            load.governor.know_patient(patient.vmid, patient.name, before, patient.requests_before)
            patient.known_in = load.number

    def _give(self, patient: Patient, load: Load, sample: PatientSample) -> None:
        governor = load.governor
        if governor is not None and patient.known_in == load.number and governor.take(sample):
            load.wake()

    @contextlib.contextmanager
    def _counted(self, patient: Patient) -> Iterator[Suffering]:
        """What it suffers, to be changed within the block."""

        def new() -> Suffering:
            return Suffering(
                vmid=patient.vmid,
                name=None,
                vmtype=patient.guest.vmtype,
                started_s=self._clock.now_s(),
                started_at_s=time.monotonic(),
            )

        with self._sufferings.counted(patient.vmid, new) as suffering:
            suffering.name = patient.name or suffering.name
            suffering.unknown = list(patient.unknown) or suffering.unknown
            yield suffering

    def count_slowing(self, load: Load, now_s: float) -> None:
        """For whom the backup has been slowed since the last pass."""
        lasted_s, self._passed_s = now_s - self._passed_s, now_s
        governor = load.governor
        steers = governor.steers if governor is not None and governor.is_slowed else None
        patient = self.patients.get(steers) if steers is not None else None
        if patient is not None and now_s - lasted_s >= load.began_s:
            with self._counted(patient) as suffering:
                suffering.take_slowing(patient.beside(load.vmid, load.vmtype), lasted_s)
