"""Nights through the real hook and the real daemon, with hooks/notify behind its socket: what goes wrong reaches
Proxmox's notifications once, and vzdump waits for nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from tests.daemon.test_overdue import FIRST_REFUSED, GOOD_NIGHT, night, nights
from tests.node_under_test import NodeUnderTest
from tests.notify_service import NotifyService
from tests.watch.test_guest_monitor import WEB, running_vm, wait_for_looks

__all__ = ["nights"]  # a fixture


@pytest.fixture
def service(node: NodeUnderTest) -> Iterator[NotifyService]:
    with NotifyService(node.node.notify_socket, node.root / "given") as service:
        yield service


def stalled_night(node: NodeUnderTest, vmid: int = 101, name: str = "web") -> None:
    """A run in which the guest's one write takes 2.6 s."""
    pause = f"archive {vmid}"
    run = node.run(Guest(vmid, name=name, agent=True), pauses=(pause,))
    with running_vm(node, vmid) as guest, Player(run) as player:
        player.wait_for(pause)
        wait_for_looks(guest)
        guest.serve_requests("write", 2600.0, 1)
        wait_for_looks(guest)
        guest.finish_backup()
        player.go_on()
        assert player.finish().exit_code == 0


def test_a_guest_that_stalled_is_one_warning_whichever_daemon_sees_it(
    node: NodeUnderTest, service: NotifyService
) -> None:
    stalled_night(node)
    assert node.wait_for_event("notification-sent")["PVEHOOK_GUESTS"] == "101"
    ((severity, template, data, fields),) = service.given()
    assert (severity, template) == ("warning", "pvehook")
    assert (fields["type"], fields["pvehook-event"], fields["vmid"]) == ("pvehook", "guest-stalled", "101")
    assert data["title"].startswith("VM 101 (web) stalled for 2.")
    assert data["lines"][0].startswith("VM 101 (web), in its own backup: stalled for 2.")
    assert {"text": "VM 101 (web) in detail", "command": "pvehook report --vmid 101"} in data["advice"]

    node.kill_daemon()
    node.start_daemon()
    stalled_night(node)
    # Behind it in the queue: the second run's stall has been considered when this is sent.
    stalled_night(node, 102, "build")
    node.wait_for_event("notification-sent", guests="102")
    assert [fields["vmid"] for _, _, _, fields in service.given()] == ["101", "102"]


def test_what_a_daemon_that_died_in_the_middle_of_the_run_had_seen_is_told_at_its_end(
    node: NodeUnderTest, service: NotifyService
) -> None:
    other = Guest(102, name="build")
    with running_vm(node) as guest, Player(node.run(WEB, other, pauses=("archive 101", "archive 102"))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        guest.serve_requests("write", 2600.0, 1)
        wait_for_looks(guest)
        guest.finish_backup()
        player.go_on()
        player.wait_for("archive 102")
        assert service.given() == []  # at the run's end
        node.kill_daemon()
        node.start_daemon()
        player.go_on()
        assert player.finish().exit_code == 0
    assert node.wait_for_event("notification-sent")["PVEHOOK_GUESTS"] == "101"


def test_a_guest_that_stays_frozen_is_an_error_at_once(node: NodeUnderTest, service: NotifyService) -> None:
    with running_vm(node, backup_s=0.5) as guest, Player(node.run(WEB, pauses=("after log-end 101",))) as player:
        guest.stick("freeze")
        player.wait_for("after log-end 101")
        node.wait_for_event("notification-sent", notice="guest-frozen")  # the run goes on
        ((severity, _, data, fields),) = service.given()
        player.go_on()
        player.finish()
    assert (severity, fields["vmid"], data["title"]) == ("error", "101", "VM 101 may still be frozen after its backup")
    assert "STILL FROZEN" in data["lines"][0]


def test_vzdump_waits_for_no_notification(node: NodeUnderTest, service: NotifyService) -> None:
    """The helper hangs from the first guest on, and the run comes to its end all the same."""
    service.does = "hang"
    stalled_night(node)
    service.wait_for_calls(1)
    assert play(node.run(Guest(102))).exit_code == 0
    names = node.event_names()
    assert names.count("job-ended") == 2
    assert "notification-sent" not in names
    assert "notification-not-sent" not in names


def test_an_overdue_guest_is_an_error_once_a_night_until_it_has_a_backup(
    nights: NodeUnderTest, service: NotifyService
) -> None:
    night(nights, GOOD_NIGHT, 20, "02:00")
    night(nights, FIRST_REFUSED, 21, "05:12")
    night(nights, FIRST_REFUSED, 22, "05:12")
    nights.wait_for_event("notification-sent", notice="guest-overdue", guests="101")
    ((severity, _, data, fields),) = service.given()
    assert (severity, fields["vmid"], data["title"]) == ("error", "101", "VM 101 archive is overdue for a backup")
    assert "refused twice: at 05:12 the backup window was closed" in data["lines"][0]
    assert data["advice"][0]["command"].startswith("pvehook allow --vmid 101 --for 4h")

    nights.kill_daemon()
    nights.start_daemon()
    night(nights, FIRST_REFUSED, 22, "06:00")
    before = len(nights.journal.events)
    night(nights, FIRST_REFUSED, 23, "05:12")
    nights.wait_for_event("notification-sent", after=before, notice="guest-overdue")
    assert len(service.given()) == 2
