"""The rendezvous on a real QEMU guest with the real qemu-ga, with vzdump's part played as PVE's code does it.

What counts is seen from inside the guest (how long a write had to wait), from QEMU (when its block job began, by its
own stamp) and in the copy that was made (whether its journal was at rest), not from what pvehook says of itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pvehook.freeze.history import forget_freezes
from pvehook.rehearsal.vzdump.player import Played, Player, play
from pvehook.rescue.freeze_record import freeze_records
from tests.freeze.test_freeze import wait_for_no_record
from tests.freeze.test_kill_matrix import thaw_left_over
from tests.native_freeze import freeze_events
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.rig.guest_image import AGENT_SUITES
from tests.rig.guest_on_node import (
    DISKS,
    MIB,
    WEB,
    Witness,
    assert_alive,
    dirty,
    needs_recovery,
    put_on_node,
    witnessed,
)
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest

pytestmark = pytest.mark.rig

THAWED_WITHIN_S = 11.0
"""10 s at most frozen, and one more (design/freeze.md)."""
PVE_GOES_ON_S = 3.5
"""PVE's patience with the ping is 3 s."""
SLOW_BYTES_PER_S, DIRTY_MIB = 1_600_000, 16
"""10.5 s to write out, longer than anybody's patience. More than 16 MiB on a disk of 64 MiB ext4 begins to write out by
itself (ext4_nonda_switch)."""

PVE_SKIPPED = ["pve-pings", "pve-pinged", "pve-skipped-freeze", "job-started"]
PVE_GAVE_UP = ["pve-pings", "pve-skipped-freeze", "job-started"]

ONLY_7_2 = pytest.mark.parametrize("vm", ["7.2"], indirect=True)


@pytest.fixture(scope="module", params=sorted(AGENT_SUITES))
def vm(request: pytest.FixtureRequest) -> Iterator[QemuGuest]:
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(qemu_guest(101, agent=request.param, disks=DISKS))
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")


@pytest.fixture
def node(vm: QemuGuest) -> Iterator[NodeUnderTest]:
    """The guest's node. Its daemon is not started yet."""
    # Short: a unix socket's path has 108 bytes.
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    under_test = NodeUnderTest(root)
    put_on_node(vm, under_test)
    with under_test.journal:
        try:
            yield under_test
        finally:
            under_test.stop()
    shutil.rmtree(root)
    assert_alive(vm)


@pytest.fixture
def witness(vm: QemuGuest) -> Iterator[Witness]:
    with witnessed(vm) as witness:
        yield witness


def names(played: Played) -> list[str]:
    return [event.name for event in freeze_events(played)]


def pve_waited_s(played: Played) -> float:
    """From PVE's ping to its decision."""
    at_s = {event.name: event.at_s for event in freeze_events(played)}
    return at_s["pve-skipped-freeze"] - at_s["pve-pings"]


def copies(node: NodeUnderTest) -> list[Path]:
    return sorted((node.root / "var/lib/vz/dump").glob("*.raw"))


