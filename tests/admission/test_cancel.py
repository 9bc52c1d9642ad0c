"""`running_guest: cancel`: the window closes in the middle of an archive and Proxmox aborts that guest cleanly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from pvehook.host.ioprio import Priority, set_all_threads
from pvehook.rehearsal.vzdump.player import Played, Player
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue import allowances
from pvehook.rules.admission import Allowance
from tests.guest_files import SimulatedGuest
from tests.node_under_test import NodeUnderTest

IN_WINDOW, AFTER_WINDOW = "2026-11-22T04:50:00+00:00", "2026-11-22T05:10:00+00:00"
EXCEPTION = Allowance("a1", (101,), datetime.fromisoformat(AFTER_WINDOW).timestamp() + 3600, "must be done", "anna")
WAIT_S = 30.0


@pytest.fixture
def cancelling(node: NodeUnderTest) -> NodeUnderTest:
    node.configure(
        'window: {open: ["02:00-05:00"], timezone: UTC, running_guest: cancel}\nio_priority: {check_every: 500ms}\n'
    )
    node.set_clock(IN_WINDOW)
    return node


@pytest.fixture
def qmp_directory(cancelling: NodeUnderTest) -> Path:
    return cancelling.root / "var/run/qemu-server"


@pytest.fixture
def vm(qmp_directory: Path) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(qmp_directory), 101) as guest:
        yield guest


def wait_for_looks(node: NodeUnderTest, player: Player) -> None:
    """Until the daemon has looked at guest 101, and at the window, once more: each look begins with the priorities
    and ends with the window, so of two repairs of a priority there is a whole look between."""
    zstd = player.children(101)["zstd"]
    node.wait_for_event("io-priority-set", process=str(zstd))
    for _ in range(2):
        before = len(node.journal.events)
        set_all_threads(node.node, zstd, Priority(2, 4))
        node.wait_for_event("io-priority-set", after=before, process=str(zstd))


def refuse_all(monitor: socket.socket) -> None:
    """Closes each connection at once, the sampler's too, until the socket is gone."""
    with contextlib.suppress(OSError):
        while True:
            monitor.accept()[0].close()


def phases(played: Played, vmid: int) -> list[str]:
    return [call.argv[0] for call in played.calls if call.argv[2:] == (str(vmid),)]


def cancels_heard(vm: SimulatedGuest) -> int:
    return [heard.command for heard in vm.heard].count("backup-cancel")


def test_a_vm_over_the_windows_end_is_cancelled_and_aborted_cleanly(
    cancelling: NodeUnderTest, vm: SimulatedGuest
) -> None:
    with Player(cancelling.run(Guest(101, name="web"), Guest(102))) as player:
        assert vm.wait_until(lambda: vm.backup_runs, WAIT_S)
        cancelling.set_clock(AFTER_WINDOW)
        played = player.finish()

    assert phases(played, 101)[-2:] == ["backup-abort", "log-end"]
    assert "backup-end" not in phases(played, 101)
    assert phases(played, 102) == ["backup-start", "backup-abort", "log-end"]  # refused: the window is closed
    assert {call.exit_code for call in played.calls if call.argv != ("backup-start", "snapshot", "102")} == {0}
    assert any("Backup of VM 101 failed - backup canceled" in line for line in played.task_log)
    assert any("past the window's end and was cancelled" in line for line in played.task_log)
    done = cancelling.wait_for_event("guest-done", vmid="101")
    assert done["PVEHOOK_RESULT"] == "cancelled"
    assert "running_guest: cancel cancels it" in cancelling.wait_for_event("window-closed-on-guest")["MESSAGE"]
    assert "backup-cancel sent" in cancelling.wait_for_event("backup-cancelled", vmid="101")["MESSAGE"]
    assert cancelling.event_names().count("backup-cancelled") == 1
    assert any("VM 101 web cancelled" in " ".join(line.split()) for line in played.notification)


def test_inside_the_window_nothing_is_cancelled(cancelling: NodeUnderTest, vm: SimulatedGuest) -> None:
    with Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(cancelling, player)
        vm.finish_backup()
        player.go_on()
        assert player.finish().exit_code == 0
    assert cancels_heard(vm) == 0


