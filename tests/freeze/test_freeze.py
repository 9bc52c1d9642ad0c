"""A VM's freeze through the real hook and the real daemon, on a simulated guest with QEMU's socket semantics."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pvehook.contract.guest_facts import Filesystem
from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.guest.qmp import open_qmp
from pvehook.host.waiters import WaiterWatch, watch_waiters
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.freeze_record import freeze_records
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest

WEB = Guest(101, name="web", agent=True)
LIST = "freeze: {{rules: [{{guests: [101], mode: mountpoints, mountpoints: [{}]}}]}}\n"
VM_CONFIG = "agent: 1\nname: web\nscsi0: local:101/vm-101-disk-0.raw\n"


@contextmanager
def running_vm(node: NodeUnderTest, config: str = VM_CONFIG, **options: object) -> Iterator[SimulatedGuest]:
    (node.root / "etc/pve/qemu-server/101.conf").write_text(config)
    options = {"backup_s": 0.1, **options}
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, **options) as guest:  # type: ignore[arg-type]
        yield guest


def commands(guest: SimulatedGuest) -> list[str]:
    """What PVE and we did to the guest that matters, in order."""
    telling = ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "backup")
    return [each.command for each in guest.heard if each.command in telling]


def wait_for_a_waiter(socket: WaiterWatch) -> None:
    until_s = time.monotonic() + 10
    while not socket.waiters_alive():
        assert time.monotonic() < until_s, f"nobody waits at {socket.path}"
        time.sleep(0.01)


def wait_for_no_record(node: NodeUnderTest, within_s: float = 10.0) -> None:
    """A freeze is told in the journal before its record is removed."""
    until_s = time.monotonic() + within_s
    while records := freeze_records(node.node):
        assert time.monotonic() < until_s, records
        time.sleep(0.01)


def test_a_safe_guest_is_frozen_when_its_backup_begins_and_thawed_after(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        played = play(node.run(WEB))
        done = node.wait_for_event("freeze-done", vmid="101")
        assert not guest.is_frozen
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]
    assert played.exit_code == 0
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert done["PVEHOOK_FILESYSTEMS_FROZEN"] == done["PVEHOOK_FILESYSTEMS_THAWED"] == "2"
    assert int(done["PVEHOOK_FROZEN_MS"]) < 10_000
    log = "\n".join(played.task_log)
    assert "pvehook: VM 101 (web) will be frozen for the backup's start" in log
    assert "pvehook: VM 101 (web): filesystem-consistent" in log
    wait_for_no_record(node)


def test_the_older_pve_without_a_status_check_backs_up_the_frozen_guest_too(node: NodeUnderTest) -> None:

    with running_vm(node) as guest:
        played = play(replace(node.run(WEB), qemu_server="9.0"))
        node.wait_for_event("freeze-done", vmid="101", consistency="filesystem-consistent")
        assert commands(guest)[:3] == ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze", "backup"]
        assert not guest.is_frozen
    assert played.exit_code == 0


def test_a_vetoed_guest_is_frozen_by_nobody(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + "freeze: {mode: never}\n")
    with running_vm(node) as guest:
        played = play(node.run(WEB))
        done = node.wait_for_event("freeze-done", vmid="101")
        assert commands(guest) == ["backup"]
    assert played.exit_code == 0
    assert done["PVEHOOK_CONSISTENCY"] == "crash-consistent"
    assert any("will NOT be frozen" in line for line in played.task_log)


def test_a_freeze_that_hangs_is_thawed_the_moment_it_can_be_and_vetoed_the_next_night(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.stick("freeze")
        with Player(node.run(WEB, pauses=("after log-end 101",))) as player:
            player.wait_for("after log-end 101")
            guest.unstick("freeze")
            assert guest.wait_until(lambda: not guest.is_frozen, 10)
            done = node.wait_for_event("freeze-done", vmid="101")
            player.go_on()
            played = player.finish()
        assert played.exit_code == 0
        assert done["PVEHOOK_HUNG"] == "yes"
        assert done["PVEHOOK_CONSISTENCY"] == "crash-consistent"
        assert not guest.is_frozen
        heard_before = len(guest.heard)
        play(node.run(WEB))
        assert "guest-fsfreeze-freeze" not in [each.command for each in guest.heard[heard_before:]]


def test_a_freeze_that_hangs_keeps_nobody_from_the_monitor(node: NodeUnderTest) -> None:
    """A poll of ours waits for its turn there when PVE comes to the agent, and gets it while the freeze hangs."""
    run = replace(node.run(WEB, pauses=("before ping 101",)), ping_patience_s=0.4)
    with running_vm(node) as guest, Player(run) as player:
        guest.stick("freeze")
        player.wait_for("before ping 101")
        with open_qmp(guest.qmp_path, Deadline.after(10)), watch_waiters(node.node, guest.qmp_path) as monitor:
            wait_for_a_waiter(monitor)  # our poll: from here on the sampler leaves the monitor to PVE
            player.go_on()
            assert guest.wait_until(lambda: "guest-fsfreeze-freeze" in commands(guest), 10)
        assert guest.wait_until(lambda: "backup" in commands(guest), 10)
        assert player.finish().exit_code == 0
        guest.unstick("freeze")
        assert node.wait_for_event("freeze-done", vmid="101")["PVEHOOK_HUNG"] == "yes"


def test_a_guest_that_somebody_else_froze_is_never_thawed_and_raises_an_alert(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        with open_agent(guest.qga_path, Deadline.after(5)) as agent:
            agent.fsfreeze_freeze(None, Deadline.after(5))
        assert play(node.run(WEB)).exit_code == 0
        alert = node.wait_for_event("freeze-alert", vmid="101")
        assert alert["PRIORITY"] == "2"
        assert guest.is_frozen


def test_where_pve_does_not_ask_the_agent_is_left_alone(node: NodeUnderTest) -> None:
    with running_vm(node, config="agent: 1,freeze-fs=0\nname: web\n") as guest:
        assert play(node.run(Guest(101, name="web", agent=True, freeze_fs=False))).exit_code == 0
        # Its counters are read from it, but nobody speaks of freezing.
        assert [each.command for each in guest.heard if "fsfreeze" in each.command] == []
        assert node.wait_for_event("freeze-verdict", vmid="101")["PVEHOOK_ACTION"] == "none"


def test_a_backup_that_begins_without_asking_the_agent_ends_the_wait(node: NodeUnderTest) -> None:
    """The configuration says that PVE freezes, but this PVE does not ask."""
    with running_vm(node) as guest:
        assert play(node.run(Guest(101, name="web", agent=False, archive_s=1))).exit_code == 0
        done = node.wait_for_event("freeze-done", vmid="101")
        assert done["PVEHOOK_CONSISTENCY"] == "left-to-pve"
        assert commands(guest) == ["backup"]


@pytest.mark.parametrize("setting", ["mode: off", "rules: [{guests: [101], mode: off}]"])
def test_a_freeze_that_pve_left_behind_is_thawed_when_its_worker_is_killed(node: NodeUnderTest, setting: str) -> None:
    """pvehook was told to leave this guest's freeze to PVE, and still thaws what a killed vzdump leaves."""
    node.configure(ALWAYS + f"freeze: {{{setting}}}\n")
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("before backup 101",))) as player:
        player.wait_for("before backup 101")
        assert guest.is_frozen
        player.send_signal(signal.SIGKILL)
        assert guest.wait_until(lambda: not guest.is_frozen, 11)
        node.wait_for_event("freeze-left-by-pve", vmid="101")


