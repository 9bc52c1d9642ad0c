"""Others at the agent's socket, and restarts in the middle: what is vetoed stays so, what is not ours is not thawed."""

from __future__ import annotations

import os

import pytest

from pvehook.deadline import Deadline
from pvehook.freeze.history import past_freezes
from pvehook.guest.agent import open_agent
from pvehook.guest.sockets import connect
from pvehook.host.timely_files import TimelyReader
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from tests.freeze.test_freeze import WEB, commands, running_vm
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest

NEVER_FREEZE = ALWAYS + "freeze: {mode: never}\n"


def commands_on(guest: SimulatedGuest) -> list[str]:
    return [each for each in commands(guest) if each != "backup"]


def freeze_by_somebody_else(guest: SimulatedGuest) -> None:
    with open_agent(guest.qga_path, Deadline.after(5)) as agent:
        agent.fsfreeze_freeze(None, Deadline.after(5))


def test_a_freeze_of_somebody_else_after_pre_stop_is_not_thawed(node: NodeUnderTest) -> None:
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before post-restart 101",))) as player:
        player.wait_for("before post-restart 101")
        freeze_by_somebody_else(guest)
        player.go_on()
        assert player.finish().exit_code == 0
        node.wait_for_event("freeze-alert", vmid="101")
        done = node.wait_for_event("freeze-done", vmid="101")
        assert done["PVEHOOK_CONSISTENCY"] == "crash-consistent"
        assert guest.is_frozen
        assert commands_on(guest) == ["guest-fsfreeze-freeze"]


def test_a_stranger_that_comes_and_goes_does_not_end_a_veto(node: NodeUnderTest) -> None:
    """The GUI that shows a guest's addresses, while Proxmox still allocates fleecing images."""
    node.configure(NEVER_FREEZE)
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        connect(guest.qga_path).close()
        player.go_on()
        assert player.finish().exit_code == 0
        node.wait_for_event("freeze-done", vmid="101")
        assert commands(guest) == ["backup"]


def test_a_stranger_does_not_begin_a_freeze(node: NodeUnderTest) -> None:
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        stranger = connect(guest.qga_path)
        assert commands_on(guest) == []
        stranger.close()
        player.go_on()
        assert player.finish().exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]


@pytest.mark.parametrize("fault", ["qmp", "run"])
def test_a_veto_needs_nothing_but_the_agents_socket(node: NodeUnderTest, fault: str) -> None:
    node.configure(NEVER_FREEZE)
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before post-restart 101",))) as player:
        player.wait_for("before post-restart 101")
        if fault == "qmp":
            guest.refused["query-block-jobs"] = "not now"
        else:
            (node.root / "run/pvehook/frozen").write_text("no directory")
        player.go_on()
        assert player.finish().exit_code == 0
        assert commands(guest) == ["backup"]


def test_a_daemon_restarted_after_pre_stop_keeps_its_veto(node: NodeUnderTest) -> None:
    node.configure(NEVER_FREEZE)
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("after pre-stop 101",))) as player:
        player.wait_for("after pre-stop 101")
        node.kill_daemon()
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        player.go_on()
        assert player.finish().exit_code == 0
        assert commands(guest) == ["backup"]


def test_a_freeze_that_still_hangs_is_remembered_before_it_ends(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.stick("freeze")
        assert play(node.run(WEB)).exit_code == 0
        assert [each.outcome for each in past_freezes(node.node, TimelyReader(), 101)] == ["hung"]
        node.kill_daemon()
        guest.unstick("freeze")
        before = len(node.journal.events)
        node.start_daemon()
        node.wait_for_event("freeze-left-over", after=before, vmid="101")
        assert guest.wait_until(lambda: not guest.is_frozen, 10)
        heard = len(guest.heard)
        play(node.run(WEB))
        assert "guest-fsfreeze-freeze" not in [each.command for each in guest.heard[heard:]]


def test_an_unreadable_configuration_vetoes_because_its_tags_are_not_known(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        config = node.root / "etc/pve/qemu-server/101.conf"
        config.unlink()
        os.mkfifo(config)
        assert play(node.run(WEB)).exit_code == 0
        verdict = node.wait_for_event("freeze-verdict", vmid="101")
        assert verdict["PVEHOOK_ACTION"] == "veto"
        assert "unknown: " in verdict["PVEHOOK_REASONS"]
        assert commands(guest) == ["backup"]


def test_a_job_abort_after_a_failing_job_end_leaves_no_watch_behind(node: NodeUnderTest) -> None:
    chain = node.root / "fails"
    chain.write_text('#!/bin/sh\ntest "$1" != job-end\n')
    chain.chmod(0o755)
    node.configure(ALWAYS + "chain: /fails\n")
    assert play(node.run(Guest(102))).exit_code != 0
    node.wait_for_event("job-aborted")
    assert play(node.run(Guest(103))).exit_code != 0  # the daemon has looked after the first worker's end by now

    def pidfds() -> int:
        directory = f"/proc/{node.daemon.pid}/fd"
        return sum("pidfd" in os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory))

    assert pidfds() <= 1  # at most the second worker's, whose end is perhaps not looked after yet


def test_a_backup_job_of_an_administrator_does_not_end_a_veto(node: NodeUnderTest) -> None:
    """It begins while Proxmox still allocates fleecing images, and has nothing to do with this backup."""
    node.configure(NEVER_FREEZE)
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        guest.start_foreign_job("mine")
        polls = len(monitor_polls(guest))
        assert guest.wait_until(lambda: len(monitor_polls(guest)) >= polls + 2, 10)  # it was seen
        player.go_on()
        assert player.finish().exit_code == 0
        node.wait_for_event("freeze-done", vmid="101")
        assert commands(guest) == ["backup"]


def monitor_polls(guest: SimulatedGuest) -> list[str]:
    return [each.command for each in guest.heard if each.command == "query-named-block-nodes"]
