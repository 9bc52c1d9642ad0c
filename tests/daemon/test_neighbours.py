"""Guests beside a backup that come, go, change and hang in the middle of it: through hook, daemon and journal."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pvehook.contract.measured import value_of
from pvehook.host.clock import RehearsalClock
from pvehook.records.beside_record import BesideRecord
from pvehook.rehearsal.vm.disks import SimulatedDisk
from pvehook.rehearsal.vzdump.player import Played, Player
from pvehook.watch.watch_status import WatchStatus, read_status
from tests.guest_files import SimulatedGuest
from tests.node_under_test import NodeUnderTest
from tests.watch.test_guest_monitor import WEB, running_vm, wait_for_looks
from tests.watch.test_node_watch import (
    OTHER,
    neighbour,
    night,
    stats_read,
    suffered,
    wait_for_no_histograms,
    wait_for_stats,
)

pytestmark = pytest.mark.long

STALL_MS = 2600.0
PATIENCE_S = 60.0
"""A hundred guests have their turn once in 8 s."""
MANY = range(102, 201)


def begin(*guests: SimulatedGuest) -> None:
    """They are looked at beside this backup."""
    wait_for_each(guests, 2)
    for guest in guests:
        guest.serve_requests("write", 2.0, 200)


def stall(*guests: SimulatedGuest, disk: str = "scsi0") -> None:
    """One request of 2.6 s that begins now, and which a look has seen, of each of these guests. It is not the first
    look at them beside this backup."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < STALL_MS / 1000:
        wait_for_stats(guests[0])
    for guest in guests:
        guest.serve_requests("write", STALL_MS, 1, disk=disk)
    wait_for_each(guests, 2)  # the first of them may have been on its way


def wait_for_each(guests: Sequence[SimulatedGuest], looks: int) -> None:
    wanted = [stats_read(guest) + looks for guest in guests]
    for guest, number in zip(guests, wanted, strict=True):
        assert guest.wait_until(partial(_has_been_read, guest, number), PATIENCE_S)


def _has_been_read(guest: SimulatedGuest, times: int) -> bool:
    return stats_read(guest) >= times


def watched(node: NodeUnderTest) -> dict[int, str | None]:
    """The guests beside the backup, each with why it is not watched."""
    status = read_status(node.node, RehearsalClock(node.clock_file).steady_s())
    return {each.vmid: each.not_watched for each in status.guests} if isinstance(status, WatchStatus) else {}


def wait_until(web: SimulatedGuest, is_so: Callable[[], bool]) -> None:
    """Looks whenever the guest in backup is looked at."""
    assert web.wait_until(is_so, PATIENCE_S)


def record_of(node: NodeUnderTest, played: Played, vmid: int = 105) -> BesideRecord:
    """Of a night in which every phase was answered in time, by the daemon, and in which nothing of ours failed."""
    assert played.exit_code == 0
    assert [call.exit_code for call in played.calls] == [0] * len(played.calls)
    lines = [line for call in played.calls for line in call.lines]
    assert [line for line in lines if re.search("fault|given up|daemon", line)] == []
    assert [each.fields for each in node.journal.events if int(each.fields.get("PRIORITY", "6")) <= 3] == []
    assert "fault" not in node.event_names()
    (found,) = [each for each in suffered(node) if each.vmid == vmid]
    assert [each.vmid for each in found.beside] == [101]
    assert node.event_names().count("guest-suffered") >= 1
    return found


def stalls(record: BesideRecord) -> float:
    """How many of those of `stall` are in it; the resolution is a bin of the histogram."""
    stalled_s = value_of(record.stalled_s)
    assert stalled_s is not None
    return stalled_s / (STALL_MS / 1000)


def test_a_guest_that_is_started_in_the_middle_is_watched_from_then_on(node: NodeUnderTest) -> None:
    with ExitStack() as later, running_vm(node) as web:
        started: list[SimulatedGuest] = []

        def during() -> None:
            db = later.enter_context(neighbour(node))
            started.append(db)
            begin(db)
            stall(db)

        played = night(node, web, during)
        wait_for_no_histograms(started[0])
        later.close()
    record = record_of(node, played)
    assert stalls(record) == pytest.approx(1, rel=0.13)
    assert record.name == "db"


@pytest.mark.parametrize("is_migrated", [False, True])
def test_what_a_guest_suffered_stays_when_it_is_gone(node: NodeUnderTest, is_migrated: bool) -> None:
    """Stopped, or migrated away: then its configuration is another node's."""
    with running_vm(node) as web, ExitStack() as sooner:
        db = sooner.enter_context(neighbour(node))

        def during() -> None:
            begin(db)
            stall(db)
            if is_migrated:
                elsewhere = node.root / "etc/pve/nodes/other/qemu-server"
                elsewhere.mkdir(parents=True)
                (node.root / "etc/pve/qemu-server/105.conf").rename(elsewhere / "105.conf")
            sooner.close()
            wait_until(web, lambda: 105 not in watched(node))
            wait_for_looks(web)

        played = night(node, web, during)
    record = record_of(node, played)
    assert stalls(record) == pytest.approx(1, rel=0.13)
    assert record.name == "db"


