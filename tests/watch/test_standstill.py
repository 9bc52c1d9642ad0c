"""A backup that copies nothing is told of once, while it runs: here after half a second instead of a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pvehook.contract.measured import Absent
from pvehook.host.clock import SystemClock
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import journal_log
from pvehook.rehearsal.vm.simulated_guest import SimulatedGuest
from pvehook.settings import MetricsConfig
from pvehook.watch import backup_sampler
from pvehook.watch.backup_sampler import BackupSampler
from tests.node_under_test import NodeUnderTest
from tests.watch.test_guest_monitor import running_vm, wait_for_looks

STILL_S = 0.5


@contextmanager
def sampled(node: NodeUnderTest) -> Iterator[None]:
    log = journal_log(node.node.journal_socket)
    context = Context(node.node, SystemClock(), Readers(), log)
    record = GuestRecord(101, "stop", "qemu", "web", SystemClock().now_s(), target="/mnt/nas/dump/vzdump-qemu-101.vma")
    nothing = Absent("not asked")
    config = MetricsConfig(sample_every_s=0.2)
    sampler = BackupSampler(context, record, config, None, lambda _: nothing, lambda _: None, lambda: False)
    sampler.begin()
    sampler.archive_begins()
    try:
        yield
    finally:
        sampler.views(5.0)


def standstills(node: NodeUnderTest) -> list[dict[str, str]]:
    found = [each.fields for each in node.journal.events]
    return [each for each in found if each["PVEHOOK_EVENT"] == "backup-stands-still"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_sampler, "STANDS_STILL_S", STILL_S)


def start_backup(guest: SimulatedGuest) -> None:
    guest._change(guest._backup.start)


def test_a_backup_that_stands_still_is_told_of_once(node_without_daemon: NodeUnderTest) -> None:
    with running_vm(node_without_daemon) as guest, sampled(node_without_daemon):
        wait_for_looks(guest)
        start_backup(guest)
        event = node_without_daemon.wait_for_event("backup-stands-still", vmid="101")
        wait_for_looks(guest, 5)
    assert event["PRIORITY"] == "3"
    assert "VM 101 (web): its backup has copied nothing for" in event["MESSAGE"]
    assert "the target /mnt/nas/dump/vzdump-qemu-101.vma does not answer" in event["MESSAGE"]
    assert len(standstills(node_without_daemon)) == 1


def test_one_that_goes_on_is_not(node_without_daemon: NodeUnderTest) -> None:
    with running_vm(node_without_daemon, backup_s=60.0) as guest, sampled(node_without_daemon):
        wait_for_looks(guest)
        start_backup(guest)
        wait_for_looks(guest, 10)
        guest.finish_backup()
        wait_for_looks(guest, 5)  # and one whose job is over neither
    assert standstills(node_without_daemon) == []
