"""The governor's first limit, through the real hook and the real daemon: a busy guest's backup has it before the guest
is thawed, whatever `sample_every` says, and an idle guest's backup has none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import pytest

from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rules.governor_constants import START_BYTES_PER_S
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.watch.test_guest_monitor import WEB, running_vm, wait_for_looks

SELDOM = ALWAYS + "metrics: {sample_every: 5s}\n"


@contextmanager
def busy(guest: SimulatedGuest) -> Iterator[None]:
    """It has a request in flight at nearly any time."""
    ends = threading.Event()

    def ask() -> None:
        while not ends.wait(0.02):
            guest.serve_requests("write", 5.0, 4)

    guest.serve_requests("write", 5.0, 100)
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_a_busy_guests_backup_is_limited_between_its_start_and_the_thaw(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    node.configure(SELDOM)
    node.start_daemon()
    with running_vm(node, backup_s=600.0) as guest, busy(guest):
        with Player(node.run(WEB, pauses=("archive 101",))) as player:
            player.wait_for("archive 101")
            assert guest.wait_until(lambda: "guest-fsfreeze-thaw" in [each.command for each in guest.heard], 20)
            guest.finish_backup()
            player.go_on()
            assert player.finish().exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        heard = [each.command for each in guest.heard]
        assert guest.speeds_set[0] == START_BYTES_PER_S
        backup, limited = heard.index("backup"), heard.index("block-job-set-speed")
        assert backup < limited < heard.index("guest-fsfreeze-thaw")
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"


def test_a_slow_monitor_is_not_asked_for_it_while_the_guest_is_frozen(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    node.configure(SELDOM)
    node.start_daemon()
    with running_vm(node, backup_s=3.0, monitor_latency_s=0.05) as guest, busy(guest):
        assert play(node.run(WEB)).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent", done["MESSAGE"]
        heard = [each.command for each in guest.heard]
        between = heard[heard.index("backup") : heard.index("guest-fsfreeze-thaw")]
        assert "block-job-set-speed" not in between


@pytest.mark.parametrize("mode", ["snapshot", "suspend", "stop"])
def test_an_idle_guests_backup_is_not_limited(
    node: NodeUnderTest, mode: Literal["snapshot", "suspend", "stop"]
) -> None:
    """Also the first one of a run, which has been busy at some time since it was started."""
    run = replace(node.run(WEB, pauses=("after backup-start 101",)), mode=mode)
    with running_vm(node, backup_s=0.5) as guest:
        guest.serve_requests("write", 5.0, 100_000)
        with Player(run) as player:
            player.wait_for("after backup-start 101")
            # The second that a real run takes from here to the backup's job. Where that is awaited already, looks come
            # more often.
            wait_for_looks(guest, 12 if mode == "stop" else 4)
            player.go_on()
            assert player.finish().exit_code == 0
        assert guest.speeds_set == ()


def test_a_guest_that_stands_still_is_not_limited_however_busy_it_was(node: NodeUnderTest) -> None:
    """Suspended for its backup, or paused before; and its job begins before it could be looked at for long."""
    with running_vm(node, backup_s=0.5) as guest, busy(guest):
        assert play(replace(node.run(WEB), mode="suspend")).exit_code == 0
        assert guest.speeds_set == ()
        guest.pause()
        assert play(node.run(WEB)).exit_code == 0
        assert guest.speeds_set == ()
