"""`pvehook governor status`: what an administrator reads while backups run, through the real daemon."""

from __future__ import annotations

import json
import re

import pytest

from pvehook.cli import main
from pvehook.deadline import Deadline
from pvehook.guest.qmp import open_qmp
from pvehook.host.clock import SystemClock
from pvehook.rehearsal.vzdump.player import Player
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.speed_record import SpeedRecord, write_record
from pvehook.rules.governor_constants import START_BYTES_PER_S
from pvehook.watch.watch_status import WatchedGuest, remove_status, status_of, write_status
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.watch.test_guest_monitor import WEB, running_vm, wait_for_looks

LOOKS_AT_MOST = 200


def status(node: NodeUnderTest, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["governor", "status", "--root", str(node.root), *arguments]) == 0
    return capsys.readouterr().out


def die_with_it_slowed(node: NodeUnderTest, guest: SimulatedGuest) -> int:
    """The guest suffers until its backup is slowed, and the daemon dies, so that nothing moves while it is looked at.
    Returns the speed in bytes a second."""
    for _ in range(LOOKS_AT_MOST):
        guest.serve_requests("write", 400.0, 100)
        guest.serve_requests("read", 400.0, 100)
        wait_for_looks(guest, 1)
        if is_slowed(guest):
            node.kill_daemon()
            break
    assert is_slowed(guest), guest.speeds_set
    return guest.speeds_set[-1]


def is_slowed(guest: SimulatedGuest) -> bool:
    return bool(guest.speeds_set) and 0 < guest.speeds_set[-1] < START_BYTES_PER_S


def end(guest: SimulatedGuest, player: Player) -> None:
    guest.finish_backup()
    player.go_on()
    player.finish()


def test_without_a_backup_it_says_so(node: NodeUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["governor: on", "pvehook knows of no running backup", "no guest is watched"]
    assert status(node, capsys).splitlines() == shown
    told = {"mode": "on", "backups": [], "watch": {"absent": "no guest is watched"}}
    assert json.loads(status(node, capsys, "--json")) == told


def test_a_slowed_backup_says_how_fast_it_may_be_and_by_whom(
    node: NodeUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_vm(node, backup_s=600.0) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        speed = die_with_it_slowed(node, guest)
        slowed = status(node, capsys)
        (shown,) = json.loads(status(node, capsys, "--json"))["backups"]
        quiet = WatchedGuest(105, "db", "qemu", "shared", "block-devices")
        write_status(node.node, status_of(SystemClock().steady_s(), "UPID:", 101, None, (quiet,)))
        steered = status(node, capsys)
        remove_status(node.node)
        with open_qmp(guest.qmp_path, Deadline.after(5)) as qmp:
            qmp.set_job_speed("drive-scsi0", 12_300_000, Deadline.after(5))
        by_hand = status(node, capsys)
        end(guest, player)
    limit = f"{speed / 1e6:.1f} MB/s at most, throttled by the governor"
    assert re.fullmatch(rf"VM 101 \(web\): drive-scsi0 \d+% done, {limit}", slowed.splitlines()[1]), slowed
    assert "none suffers now; the backup is steered by its own guest" in steered.splitlines()
    assert (shown["vmid"], shown["device"], shown["speed_bytes_per_s"]) == (101, "drive-scsi0", speed)
    assert shown["throttled"] is True
    assert by_hand.splitlines()[1].endswith("% done, 12.3 MB/s at most")


def test_an_administrators_own_limit_is_not_called_the_governors(
    node: NodeUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of two disks with limits of their own the slower one's can be below what the governor would set for both.
    with running_vm(node, backup_s=600.0) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        speed = die_with_it_slowed(node, guest)
        write_record(node.node, SpeedRecord(101, guest.qmp_path, {"drive-scsi0": speed}, (speed,)))
        shown = status(node, capsys)
        end(guest, player)
    assert shown.splitlines()[1].endswith("MB/s at most")


def test_a_backup_that_may_run_free_says_so(node: NodeUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    with running_vm(node, backup_s=600.0) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)  # it is idle, so its backup is never slowed
        free = status(node, capsys)
        (shown,) = json.loads(status(node, capsys, "--json"))["backups"]
        end(guest, player)
    assert free.splitlines()[1].endswith("% done, as fast as it can")
    assert (shown["speed_bytes_per_s"], shown["throttled"]) == (0, False)


def test_a_guest_with_another_mode_says_which(
    node_without_daemon: NodeUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_without_daemon
    node.configure(ALWAYS + "governor: {rules: [{guests: [101], mode: observe}]}\n")
    node.start_daemon()
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        shown = status(node, capsys)
        end(guest, player)
    assert shown.splitlines()[0] == "governor: on"
    assert shown.splitlines()[1].endswith("as fast as it can (governor: observe)")


def test_a_container_has_no_speed(node: NodeUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    (node.root / "etc/pve/lxc/110.conf").write_text("hostname: mail\n")
    with Player(node.run(Guest(110, kind="lxc", name="mail"), pauses=("archive 110",))) as player:
        player.wait_for("archive 110")
        shown = status(node, capsys)
        player.go_on()
        player.finish()
    assert shown.splitlines()[1] == "CT 110 (mail): a container's backup has no speed that could be set"


def test_a_vm_that_does_not_answer_is_named(node: NodeUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        guest.stick("qmp")
        shown = status(node, capsys)
        guest.unstick("qmp")
        end(guest, player)
    assert re.match(r"VM 101 \(web\): .*(answer|2 s)", shown.splitlines()[1]), shown
