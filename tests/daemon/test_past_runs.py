"""The real daemon and what was backed up while it was not there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between
from pvehook.records.history import history_file, reading
from pvehook.rehearsal.vzdump.player import Player
from pvehook.rehearsal.vzdump.run import Guest
from tests.node_under_test import NodeUnderTest


def attempts(node: NodeUnderTest) -> list[Attempt]:
    with reading(history_file(node.node)) as history:
        return attempts_between(history, 0, 1e11)


def add_task(node: NodeUnderTest, upid: str, *lines: str, ended_s: float) -> None:
    """As Proxmox leaves it."""
    directory = node.node.path("/var/log/pve/tasks")
    start = upid.split(":")[4]
    os.makedirs(f"{directory}/{start[-1]}", exist_ok=True)
    Path(directory, start[-1], upid).write_text("\n".join([*lines, ""]))
    with Path(directory, "index").open("a") as index:
        index.write(f"{upid} {int(ended_s):08X} OK\n")


def at(instant_s: float) -> str:
    """The wall clock of a tree without a time zone."""
    return time.strftime("%F %T", time.gmtime(instant_s))


def backed_up(vmid: int, began_s: float, took_s: int) -> list[str]:
    return [
        f"INFO: Starting Backup of VM {vmid} (qemu)",
        f"INFO: Backup started at {at(began_s)}",
        "INFO: backup mode: snapshot",
        f"INFO: Finished Backup of VM {vmid} ({time.strftime('%T', time.gmtime(took_s))})",
        f"INFO: Backup finished at {at(began_s + took_s)}",
    ]


def test_nights_from_before_are_in_the_history_after_the_daemons_start_and_once(
    node_without_daemon: NodeUnderTest,
) -> None:
    node = node_without_daemon
    now_s = int(time.time())
    for days in (3, 2, 1):
        began_s = now_s - days * 86400
        add_task(
            node,
            f"UPID:pve:{4711 + days:08X}:00000001:{began_s:08X}:vzdump::root@pam:",
            "INFO: starting new backup job: vzdump 101 102 --mode snapshot",
            *backed_up(101, began_s, 60),
            "ERROR: Backup of VM 102 failed - unable to find VM '102'",
            f"INFO: Failed at {at(began_s + 60)}",
            "TASK ERROR: job errors",
            ended_s=began_s + 70,
        )
    node.start_daemon()
    node.wait_for_event("past-runs-read")
    first = attempts(node)
    assert [(each.vmid, each.result, each.duration_s) for each in first if each.vmid == 101] == [(101, "ok", 60.0)] * 3
    assert [each.result for each in first if each.vmid == 102] == ["failed"] * 3
    node.stop()
    before = len(node.journal.events)
    node.start_daemon()
    node.wait_for_event("past-runs-read", after=before)
    assert attempts(node) == first


def test_a_turn_whose_end_no_daemon_saw_is_told_by_proxmoxs_log(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    os.makedirs(node.node.path("/var/log/pve/tasks"))
    node.start_daemon()
    run = node.run(Guest(101, name="web"), pauses=("archive 101", "before log-end 101"))
    with Player(run) as player:
        player.wait_for("archive 101")
        node.kill_daemon()
        player.go_on()
        player.wait_for("before log-end 101")
        before = len(node.journal.events)
        node.start_daemon()
        upid = node.wait_for_event("job-picked-up")["PVEHOOK_JOB"]
        node.wait_for_event("past-runs-read", after=before)
        now_s = int(time.time())
        add_task(node, upid, *backed_up(101, now_s, 2), "TASK OK", ended_s=now_s)
        before = len(node.journal.events)
        player.go_on()
        player.finish()
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "unknown"
    node.wait_for_event("past-runs-read", after=before)
    (attempt,) = attempts(node)
    assert (attempt.vmid, attempt.result, attempt.reason, attempt.job) == (101, "ok", "", upid)


def test_a_run_that_ended_while_the_daemon_was_away_is_told_by_its_log(node_without_daemon: NodeUnderTest) -> None:
    """The next daemon takes its worker for one that died in the middle of it."""
    node = node_without_daemon
    node.start_daemon()
    with Player(node.run(Guest(101, name="web"), pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        node.kill_daemon()
        player.go_on()
        played = player.finish()
    add_task(node, played.upid, *played.task_log, ended_s=time.time())
    before = len(node.journal.events)
    node.start_daemon()
    node.wait_for_event("worker-died", after=before, vmid="101")
    for _ in ("at the start", "once the run was brought to its end"):
        node.wait_for_event("past-runs-read", after=before)
        before += node.event_names()[before:].index("past-runs-read") + 1
    (attempt,) = attempts(node)
    assert (attempt.vmid, attempt.name, attempt.result, attempt.job) == (101, "web", "ok", played.upid)
