"""A frozen guest is thawed when its backup has begun, however that shows: as a block job, as one that is over already,
as a backup provider's block node, and however long PVE takes before it comes."""

from __future__ import annotations

from dataclasses import replace

from pvehook.rehearsal.vzdump.player import Player, play
from tests.freeze.test_freeze import VM_CONFIG, WEB, commands, running_vm
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.vm_jobs import PROVIDER

FROZEN_AT_MOST_MS = 2000
"""Far less than the 10 s after which a guest is thawed without its backup having been seen."""


def test_a_guest_of_a_backup_provider_is_thawed_when_its_backup_begins(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        assert play(replace(node.run(replace(WEB, archive_s=0.5)), vm_job=PROVIDER)).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert [each.command for each in guest.heard if each.command.startswith("backup-access")] == [
            "backup-access-setup",
            "backup-access-teardown",
        ]
        assert commands(guest) == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert int(done["PVEHOOK_FROZEN_MS"]) < FROZEN_AT_MOST_MS


def test_a_job_that_is_over_before_it_was_polled_counts(node: NodeUnderTest) -> None:
    """A nearly empty dirty bitmap: the job takes 2 ms."""
    with running_vm(node, backup_s=0.002):
        for _ in range(2):  # the second time the result of the first one is there
            events = len(node.journal.events)
            assert play(node.run(WEB)).exit_code == 0
            done = node.wait_for_event("freeze-done", after=events, vmid="101")
            assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
            assert int(done["PVEHOOK_FROZEN_MS"]) < FROZEN_AT_MOST_MS


def test_fleecing_images_may_take_longer_than_pvehook_would_wait(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + "freeze: {wait_for_pve: 1s}\n")
    with running_vm(node, VM_CONFIG) as guest, Player(node.run(WEB, pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        polls = len(guest.heard)
        # So many polls of the monitor, four in a second, take longer than the setting.
        assert guest.wait_until(lambda: [each.command for each in guest.heard[polls:]].count("query-backup") >= 12, 30)
        player.go_on()
        assert player.finish().exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"


def test_an_agent_that_cannot_list_its_filesystems_is_frozen_as_by_pve(node: NodeUnderTest) -> None:
    """FreeBSD's builds, RHEL 6."""
    with running_vm(node, blocked=("guest-get-fsinfo", "guest-get-osinfo")) as guest:
        assert play(node.run(WEB)).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"


def test_a_qemu_that_lists_no_block_nodes_costs_no_freeze(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.refused["query-named-block-nodes"] = "not for you"
        assert play(node.run(WEB)).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]
        assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_SEVERITY"] == "none"
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"


def test_a_slow_agent_is_pinged_before_it_is_frozen(node: NodeUnderTest) -> None:
    """Two answers less are waited for frozen, and PVE's ping is answered within its 3 s."""
    with running_vm(node, agent_latency_s=0.1) as guest:
        assert play(node.run(WEB)).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101", consistency="filesystem-consistent")
        heard = [each.command for each in guest.heard]
        assert heard.index("guest-ping") < heard.index("guest-fsfreeze-freeze") < heard.index("backup")
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]
    assert int(done["PVEHOOK_FROZEN_MS"]) < FROZEN_AT_MOST_MS


def test_a_slow_monitor_is_left_to_the_verdict_and_to_pve(node: NodeUnderTest) -> None:
    with running_vm(node, monitor_latency_s=0.1, backup_s=1.0) as guest:
        assert play(node.run(WEB)).exit_code == 0
        node.wait_for_event("freeze-done", vmid="101", consistency="filesystem-consistent")
        heard = [each.command for each in guest.heard if each.channel == "qmp"]
        assert "query-blockstats" not in heard[: heard.index("backup")]