def test_a_safe_guest_is_frozen_at_the_moment_its_backup_begins(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    node.start_daemon()
    played = play(node.run(WEB))
    done = node.wait_for_event("freeze-done", vmid="101")
    began = witness.job("drive-scsi0")
    assert played.exit_code == 0
    assert names(played) == PVE_SKIPPED
    assert [event.why for event in freeze_events(played) if event.name == "pve-skipped-freeze"] == ["already frozen"]
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert done["PVEHOOK_FILESYSTEMS_FROZEN"] == done["PVEHOOK_FILESYSTEMS_THAWED"] == "2"
    witness.wait_for_a_write(THAWED_WITHIN_S)
    (blocked,) = witness.blocked_around(began)
    assert blocked.lasted_s <= int(done["PVEHOOK_FROZEN_MS"]) / 1000 + 0.5
    assert [needs_recovery(copy) for copy in copies(node)] == [False, False]
    wait_for_no_record(node)


def test_a_vetoed_guest_writes_on_while_its_backup_begins(vm: QemuGuest, node: NodeUnderTest, witness: Witness) -> None:
    """The other way round, so that the proof above can fail."""
    node.configure(ALWAYS + "freeze: {mode: never}\n")
    node.start_daemon()
    played = play(node.run(WEB))
    node.wait_for_event("freeze-done", vmid="101", consistency="crash-consistent")
    began = witness.job("drive-scsi0")
    assert names(played) == PVE_GAVE_UP
    assert pve_waited_s(played) <= PVE_GOES_ON_S
    witness.wait_for_a_write(THAWED_WITHIN_S)
    assert all(each.lasted_s < 0.1 for each in witness.blocked_around(began))
    assert needs_recovery(copies(node)[0])


@pytest.fixture
def loop_and_bind(vm: QemuGuest) -> Iterator[None]:
    """A filesystem in a file of /data, and a later bind mount of /data: freezing all of it hangs for good on 7.2."""
    vm.run("dd if=/dev/zero of=/data/file bs=1M count=16 2>&1 && mke2fs -F /data/file >/dev/null && mkdir /loop /bind")
    vm.run("mount -o loop /data/file /loop && mount -o bind /data /bind")
    vm.run("dd if=/dev/urandom of=/loop/dirty bs=64k count=60 2>&1")  # a freeze waits for what is to be written out
    yield
    vm.run("umount /bind && umount /loop && rmdir /bind /loop && rm /data/file")


@pytest.mark.usefixtures("loop_and_bind")
def test_a_guest_that_would_hang_for_good_is_frozen_by_a_safe_list(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    node.start_daemon()
    played = play(node.run(WEB))
    verdict = node.wait_for_event("freeze-verdict", vmid="101")
    done = node.wait_for_event("freeze-done", vmid="101")
    began = witness.job("drive-scsi0")
    assert verdict["PVEHOOK_ACTION"] == "freeze"
    assert "loops: /loop (loop0, ext2)" in verdict["MESSAGE"]
    assert verdict["PVEHOOK_MOUNTPOINTS"] == "/loop; /srv; /data"
    assert names(played) == PVE_SKIPPED
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert done["PVEHOOK_FILESYSTEMS_FROZEN"] == done["PVEHOOK_FILESYSTEMS_THAWED"] == "3"
    witness.wait_for_a_write(THAWED_WITHIN_S)
    assert len(witness.blocked_around(began)) == 1
    assert [needs_recovery(copy) for copy in copies(node)] == [False, False]
    assert_alive(vm)
    vm.run("echo alive >/loop/alive && echo alive >/bind/alive")


@ONLY_7_2
def test_a_slow_disk_costs_the_freeze_and_a_flush_before_it_saves_it(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    node.start_daemon()
    dirty(vm, DIRTY_MIB)
    witness.throttle(SLOW_BYTES_PER_S)
    played = play(node.run(WEB))
    done = node.wait_for_event("freeze-done", vmid="101")
    began = witness.job("drive-scsi0")
    assert played.exit_code == 0
    assert names(played) == PVE_GAVE_UP
    assert pve_waited_s(played) <= PVE_GOES_ON_S
    assert done["PVEHOOK_HUNG"] == "yes"
    assert done["PVEHOOK_CONSISTENCY"] == "crash-consistent"
    # The agent cannot thaw before its freeze has ended. That takes as long as the disk takes, and no longer.
    writing_out_s = DIRTY_MIB * MIB / SLOW_BYTES_PER_S
    witness.wait_for_a_write(THAWED_WITHIN_S)
    assert witness.longest_write_s() <= writing_out_s + 1
    assert int(done["PVEHOOK_FROZEN_MS"]) <= (writing_out_s + 1) * 1000
    print(f"{DIRTY_MIB} MiB at {SLOW_BYTES_PER_S} B/s: frozen {done['PVEHOOK_FROZEN_MS']} ms, a writer waited "
          f"{witness.longest_write_s() * 1000:.0f} ms, PVE {pve_waited_s(played) * 1000:.0f} ms")

    witness.throttle(0)
    before = len(node.journal.events)
    played = play(node.run(WEB))
    verdict = node.wait_for_event("freeze-verdict", after=before, vmid="101")
    began = witness.job("drive-scsi0")
    assert (verdict["PVEHOOK_ACTION"], names(played)) == ("veto", PVE_GAVE_UP)
    assert "hung: the last freeze hung" in verdict["MESSAGE"]

    node.configure(ALWAYS + "freeze: {pre_flush: yes}\n")
    assert forget_freezes(node.node, 101)
    dirty(vm, DIRTY_MIB)
    witness.throttle(SLOW_BYTES_PER_S)
    before = len(node.journal.events)
    played = play(node.run(WEB))
    done = node.wait_for_event("freeze-done", after=before, vmid="101")
    verdict = node.wait_for_event("freeze-verdict", after=before, vmid="101")
    began = witness.job("drive-scsi0")
    assert names(played) == PVE_SKIPPED
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert int(verdict["PVEHOOK_PRE_FLUSH_MS"]) > 1000  # what the freeze would have waited for
    assert int(done["PVEHOOK_FROZEN_MS"]) < 2000
    assert len(witness.blocked_around(began)) == 1
    print(f"with a flush of {verdict['PVEHOOK_PRE_FLUSH_MS']} ms before: frozen {done['PVEHOOK_FROZEN_MS']} ms")


@ONLY_7_2
def test_a_freeze_that_hangs_is_thawed_the_moment_the_disk_goes_on(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    node.start_daemon()
    dirty(vm, DIRTY_MIB)
    witness.throttle(1)
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        witness.job("drive-scsi0")
        witness.throttle(0)
        witness.wait_for_a_write(1.0)
        done = node.wait_for_event("freeze-done", vmid="101")
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert names(played) == PVE_GAVE_UP
    assert pve_waited_s(played) <= PVE_GOES_ON_S
    assert (done["PVEHOOK_CONSISTENCY"], done["PVEHOOK_HUNG"]) == ("crash-consistent", "yes")
    wait_for_no_record(node)

    before = len(node.journal.events)
    assert names(play(node.run(WEB))) == PVE_GAVE_UP
    assert "hung" in node.wait_for_event("freeze-verdict", after=before, vmid="101", action="veto")["MESSAGE"]


def test_what_pve_froze_and_a_killed_worker_left_is_thawed_by_the_daemon(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    node.configure(ALWAYS + "freeze: {rules: [{guests: [101], mode: off}]}\n")
    node.start_daemon()
    with Player(node.run(WEB, pauses=("before backup 101",))) as player:
        player.wait_for("before backup 101")
        player.wait_for_event("pve-froze", 101)
        player.send_signal(signal.SIGKILL)
        witness.wait_for_a_write(THAWED_WITHIN_S)
        player.finish()
    node.wait_for_event("freeze-left-by-pve", vmid="101")
    assert witness.longest_write_s() <= THAWED_WITHIN_S


@ONLY_7_2
def test_the_night_after_a_killed_worker_is_a_night_like_any_other(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness
) -> None:
    """The block jobs of the killed one go on in QEMU, under the names that the next ones will have."""
    node.start_daemon()
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        node.wait_for_event("freeze-done", vmid="101", consistency="filesystem-consistent")
        player.send_signal(signal.SIGKILL)
        player.finish()
    witness.job("drive-scsi0")
    node.wait_for_event("worker-died", vmid="101")
    before = len(node.journal.events)
    assert names(play(node.run(WEB))) == PVE_SKIPPED
    done = node.wait_for_event("freeze-done", after=before, vmid="101")
    began = witness.job("drive-scsi0")
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert len(witness.blocked_around(began)) == 1


@ONLY_7_2
@pytest.mark.parametrize("step", ["held", "freezing", "frozen", "released", "thawing"])
@pytest.mark.parametrize("victim", ["daemon", "hook", "worker"])
def test_whatever_is_killed_the_guest_is_thawed(
    vm: QemuGuest, node: NodeUnderTest, witness: Witness, victim: str, step: str
) -> None:
    """A sample of tests/freeze/test_kill_matrix.py."""
    daemon = node.start_daemon("--halt-at", step)
    with Player(node.run(WEB)) as player:
        _, status = os.waitpid(daemon.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the daemon ended before step {step}"
        if victim == "daemon":
            node.kill_daemon()
            thaw_left_over(node)
            node.start_daemon()
        else:
            if victim == "worker":
                player.send_signal(signal.SIGKILL)
            else:
                for hook in psutil.Process(player.pid).children():
                    if hook.name() == "vzdump-hook":  # none is left after post-restart has returned
                        hook.send_signal(signal.SIGKILL)
            daemon.send_signal(signal.SIGCONT)
        player.finish()
        witness.wait_for_a_write(THAWED_WITHIN_S)
    longest_s = witness.longest_write_s()
    print(f"| {victim:<6} | {step:<8} | a writer waited {longest_s * 1000:6.0f} ms | thawed |")
    assert longest_s <= THAWED_WITHIN_S
    node.wait_for_event("guest-done", vmid="101")
    assert_alive(vm)
    node.stop()
    assert [each for each in freeze_records(node.node) if each.state != "thawed"] == []
