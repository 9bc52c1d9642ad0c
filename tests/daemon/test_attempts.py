"""Every guest's turn is in the history, also of one that has no backup: what became of it, and why."""

from __future__ import annotations

import contextlib
import json
import signal
import time

import pytest

from pvehook.errors import NodeError
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between
from pvehook.records.history import history_file, reading
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from tests.node_under_test import NEVER, NodeUnderTest

WITHIN_S = 20.0


def attempts(node: NodeUnderTest, *vmids: int) -> dict[int, Attempt]:
    """By guest, as soon as there are those of `vmids`."""
    until_s = time.monotonic() + WITHIN_S
    while True:
        found: dict[int, Attempt] = {}
        with contextlib.suppress(NodeError), reading(history_file(node.node)) as history:
            found = {each.vmid: each for each in attempts_between(history, 0.0, 1e12)}
        if found.keys() >= set(vmids):
            return found
        assert time.monotonic() < until_s, found
        time.sleep(0.02)


def test_one_that_was_backed_up_and_one_that_failed_in_vzdumps_own_words(node: NodeUnderTest) -> None:
    played = play(node.run(Guest(101, name="web", archive_s=0.2), Guest(102, exists=False)))
    kept = attempts(node)
    good, failed = kept[101], kept[102]
    assert (good.result, good.reason, good.job) == ("ok", "", played.upid)
    assert (good.name, good.vmtype, good.mode) == ("web", "qemu", "snapshot")
    assert good.duration_s > 0.1
    assert failed.result == "failed"
    assert failed.reason == "unable to find VM '102'"


def test_one_that_was_refused_says_when_and_by_which_window(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-05:00"], exempt: {guests: [101]}}\n')
    node.set_clock("2026-11-24T05:12:07+00:00")
    play(node.run(Guest(101), Guest(102)))
    kept = attempts(node)
    assert kept[101].result == "ok"
    assert (kept[102].result, kept[102].reason) == (
        "refused", "at 05:12 the backup window was closed (outside 02:00-05:00)"
    )  # fmt: skip


def test_a_run_for_one_guest_that_is_refused_as_a_whole(node: NodeUnderTest) -> None:
    node.configure(NEVER)
    played = play(node.run(Guest(101), upid_id="101"))
    kept = attempts(node, 101)[101]
    assert (kept.result, kept.job) == ("refused", played.upid)
    assert "the backup window was closed" in kept.reason


@pytest.mark.parametrize("is_late", [False, True])
def test_a_jobs_run_that_is_refused_as_a_whole_leaves_each_of_its_guests_without_a_backup(
    node: NodeUnderTest, is_late: bool
) -> None:
    """Which job it is may be written down a moment after it was refused."""
    node.configure(NEVER)
    node.set_clock("2026-11-24T08:12:00+00:00")
    node.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tschedule 02:00\n\tvmid 101,110\n\trepeat-missed 1\n")
    node.write("/etc/pve/qemu-server/101.conf", "name: web\n")
    node.write("/etc/pve/lxc/110.conf", "hostname: mail\n")
    states = node.root / "var/lib/pve-manager/jobs"
    states.mkdir(parents=True)
    (states / "vzdump-nightly.json").write_text('{"state": "starting"}')
    with Player(node.run(Guest(101), Guest(110, kind="lxc"), pauses=("before job-init", "after job-init"))) as player:
        player.wait_for("before job-init")
        started = {"state": "started", "upid": player.so_far().upid, "config": {"schedule": "02:00"}}
        if not is_late:
            (states / "vzdump-nightly.json").write_text(json.dumps(started))
        player.go_on()
        player.wait_for("after job-init")
        (states / "vzdump-nightly.json").write_text(json.dumps(started))
        player.go_on()
        player.finish()
    kept = attempts(node, 101, 110)
    assert {each.reason for each in kept.values()} == {"at 08:12 the backup window was closed (no span is configured)"}
    assert {(each.job_id, each.trigger, each.result) for each in kept.values()} == {("nightly", "missed", "refused")}


def test_a_worker_that_is_killed(node: NodeUnderTest) -> None:
    with Player(node.run(Guest(105), pauses=("archive 105",))) as player:
        player.wait_for("archive 105")
        player.send_signal(signal.SIGKILL)
        node.wait_for_event("worker-died", vmid="105")
    kept = attempts(node, 105)[105]
    assert (kept.result, "killed, or stopped by hand" in kept.reason) == ("worker-died", True)


@pytest.mark.parametrize(("clock", "trigger"), [("02:00:31", "schedule"), ("08:12:00", "missed")])
def test_the_job_and_whether_its_run_is_made_up_for_is_what_the_scheduler_wrote_down(
    node: NodeUnderTest, clock: str, trigger: str
) -> None:
    """As for a run that was missed while the node was off, which Proxmox starts at boot (repeat-missed)."""
    node.set_clock(f"2026-11-24T{clock}+00:00")
    states = node.root / "var/lib/pve-manager/jobs"
    states.mkdir(parents=True)
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        started = {"state": "started", "upid": player.so_far().upid, "config": {"schedule": "02:00"}}
        (states / "vzdump-nightly.json").write_text(json.dumps(started))
        (states / "vzdump-other.json").write_text("{")
        player.go_on()
        player.finish()
    kept = attempts(node, 101)[101]
    assert (kept.job_id, kept.trigger) == ("nightly", trigger)


def test_without_metrics_who_has_no_backup_is_known_all_the_same(node: NodeUnderTest) -> None:
    node.configure("window: {open: []}\nmetrics: {mode: \"off\"}\n")
    play(node.run(Guest(101), upid_id="101"))
    assert attempts(node, 101)[101].result == "refused"