def test_a_guest_that_is_to_finish_is_left_alone(cancelling: NodeUnderTest, vm: SimulatedGuest) -> None:
    cancelling.configure('window: {open: ["02:00-05:00"], timezone: UTC}\n')
    with Player(cancelling.run()) as player:
        assert vm.wait_until(lambda: vm.backup_runs, WAIT_S)
        cancelling.set_clock(AFTER_WINDOW)
        cancelling.wait_for_event("window-closed-on-guest", vmid="101")
        vm.finish_backup()
        played = player.finish()
    assert played.exit_code == 0
    assert cancels_heard(vm) == 0
    assert any("(running_guest: finish lets it finish)" in line for line in played.task_log)


def test_a_container_cannot_be_cancelled_and_the_journal_says_why(cancelling: NodeUnderTest) -> None:
    run = cancelling.run(Guest(110, kind="lxc", name="mail"), pauses=("archive 110",))
    with Player(run) as player:
        player.wait_for("archive 110")
        cancelling.set_clock(AFTER_WINDOW)
        closed = cancelling.wait_for_event("window-closed-on-guest", vmid="110")
        assert "running_guest: cancel cannot reach a container's backup" in closed["MESSAGE"]
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert cancelling.wait_for_event("guest-done", vmid="110")["PVEHOOK_RESULT"] == "ok"
    assert "backup-cancel-failed" not in cancelling.event_names()
    (line,) = [line for line in played.task_log if "past the window's end" in line]
    assert "(running_guest: cancel cannot reach a container's backup, it finishes)" in line


def test_without_a_monitor_the_backup_goes_on_and_the_journal_says_so(cancelling: NodeUnderTest) -> None:
    with Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        cancelling.set_clock(AFTER_WINDOW)
        failed = cancelling.wait_for_event("backup-cancel-failed", vmid="101")
        assert failed["PRIORITY"] == "3"
        assert "101.qmp" in failed["MESSAGE"]
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert cancelling.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"
    assert any("(running_guest: cancel failed: " in line for line in played.task_log)


def test_a_monitor_that_hangs_holds_no_phase(cancelling: NodeUnderTest, vm: SimulatedGuest) -> None:
    with Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        vm.stick("qmp")
        cancelling.set_clock(AFTER_WINDOW)
        failed = cancelling.wait_for_event("backup-cancel-failed", vmid="101")
        assert "could not be cancelled" in failed["MESSAGE"]
        vm.unstick("qmp")
        # Asked again at the next look, and now it is heard.
        cancelling.wait_for_event("backup-cancelled", vmid="101")
        played = player.finish()
    assert phases(played, 101)[-2:] == ["backup-abort", "log-end"]
    assert not any("the daemon does not answer" in line for call in played.calls for line in call.lines)
    assert cancelling.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "cancelled"


def test_a_monitor_that_always_fails_is_one_event_and_not_one_a_look(
    cancelling: NodeUnderTest, qmp_directory: Path
) -> None:
    """A guest may run for hours after the window's end; the journal is told once."""
    with socket.socket(socket.AF_UNIX) as monitor, Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        # Not before: the player would ask this monitor too.
        monitor.bind(str(qmp_directory / "101.qmp"))
        monitor.listen()
        refusing = threading.Thread(target=refuse_all, args=(monitor,))
        refusing.start()
        cancelling.set_clock(AFTER_WINDOW)
        wait_for_looks(cancelling, player)
        wait_for_looks(cancelling, player)
        player.go_on()
        player.finish()
        monitor.shutdown(socket.SHUT_RDWR)
        refusing.join()
    assert cancelling.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"
    assert cancelling.event_names().count("backup-cancel-failed") == 1


def test_an_exception_made_during_the_run_keeps_the_guest_running(
    cancelling: NodeUnderTest, vm: SimulatedGuest
) -> None:
    with Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        allowances.grant(cancelling.node, EXCEPTION)
        cancelling.set_clock(AFTER_WINDOW)
        wait_for_looks(cancelling, player)
        vm.finish_backup()
        player.go_on()
        assert player.finish().exit_code == 0
    assert cancels_heard(vm) == 0
    assert "window-closed-on-guest" not in cancelling.event_names()


def test_when_the_exception_is_taken_back_the_guest_is_cancelled(
    cancelling: NodeUnderTest, vm: SimulatedGuest
) -> None:
    with Player(cancelling.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        allowances.grant(cancelling.node, EXCEPTION)
        cancelling.set_clock(AFTER_WINDOW)
        wait_for_looks(cancelling, player)
        assert cancels_heard(vm) == 0
        assert allowances.revoke(cancelling.node, EXCEPTION.id)
        cancelling.wait_for_event("backup-cancelled", vmid="101")
        assert player.finish().exit_code != 0
