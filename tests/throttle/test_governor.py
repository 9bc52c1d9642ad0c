"""The governor's hand on a simulated guest's real sockets: whose speed it changes, and that it comes back, whatever
dies. How fast is decided in tests/rules; what a guest gains is measured in tests/bench/governor.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from pvehook.contract.block_job import BlockJob, DiskSample
from pvehook.contract.latency import DiskCounters, RequestCounters
from pvehook.contract.measured import Absent
from pvehook.deadline import Deadline
from pvehook.guest.backup_tracker import BackupTracker
from pvehook.guest.block_stats import read_disks
from pvehook.guest.qmp import QmpConnection, open_qmp
from pvehook.guest.sockets import connect
from pvehook.records.encoding import encode
from pvehook.records.journal import journal_log
from pvehook.records.stall_record import Baseline
from pvehook.rescue.speed_record import SpeedRecord, read_record, record_path, restore_left_over_speeds, restore_speed
from pvehook.rules.governor_constants import AWAITED_EVERY_S, SAMPLE_EVERY_S, START_BYTES_PER_S, YOUNG_EVERY_S
from pvehook.rules.governor_policy import Setup
from pvehook.rules.latency import Latency
from pvehook.settings import GovernorConfig, GovernorMode
from pvehook.throttle.governor import POINTS_KEPT, Governor, latency_before_ms
from tests.guest_files import SimulatedGuest
from tests.node_under_test import REPO, NodeUnderTest

DEVICE = "drive-scsi0"
BWLIMIT = 50_000_000
WAIT_S = 30.0


LENGTH = 10**12
NONE = RequestCounters(0, 0, 0, None)
FAST = 100_000_000
"""How fast the backup would be."""


class Sampler:
    """Stands for the sampler: looks at the guest on real connections. The time between looks is said and not waited, so
    how far the job went in it is said too."""

    def __init__(self, node: NodeUnderTest, guest: SimulatedGuest, governor: Governor, tracker: BackupTracker) -> None:
        self.tracker = tracker
        self.node, self.guest, self.governor = node, guest, governor
        self.at_s = 1000.0
        self.copied = 0

    def look(self, latency_ms: float = 1.0, *, after_s: float = 0.5, writes: int = 100) -> None:
        """One look, `after_s` after the last one; in between the guest had so many writes of this latency."""
        deadline = Deadline.after(WAIT_S)
        with open_qmp(self.guest.qmp_path, deadline) as qmp:
            self.governor.act(qmp, self.seen(qmp, deadline, latency_ms, after_s, writes), deadline)

    def seen(
        self, qmp: QmpConnection, deadline: Deadline, latency_ms: float, after_s: float = 0.5, writes: int = 100
    ) -> DiskSample:
        self.guest.serve_requests("write", latency_ms, writes)
        self.at_s += after_s
        progress = self.tracker.poll(qmp, deadline)
        jobs = progress.jobs
        for job in jobs:
            self.copied += int(min(job.speed_bytes_per_s or FAST, FAST) * after_s)
        jobs = tuple(job._replace(offset_bytes=self.copied, length_bytes=LENGTH) for job in jobs)
        return DiskSample(self.at_s, read_disks(qmp, deadline), jobs)

    def start_job(self, bwlimit: int = 0) -> None:
        deadline = Deadline.after(WAIT_S)
        with open_qmp(self.guest.qmp_path, deadline) as qmp:
            qmp.execute("backup", deadline=deadline)
            if bwlimit:
                qmp.set_job_speed(DEVICE, bwlimit, deadline)

    def begin(self, bwlimit: int = 0) -> None:
        """The job begins, slowly, and soon runs at its own speed."""
        self.start_job(bwlimit)
        for _ in range(20):
            self.look(1.0)
            if self.guest.speeds_set and self.speed == bwlimit:
                return
        raise AssertionError("it is held though nobody suffers")

    def slow_down(self) -> None:
        for _ in range(4):
            self.look(400.0)
        assert 0 < self.speed < BWLIMIT

    @property
    def speed(self) -> int:
        """What the job's speed is now, as anybody sees it."""
        deadline = Deadline.after(WAIT_S)
        with open_qmp(self.guest.qmp_path, deadline) as qmp:
            return next(job.speed_bytes_per_s for job in qmp.query_block_jobs(deadline))