def test_a_guest_that_is_rebooted_is_armed_anew_and_has_one_record(node: NodeUnderTest) -> None:
    """Its new QEMU counts from zero."""
    with running_vm(node) as web, ExitStack() as second:
        with ExitStack() as first:
            started = [first.enter_context(neighbour(node))]

            def during() -> None:
                begin(started[0])
                stall(started[0])
                first.close()
                db = second.enter_context(neighbour(node))
                started.append(db)
                begin(db)
                stall(db)

            played = night(node, web, during)
        wait_for_no_histograms(started[1])
        second.close()
    assert stalls(record_of(node, played)) == pytest.approx(2, rel=0.13)


def test_disks_that_are_unplugged_and_plugged_in_cost_no_figure_of_the_others(node: NodeUnderTest) -> None:
    with running_vm(node) as web, neighbour(node, disks=("scsi0", "scsi1")) as db:
        config = node.root / "etc/pve/qemu-server/105.conf"

        def during() -> None:
            begin(db)
            stall(db)
            stall(db, disk="scsi1")
            db.wait_until(lambda: bool(db._disks.pop("scsi1", None)) or True, PATIENCE_S)  # with its lock
            wait_for_stats(db, 2)
            stall(db)
            db.wait_until(lambda: bool(db._disks.setdefault("scsi2", SimulatedDisk("scsi2"))), PATIENCE_S)
            config.write_text(OTHER + "scsi2: local:105/vm-105-disk-2.raw\n")
            wait_until(web, lambda: bool(db._disks["scsi2"]._histograms))
            wait_for_stats(db, 2)
            stall(db, disk="scsi2")

        played = night(node, web, during)
        wait_for_no_histograms(db)
    assert stalls(record_of(node, played)) == pytest.approx(4, rel=0.13)


def test_a_monitor_that_hangs_delays_no_look_at_another_guest_and_no_phase(node: NodeUnderTest) -> None:
    with running_vm(node) as web, neighbour(node) as db, neighbour(node, 106) as mail:

        def during() -> None:
            begin(db)
            begin(mail)
            db.stick("qmp")
            wait_until(web, lambda: watched(node).get(105) is not None)
            heard = len(db.heard)
            for _ in range(3):
                stall(mail)
            assert len(db.heard) <= heard + 1  # a command that came before it hung

        played = night(node, web, during)
        assert stalls(record_of(node, played, 106)) == pytest.approx(3, rel=0.13)
        assert [each.vmid for each in suffered(node)] == [106]
        wait_for_no_histograms(mail)
        db.unstick("qmp")
        # It may have kept its histograms. The next night takes them for its own.
        assert night(node, web, lambda: begin(db)).exit_code == 0
        wait_for_no_histograms(db)
        wait_for_no_histograms(web)
    assert "fault" not in node.event_names()


def test_what_was_suffered_before_the_daemon_was_killed_is_in_the_record(node: NodeUnderTest) -> None:
    with running_vm(node) as web, neighbour(node) as db, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        begin(db)
        stall(db)
        (note,) = (node.root / "run/pvehook/jobs").glob("*.json")
        wait_until(web, lambda: "105" in json.loads(note.read_text())["beside"])
        node.kill_daemon()
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        begin(db)
        stall(db)
        web.finish_backup()
        player.go_on()
        played = player.finish()
        wait_for_no_histograms(db)
        wait_for_no_histograms(web)
    record = record_of(node, played)
    assert stalls(record) == pytest.approx(2, rel=0.13)
    assert [each["PVEHOOK_VMID"] for each in events(node, "guest-suffered")] == ["105"]


def events(node: NodeUnderTest, name: str) -> list[dict[str, str]]:
    return [each.fields for each in node.journal.events if each.fields.get("PVEHOOK_EVENT") == name]


@contextmanager
def running_process(node: NodeUnderTest, vmid: int) -> Iterator[None]:
    """A process that QEMU's pid file names and that names the VM, at less cost than a fake VM's. It waits for the end
    of its input."""
    argv = ["/bin/sh", "-c", "read nothing", "kvm", "-id", str(vmid)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        Path(node.root, f"var/run/qemu-server/{vmid}.pid").write_text(f"{process.pid}\n")
        yield  # leaving closes its input and waits for it


def test_of_a_hundred_guests_those_that_suffer_are_found_and_all_are_left_as_they_were(node: NodeUnderTest) -> None:
    with ExitStack() as guests, running_vm(node) as web:
        beside = {}
        for vmid in MANY:
            beside[vmid] = guests.enter_context(running_vm(node, vmid, f"name: guest{vmid}\n"))
            guests.enter_context(running_process(node, vmid))
        suffering = [102, 137, 151, 199, 200]

        def during() -> None:
            begin(*(beside[vmid] for vmid in suffering))
            stall(*(beside[vmid] for vmid in suffering))
            wait_until(web, lambda: len(watched(node)) == len(beside))
            assert all(stats_read(guest) for guest in beside.values())

        played = night(node, web, during)
        for guest in (web, *beside.values()):
            wait_for_no_histograms(guest)
        guests.close()
    for vmid in suffering:
        assert stalls(record_of(node, played, vmid)) == pytest.approx(1, rel=0.13)
    assert sorted(each["PVEHOOK_VMID"] for each in events(node, "guest-suffered")) == [str(each) for each in suffering]
