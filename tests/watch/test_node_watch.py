"""Guests beside the backup of another: through the real hook and the real daemon, on simulated guests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pvehook.contract.measured import value_of
from pvehook.records.beside_history import beside_records
from pvehook.records.beside_record import BesideRecord
from pvehook.records.history import reading
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.player import Played, Player
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.watch.test_guest_monitor import WEB, running_vm, wait_for_looks

WITHIN_S = 20.0
OTHER = "name: db\nscsi0: local:105/vm-105-disk-0.raw\n"


@contextmanager
def neighbour(node: NodeUnderTest, vmid: int = 105, **options: object) -> Iterator[SimulatedGuest]:
    """A VM that runs and is in no job."""
    with running_vm(node, vmid, OTHER.replace("105", str(vmid)), **options) as guest:
        fake_vm_process.start(node.node, vmid)
        try:
            yield guest
        finally:
            fake_vm_process.stop(node.node, vmid)


def stats_read(guest: SimulatedGuest) -> int:
    return sum(each.command == "query-blockstats" for each in guest.heard)


def wait_for_stats(guest: SimulatedGuest, more: int = 1) -> None:
    wanted = stats_read(guest) + more
    assert guest.wait_until(lambda: stats_read(guest) >= wanted, WITHIN_S)


def wait_for_no_histograms(guest: SimulatedGuest) -> None:
    assert guest.wait_until(lambda: not guest.has_histograms, WITHIN_S)


def night(node: NodeUnderTest, guest: SimulatedGuest, during: Callable[[], None]) -> Played:
    """A backup of `guest`; `during` it."""
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        during()
        guest.finish_backup()
        player.go_on()
        return player.finish()


def suffered(node: NodeUnderTest) -> list[BesideRecord]:
    with reading(str(node.root / "var/lib/pvehook/history.db")) as history:
        return beside_records(history, 0.0, 1e11)


def test_a_guest_in_no_job_that_suffers_beside_a_backup_has_a_record(node: NodeUnderTest) -> None:
    with running_vm(node) as web, neighbour(node) as db:

        def during() -> None:
            wait_for_stats(db)
            db.serve_requests("write", 2.0, 200)
            db.serve_requests("write", 2600.0, 1)
            wait_for_stats(db, 2)

        played = night(node, web, during)
        wait_for_no_histograms(db)
    (record,) = suffered(node)
    assert (record.vmid, record.name, record.severity, record.seen_by) == (105, "db", "stalled", "requests")
    assert value_of(record.stalled_s) == pytest.approx(2.6, rel=0.13)
    assert [each.vmid for each in record.beside] == [101]
    event = node.wait_for_event("guest-suffered", vmid="105")
    assert event["PRIORITY"] == "4"
    assert any("VM 105" in line and "neighbour" in line for line in played.notification)
    assert "fault" not in node.event_names()


def test_a_daemon_killed_in_the_middle_loses_nothing_and_histograms_are_removed_all_the_same(
    node: NodeUnderTest,
) -> None:
    with running_vm(node) as web, neighbour(node) as db:

        def during() -> None:
            wait_for_stats(db)
            db.serve_requests("write", 2600.0, 1)
            wait_for_stats(db, 2)
            node.daemon.terminate()  # it writes down what it counted
            node.daemon.wait(WITHIN_S)
            node.start_daemon()
            wait_for_stats(db)
            node.kill_daemon()
            node.start_daemon()
            wait_for_stats(db)
            assert db.has_histograms

        night(node, web, during)
        wait_for_no_histograms(db)
        wait_for_no_histograms(web)
    (record,) = suffered(node)
    assert value_of(record.stalled_s) == pytest.approx(2.6, rel=0.13)
    assert "fault" not in node.event_names()


def test_a_worker_that_is_killed_costs_no_neighbours_record(node: NodeUnderTest) -> None:
    with running_vm(node) as web, neighbour(node) as db:
        with Player(node.run(WEB, pauses=("archive 101",))) as player:
            player.wait_for("archive 101")
            wait_for_looks(web)
            wait_for_stats(db)
            db.serve_requests("write", 2600.0, 1)
            wait_for_stats(db, 2)
            player.send_signal(signal.SIGKILL)
        node.wait_for_event("worker-died")
        node.wait_for_event("guest-suffered", vmid="105")
        wait_for_no_histograms(db)
    (record,) = suffered(node)
    assert record.vmid == 105


def test_without_metrics_nobody_is_watched(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + "metrics: {mode: off}\n")
    with running_vm(node) as web, neighbour(node) as db:
        with Player(node.run(WEB, pauses=("archive 101",))) as player:
            player.wait_for("archive 101")
            web.finish_backup()
            player.go_on()
            player.finish()
        assert not db.heard