def test_the_history_of_freezes_is_kept_and_bounded(node: NodeUnderTest) -> None:
    with running_vm(node):
        for _ in range(2):
            play(node.run(WEB))
            node.wait_for_event("freeze-done", vmid="101")
    history = json.loads((node.root / "var/lib/pvehook/freezes/101.json").read_text())
    assert [each["outcome"] for each in history] == ["ok", "ok"]


def test_a_freeze_of_a_list_is_a_consistency_of_its_own_that_names_the_list(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + LIST.format("/home"))
    with running_vm(node):
        played = play(node.run(WEB))
    assert node.wait_for_event("freeze-done")["PVEHOOK_CONSISTENCY"] == "partly-consistent"
    done = node.wait_for_event("guest-done")
    assert (done["PVEHOOK_CONSISTENCY"], done["PVEHOOK_FREEZE_LIST"]) == ("partly-consistent", "/home")
    log = "\n".join(played.task_log)
    assert "pvehook: VM 101 (web): partly-consistent: only /home: 1 filesystem was frozen when" in log
    assert "INFO: freeze: partly-consistent: only /home: 101" in log


def test_a_freeze_of_a_list_that_leaves_nothing_out_is_filesystem_consistent(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + LIST.format("/home, /"))
    with running_vm(node):
        play(node.run(WEB))
    assert node.wait_for_event("guest-done")["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"


@pytest.mark.parametrize("mounts", [3, 400])
def test_a_daemon_that_was_restarted_freezes_nothing_that_was_left_out(node: NodeUnderTest, mounts: int) -> None:
    """A short list is in the run's recovery note. A long one is lost, and with it the freeze: not all is frozen."""
    node.configure(ALWAYS + "freeze: {rules: [{guests: [101], mode: auto, except: [/mnt/0]}]}\n")
    filesystems = [Filesystem(f"sd{each}", f"/mnt/{each}{'x' * 50 if each else ''}", "ext4") for each in range(mounts)]
    with running_vm(node, filesystems=filesystems) as guest:
        with Player(node.run(WEB, pauses=("before pre-restart 101",))) as player:
            player.wait_for("before pre-restart 101")
            node.kill_daemon()
            node.start_daemon()
            player.go_on()
            assert player.finish().exit_code == 0
        node.wait_for_event("freeze-done", vmid="101")
        assert "guest-fsfreeze-freeze" not in commands(guest)
        assert ("guest-fsfreeze-freeze-list" in commands(guest)) is (mounts == 3)