@contextmanager
def sampled(
    node: NodeUnderTest,
    mode: GovernorMode = "on",
    *,
    picked_up: bool = False,
    setup: Setup | None = None,
    backup_s: float | None = 600.0,
) -> Iterator[Sampler]:
    log = journal_log(node.node.journal_socket)
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, backup_s=backup_s) as guest:
        found = setup or Setup()
        picked_up_s = 0.0 if picked_up else None
        governor = Governor(node.node, 101, mode, GovernorConfig(), log, setup=found, picked_up_s=picked_up_s)
        yield Sampler(node, guest, governor, BackupTracker(picked_up=picked_up))


@pytest.fixture
def sampler(node_without_daemon: NodeUnderTest) -> Iterator[Sampler]:
    """A guest whose job has begun under the governor's eyes."""
    with sampled(node_without_daemon) as found:
        found.look()
        found.begin()
        yield found


def record(node: NodeUnderTest) -> Path:
    return Path(record_path(node.node, 101))


# Its work


def test_a_guest_that_suffers_gets_a_slower_backup_and_the_end_puts_its_speed_back(sampler: Sampler) -> None:
    sampler.slow_down()
    assert record(sampler.node).exists()
    sampler.governor.release()
    assert sampler.speed == 0
    assert not record(sampler.node).exists()


def test_a_backup_begins_slowly_and_then_runs_free_if_nobody_suffers(sampler: Sampler) -> None:
    *growing, last = sampler.guest.speeds_set
    assert growing[0] == START_BYTES_PER_S
    assert growing == sorted(growing)
    assert last == 0
    for _ in range(10):
        sampler.look(1.0)
    sampler.governor.release()
    assert sampler.guest.speeds_set == (*growing, last)
    assert sampler.governor.summary().slowed_s == 0
    assert sampler.node.event_names() == []
    assert not record(sampler.node).exists()


def test_a_daemon_that_dies_at_the_start_leaves_a_record_to_put_the_speed_back_by(
    node_without_daemon: NodeUnderTest,
) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        sampler.start_job()
        sampler.look()
        assert sampler.speed == START_BYTES_PER_S
        assert record(sampler.node).exists()
        restore_speed(sampler.node.node, 101, WAIT_S)
        assert sampler.speed == 0


def test_an_idle_guests_backup_is_not_kept_waiting(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_baseline(Baseline(60.0, "before", Latency(), Latency(100, 10.0), Latency()))
        sampler.look()
        sampler.start_job()
        for _ in range(10):
            sampler.look(1.0)
        assert sampler.guest.speeds_set == ()


@pytest.mark.parametrize(("writes_before", "slowed"), [(100, False), (900, True)])
def test_a_few_slow_requests_of_an_idle_guest_do_not_slow_its_backup(
    node_without_daemon: NodeUnderTest, writes_before: int, slowed: bool
) -> None:
    with sampled(node_without_daemon) as sampler:
        before = Baseline(60.0, "before", Latency(), Latency(writes_before, 5.0), Latency())
        sampler.governor.know_baseline(before)
        sampler.look()
        sampler.start_job()
        for _ in range(10):
            sampler.look(300.0, writes=2)
        assert bool(sampler.guest.speeds_set) == slowed


SINCE_START = Baseline(0.0, "since-start", Latency(), Latency(1_000_000, 5.0), Latency())
"""What the first guest of a run has: it tells how long its requests took, but not how often they came."""


@pytest.mark.parametrize(("writes", "slowed"), [(0, False), (1, False), (100, True)])
def test_the_first_guest_of_a_run_is_slowed_only_if_it_is_busy(
    node_without_daemon: NodeUnderTest, writes: int, slowed: bool
) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.look(writes=writes)
        sampler.governor.know_baseline(SINCE_START)
        sampler.look(writes=writes)
        sampler.start_job()
        for _ in range(5):
            sampler.look(writes=writes)
        assert bool(sampler.guest.speeds_set) == slowed


@pytest.mark.parametrize(("writes_before", "slowed"), [(20, False), (2000, True)])
def test_a_guest_whose_turn_comes_soon_is_as_busy_as_since_the_runs_start(
    node_without_daemon: NodeUnderTest, writes_before: int, slowed: bool
) -> None:
    """Too short a time for a baseline of its latency, and long enough to tell whether it asks for anything."""
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_activity(writes_before, writes_before * 5.0, 6.0)
        sampler.governor.know_baseline(SINCE_START)
        sampler.look(1.0)
        sampler.start_job()
        for _ in range(5):
            sampler.look(1.0)
        assert bool(sampler.guest.speeds_set) == slowed


@pytest.mark.parametrize(("writes_before", "slowed"), [(100, False), (9000, True)])
def test_the_first_guest_of_a_run_is_as_busy_as_in_its_last_nights(
    node_without_daemon: NodeUnderTest, writes_before: int, slowed: bool
) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_baseline(Baseline(60.0, "history", Latency(), Latency(writes_before, 10.0), Latency()))
        sampler.look(1.0)
        sampler.start_job()
        for _ in range(5):
            sampler.look(1.0)
        assert bool(sampler.guest.speeds_set) == slowed


def test_a_guest_whose_disks_were_never_used_is_not_slowed(node_without_daemon: NodeUnderTest) -> None:
    """A VM that vzdump has started for its backup, in mode stop."""
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_baseline(Absent("its disks have not been used since it was started"))
        sampler.look(writes=0)
        sampler.start_job()
        for _ in range(5):
            sampler.look(writes=0)
        assert sampler.guest.speeds_set == ()


def test_a_guest_that_was_busy_before_it_was_restarted_is_spared_the_burst(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.governor.know_baseline(Baseline(60.0, "before", Latency(), Latency(9000, 5.0), Latency()))
        sampler.governor.know_baseline(Absent("its disks have not been used since it was started"))
        sampler.look()
        sampler.start_job()
        sampler.look()
        assert sampler.speed == START_BYTES_PER_S


def test_the_first_limit_is_set_by_whoever_sees_the_job_first(node_without_daemon: NodeUnderTest) -> None:
    """The freeze's thread, before the thaw; the sampler goes on from there."""
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        sampler.look()
        sampler.start_job(BWLIMIT)
        deadline = Deadline.after(WAIT_S)
        with open_qmp(sampler.guest.qmp_path, deadline) as qmp:
            sampler.governor.backup_begins(qmp, tuple(qmp.query_block_jobs(deadline)), deadline)
        assert sampler.guest.speeds_set[-1] == START_BYTES_PER_S
        assert read_record(sampler.node.node, 101) is not None
        sampler.at_s = time.monotonic()
        for _ in range(20):
            sampler.look(1.0)
        assert sampler.speed == BWLIMIT
        assert sampler.governor.summary().reasons == ()


def test_a_governor_that_is_released_sets_nothing_any_more(node_without_daemon: NodeUnderTest) -> None:
    """The last sample is taken after it, and a job that a killed vzdump left behind still runs then."""
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        sampler.begin()
        sampler.governor.release()
        before = sampler.guest.speeds_set
        for _ in range(10):
            sampler.look(400.0)
        assert sampler.guest.speeds_set == before
        assert not record(sampler.node).exists()


def test_a_daemon_that_finds_a_backup_on_its_way_does_not_start_it_again(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, picked_up=True) as sampler:
        sampler.start_job()
        for _ in range(10):
            sampler.look(1.0)
        assert sampler.guest.speeds_set == ()


def test_the_record_is_written_before_the_speed_is_set(sampler: Sampler) -> None:
    found: list[tuple[int, SpeedRecord | None]] = []

    class Watched(QmpConnection):
        def set_job_speed(self, device: str, bytes_per_s: int, deadline: Deadline) -> None:
            found.append((bytes_per_s, read_record(sampler.node.node, 101)))

    while not found:
        deadline = Deadline.after(WAIT_S)
        with open_qmp(sampler.guest.qmp_path, deadline) as qmp:
            qmp.__class__ = Watched
            sampler.governor.act(qmp, sampler.seen(qmp, deadline, 400.0), deadline)
    (speed, left), *_ = found
    assert left is not None
    assert (left.original, left.ours) == ({DEVICE: 0}, (speed,))


def test_the_administrators_limit_is_what_is_put_back(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        sampler.begin(BWLIMIT)
        sampler.slow_down()
        assert sampler.speed < BWLIMIT
        sampler.governor.release()
        assert sampler.speed == BWLIMIT


def test_a_guest_that_did_not_suffer_needs_no_advice(node_without_daemon: NodeUnderTest) -> None:
    setup = Setup(max_workers=16, fleecing=False, iothread=False, shares_disk=True)
    with sampled(node_without_daemon, setup=setup) as sampler:
        sampler.look()
        sampler.begin()
        assert sampler.governor.summary().advice == ()
        sampler.slow_down()
        assert len(sampler.governor.summary().advice) == 3


def test_what_it_did_is_told_once_and_summed_up(sampler: Sampler) -> None:
    sampler.slow_down()
    for _ in range(30):
        sampler.look(400.0)
    sampler.governor.release()
    sampler.node.wait_for_event("governor-done")
    shown = [event.fields for event in sampler.node.journal.events]
    assert [each.get("PVEHOOK_ACTION") for each in shown] == ["slow", "give-up", None]
    assert [each["PVEHOOK_EVENT"] for each in shown] == ["governor-speed", "governor-speed", "governor-done"]
    assert shown[0]["MESSAGE"].startswith("VM 101: its requests took 400 ms (")
    assert shown[1]["PVEHOOK_CULPRIT"] in ("slow-target", "other-load")


def test_the_account_is_json_and_bounded_and_names_the_reasons(sampler: Sampler) -> None:
    sampler.slow_down()
    for number in range(3 * POINTS_KEPT):
        sampler.look(400.0 if number % 60 < 5 else 1.0)
    summary = sampler.governor.summary()
    json.dumps(encode(summary))
    assert 0 < len(summary.speeds) <= POINTS_KEPT
    assert summary.slowed_s > 0
    assert summary.reasons[0].startswith("its requests took 400 ms")
    assert summary.least_bytes_per_s is not None


def test_the_target_follows_the_guests_own_baseline(sampler: Sampler) -> None:
    sampler.governor.know_baseline(Baseline(60.0, "before", Latency(), Latency(100, 200.0), Latency()))
    for _ in range(10):
        sampler.look(400.0)
    assert sampler.speed == 0
    assert sampler.governor.summary().target_ms == 700.0


def test_an_absent_baseline_is_not_a_quick_guest(sampler: Sampler) -> None:
    sampler.governor.know_baseline(Absent("its disks have not been used"))
    sampler.look()
    assert sampler.governor.summary().target_ms == 35.0


def test_a_baseline_is_felt_as_the_rule_feels_latency() -> None:
    nothing = Latency()
    assert latency_before_ms(Baseline(60.0, "before", nothing, nothing, nothing)) is None
    before = Baseline(60.0, "before", Latency(100, 2.0), Latency(300, 4.0), nothing, p99_ms=30.0)
    assert latency_before_ms(before._replace(p99_ms=None)) == 3.5
    assert latency_before_ms(before) == 10.0


# Modes


def test_off_does_nothing(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, "off") as sampler:
        sampler.look()
        sampler.start_job()
        for _ in range(10):
            sampler.look(400.0)
        sampler.governor.release()
        assert sampler.guest.speeds_set == ()
        assert sampler.node.event_names() == []


def test_observe_says_what_it_would_do_and_does_nothing(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, "observe") as sampler:
        sampler.look()
        sampler.start_job()
        for _ in range(10):
            sampler.look(400.0)
        sampler.governor.release()
        assert sampler.guest.speeds_set == ()
        sampler.node.wait_for_event("governor-done")
        first, done = (event.fields["MESSAGE"] for event in sampler.node.journal.events)
        assert first.startswith("VM 101: observed only, nothing is set: its requests took 400 ms")
        assert done == "VM 101: governor observe: its guest suffered and its backup was not slowed"


# Whose jobs


def test_a_job_that_was_there_before_this_run_is_not_touched(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.start_job()
        for _ in range(10):
            sampler.look(400.0)
        assert sampler.guest.speeds_set == ()


def test_a_job_that_a_restarted_daemon_finds_is_its_own(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, picked_up=True) as sampler:
        sampler.start_job()
        sampler.slow_down()


def test_a_new_job_of_a_strangers_name_is_known_when_the_stranger_has_gone(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.start_job()
        sampler.look()
        sampler.guest.finish_backup()
        sampler.look()
        sampler.copied = 0
        sampler.begin()
        sampler.slow_down()


def test_a_speed_that_somebody_else_sets_stays(sampler: Sampler) -> None:
    sampler.slow_down()
    deadline = Deadline.after(WAIT_S)
    with open_qmp(sampler.guest.qmp_path, deadline) as qmp:
        qmp.set_job_speed(DEVICE, 7_000_000, deadline)
    for _ in range(10):
        sampler.look(400.0)
    sampler.governor.release()
    assert sampler.speed == 7_000_000
    assert not record(sampler.node).exists()
    assert any("by somebody else" in reason for reason in sampler.governor.summary().reasons)


class TwoDisks:
    """A transaction's two jobs, of which one runs after the other; both are there from the beginning. Stands for QEMU
    and for the sampler."""

    def __init__(self, node: NodeUnderTest, first: int, second: int) -> None:
        log = journal_log(node.node.journal_socket)
        self.governor = Governor(node.node, 101, "on", GovernorConfig(), log, setup=Setup(), picked_up_s=0.0)
        self.speeds = {"drive-scsi0": first, "drive-scsi1": second}
        self.at_s, self.writes, self.copied = 0.0, 0, 0

    def set_job_speed(self, device: str, bytes_per_s: int, deadline: Deadline) -> None:
        self.speeds[device] = bytes_per_s

    def sample(self, latency_ms: int) -> None:
        half = 5 * FAST
        jobs = (
            BlockJob("drive-scsi0", "backup", min(self.copied, half), half, self.speeds["drive-scsi0"]),
            BlockJob("drive-scsi1", "backup", max(self.copied - half, 0), 90 * FAST, self.speeds["drive-scsi1"]),
        )
        writes = RequestCounters(self.writes, self.writes, self.writes * latency_ms * 10**6, None)
        disk = DiskCounters("scsi0", "scsi0", NONE, writes, NONE)
        self.governor.act(cast("QmpConnection", self), DiskSample(self.at_s, (disk,), jobs), Deadline.after(WAIT_S))
        self.at_s, self.writes, self.copied = self.at_s + 1.0, self.writes + 100, self.copied + FAST


def test_the_next_disk_of_a_transaction_begins_at_the_speed_of_the_last(node_without_daemon: NodeUnderTest) -> None:
    disks = TwoDisks(node_without_daemon, 0, BWLIMIT)
    for _ in range(10):
        disks.sample(400)
        if disks.speeds["drive-scsi0"]:
            break
    assert 0 < disks.speeds["drive-scsi0"] == disks.speeds["drive-scsi1"] < BWLIMIT
    left = read_record(node_without_daemon.node, 101)
    assert left is not None
    assert left.original == {"drive-scsi0": 0, "drive-scsi1": BWLIMIT}


def test_the_next_disk_keeps_its_own_limit_while_nobody_suffers(node_without_daemon: NodeUnderTest) -> None:
    disks = TwoDisks(node_without_daemon, BWLIMIT, 0)
    for _ in range(12):
        disks.sample(1)
    assert disks.speeds == {"drive-scsi0": BWLIMIT, "drive-scsi1": 0}
    assert not record(node_without_daemon).exists()


def test_it_looks_often_while_a_job_is_awaited_and_young(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        assert sampler.governor.sample_every_s == AWAITED_EVERY_S  # it runs without a limit until it is seen
        sampler.start_job()
        sampler.look()
        assert sampler.governor.sample_every_s == YOUNG_EVERY_S
        sampler.look(after_s=4.0)
        assert sampler.governor.sample_every_s == YOUNG_EVERY_S  # it is still starting
        while sampler.speed:
            sampler.look()
        assert sampler.governor.sample_every_s == SAMPLE_EVERY_S
        sampler.guest.finish_backup()
        sampler.look()
        assert sampler.governor.sample_every_s == YOUNG_EVERY_S  # the next disk's job may come


# Faults


def test_lost_looks_give_the_original_speed_back(sampler: Sampler) -> None:
    sampler.slow_down()
    sampler.look(400.0, after_s=60.0)
    assert sampler.speed == 0
    sampler.look()
    assert not record(sampler.node).exists()
    assert "no sample for 60 s" in sampler.governor.summary().reasons


def test_a_job_that_ends_between_a_look_and_its_change_is_no_fault(sampler: Sampler) -> None:
    sampler.look()
    deadline = Deadline.after(WAIT_S)
    with open_qmp(sampler.guest.qmp_path, deadline) as qmp:
        look = sampler.seen(qmp, deadline, 400.0)
        sampler.guest.finish_backup()
        sampler.governor.act(qmp, look, deadline)
    sampler.governor.release()
    assert sampler.guest.speeds_set[-1] == 0
    assert not record(sampler.node).exists()


def test_a_refusal_that_stays_ends_it_and_is_told(sampler: Sampler) -> None:
    sampler.guest.refused["block-job-set-speed"] = "not today"
    for _ in range(10):
        sampler.look(400.0)
    sampler.node.wait_for_event("governor-stopped")
    sampler.governor.release()
    sampler.node.wait_for_event("governor-done")
    assert sampler.node.event_names().count("governor-stopped") == 1
    assert any("not today" in reason for reason in sampler.governor.summary().reasons)


def test_without_a_record_nothing_is_slowed(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        records = record(sampler.node).parent
        records.parent.mkdir(exist_ok=True)
        records.write_text("no directory")
        sampler.look()
        sampler.start_job()
        for _ in range(10):
            sampler.look(400.0)
        assert sampler.guest.speeds_set == ()
        sampler.node.wait_for_event("governor-stopped")
        sampler.governor.release()
        sampler.node.wait_for_event("governor-done")
        assert sampler.node.event_names().count("governor-stopped") == 1


def test_a_vm_that_is_gone_needs_nothing(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.look()
        sampler.begin()
        sampler.slow_down()
    sampler.governor.release()
    assert not record(node_without_daemon).exists()


# Whatever dies

SLOW_AND_DIE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pvehook.contract.block_job import DiskSample
from pvehook.guest.block_stats import read_disks
from pvehook.guest.qmp import open_qmp
from pvehook.deadline import Deadline
from pvehook.host.node import Node
from pvehook.throttle.governor import Governor
from pvehook.records.journal import journal_log
from pvehook.rules.governor_policy import Setup
from pvehook.settings import GovernorConfig

node = Node(sys.argv[2])
governor = Governor(node, 101, "on", GovernorConfig(), journal_log("/nowhere"), setup=Setup(), picked_up_s=0.0)
at_s = 0.0
while True:
    print("look", flush=True)
    sys.stdin.readline()
    at_s += 0.5
    deadline = Deadline.after(30)
    with open_qmp(node.path("/var/run/qemu-server/101.qmp"), deadline) as qmp:
        jobs = [job._replace(offset_bytes=int(at_s * 10**8)) for job in qmp.query_block_jobs(deadline)]
        look = DiskSample(at_s, read_disks(qmp, deadline), jobs)
        governor.act(qmp, look, deadline)
    if any(job.speed_bytes_per_s for job in look.jobs):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def slow_and_die(sampler: Sampler) -> None:
    """Another process slows the backup and is killed."""
    command = [sys.executable, "-c", SLOW_AND_DIE, str(REPO), str(sampler.node.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline():
            sampler.guest.serve_requests("write", 400.0, 100)
            process.stdin.write("\n")
            process.stdin.flush()
        process.stdin = None
    assert process.returncode == -signal.SIGKILL
    assert sampler.speed > 0


def left_over(node: NodeUnderTest) -> str:
    """What systemd runs after the daemon's death, with nothing but the standard library."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('psutil', 'yaml', 'structlog')));"  # None: cannot be imported
        f"sys.path.insert(0, {str(REPO)!r}); from pvehook.host.node import Node;"
        "from pvehook.rescue.speed_record import restore_left_over_speeds;"
        "print(*(each.text for each in restore_left_over_speeds(Node(sys.argv[1]))), sep='\\n')"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(node.root)]
    return subprocess.run(command, env={}, capture_output=True, text=True, check=True, timeout=15).stdout


def test_what_a_killed_daemon_left_slowed_is_put_back(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.start_job()
        slow_and_die(sampler)
        assert left_over(node_without_daemon) == (
            "guest 101: its backup was throttled by us; restored drive-scsi0 to no limit\n"
        )
        assert sampler.speed == 0
        assert not record(node_without_daemon).exists()


def test_a_new_governor_knows_the_speed_from_before_the_one_that_died(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon, picked_up=True) as sampler:
        sampler.start_job(BWLIMIT)
        slow_and_die(sampler)
        sampler.look()
        assert sampler.speed == BWLIMIT


def test_a_job_of_the_same_name_with_another_speed_is_not_put_back(node_without_daemon: NodeUnderTest) -> None:
    with sampled(node_without_daemon) as sampler:
        sampler.start_job()
        slow_and_die(sampler)
        sampler.guest.finish_backup()
        sampler.start_job(BWLIMIT)
        (done,) = restore_left_over_speeds(node_without_daemon.node)
        assert done.text.endswith("no job is as we left it, nothing to restore")
        assert sampler.speed == BWLIMIT


def test_a_busy_qmp_is_waited_for(sampler: Sampler) -> None:
    sampler.slow_down()
    with connect(sampler.guest.qmp_path) as other:
        other.allow()
        other.read_line(Deadline.after(WAIT_S))  # it is served, so whoever comes next is not
        done = restore_speed(sampler.node.node, 101, patience_s=0.3)
        assert done is not None
        assert not done.done
        assert done.text.startswith("guest 101: its backup is STILL THROTTLED, as far as we know: ")
        assert record(sampler.node).exists()
        waiting = threading.Thread(target=sampler.governor.release)
        waiting.start()
    waiting.join(WAIT_S)
    assert sampler.speed == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"vmid": "x"}', "[" * 5000, '{"vmid": 101, "original": 7}'])
def test_a_damaged_record_is_no_record(node_without_daemon: NodeUnderTest, text: str) -> None:
    path = record(node_without_daemon)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert restore_left_over_speeds(node_without_daemon.node) == []


def test_without_records_there_is_nothing_to_put_back(node_without_daemon: NodeUnderTest) -> None:
    assert not record(node_without_daemon).parent.exists()
    assert restore_left_over_speeds(node_without_daemon.node) == []
