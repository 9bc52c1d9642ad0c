"""The figures of a guest's backup against what a writer inside that guest measured by itself.

A real QEMU guest with the real qemu-ga, backed up by the vzdump player through the real hook and daemon. Each write of
the guest to a place that is not copied yet waits until QEMU has copied it to the backup's target, and the target is
slow: that is the stall. The writer writes 4 KiB at a time past the page cache and notes when each one began and ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pvehook.contract.measured import value_of
from pvehook.records.history import last_records, reading
from pvehook.records.stall_record import StallRecord
from pvehook.rehearsal.vzdump.player import Player
from pvehook.rules.stalls import HypervisorView
from tests.node_under_test import ALWAYS, NodeUnderTest
from tests.rig.disk_writer import p99_s, writes, writing
from tests.rig.guest_on_node import WEB, Span, ask, put_on_node
from tests.rig.qemu_guest import Aio, CannotStart, QemuGuest, qemu_guest
from tests.vm_jobs import SLOW_TARGET, STOCK_ONE_WORKER, STOCK_SLOW_TARGET

pytestmark = pytest.mark.rig

SAMPLED_ONLY = ALWAYS + "governor: {mode: off}\nfreeze: {mode: off}\n"
WRITES = 14

PAUSE_MS = 50


def backup(vm: QemuGuest, node: NodeUnderTest, is_target_slow: bool) -> tuple[StallRecord, list[Span]]:
    """The record of a backup, and the writes that began while the daemon sampled."""
    vm_job = STOCK_SLOW_TARGET if is_target_slow else STOCK_ONE_WORKER
    run = replace(node.run(WEB, pauses=("archive 101",)), vm_job=vm_job)
    with writing(vm, PAUSE_MS):
        with Player(run) as player:
            player.wait_for("archive 101")
            if is_target_slow:
                ask(vm.events, "block-job-set-speed", device="drive-scsi0", speed=0)
            before = len(writes(vm))
            while len(writes(vm)) < before + WRITES:
                vm.run("usleep 100000")
            if is_target_slow:
                path = f"/objects/{SLOW_TARGET}"
                ask(vm.events, "qom-set", path=path, property="limits", value={"iops-write": 0})
            player.go_on()
            assert player.finish().exit_code == 0
        seen = writes(vm)
    with reading(str(node.root / "var/lib/pvehook/history.db")) as history:
        record = last_records(history, 0.0)[-1]
    view = value_of(record.hypervisor)
    assert view is not None
    # The guest's clock is the host's, but for some milliseconds: QEMU gives it the time at its start.
    return record, [each for each in seen if each.until_s >= record.started_s and each.from_s <= record.ended_s]


@pytest.fixture(scope="module", params=["threads", "io_uring", "native"])
def vm(request: pytest.FixtureRequest) -> Iterator[QemuGuest]:
    aio: Aio = request.param
    try:
        with qemu_guest(101, disks=("/data",), aio=aio) as guest:
            yield guest
    except CannotStart as error:
        pytest.skip(str(error))


@pytest.fixture
def sampled_node(node: NodeUnderTest, vm: QemuGuest) -> NodeUnderTest:
    node.configure(SAMPLED_ONLY)
    put_on_node(vm, node)
    return node


def test_stalls_on_a_slow_target_are_what_a_writer_inside_measured(
    vm: QemuGuest, sampled_node: NodeUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    record, inside = backup(vm, sampled_node, is_target_slow=True)
    view = record.hypervisor
    assert isinstance(view, HypervisorView)
    stalled_inside_s = sum(each.lasted_s for each in inside if each.lasted_s > 1)
    with capsys.disabled():
        print(
            f"\n{len(inside)} writes, p99 inside {p99_s(inside) * 1000:.0f} ms, seen {view.write.p99_ms:.0f} ms; "
            f"stalled inside {stalled_inside_s:.1f} s, seen {view.stalled_s:.1f} s"
        )
    assert stalled_inside_s > 5
    assert view.write.p99_ms == pytest.approx(p99_s(inside) * 1000, rel=0.15)
    assert view.stalled_s == pytest.approx(stalled_inside_s, rel=0.10)
    assert record.verdict.severity == "stalled"


def test_without_a_slow_target_hardly_anything_is_seen(
    vm: QemuGuest, sampled_node: NodeUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    record, inside = backup(vm, sampled_node, is_target_slow=False)
    view = record.hypervisor
    assert isinstance(view, HypervisorView)
    with capsys.disabled():
        print(f"\n{len(inside)} writes, p99 seen {view.write.p99_ms:.1f} ms, stalled {view.stalled_s:.1f} s")
    assert view.stalled_s == 0
    assert view.write.over_1s == 0
    assert record.verdict.severity in ("none", "slowed")


@pytest.fixture(scope="module")
def talking_vm() -> Iterator[QemuGuest]:
    try:
        # Else the kernel drops what comes from user space after ten lines.
        with qemu_guest(101, disks=("/data",), kernel_options="printk.devkmsg=on") as guest:
            yield guest
    except CannotStart as error:
        pytest.skip(str(error))


def test_lockups_in_the_guests_kernel_log_are_in_its_record_and_those_from_before_are_not(
    talking_vm: QemuGuest,
    node: NodeUnderTest,
) -> None:
    node.configure(SAMPLED_ONLY)
    put_on_node(talking_vm, node)
    lockup = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [dd:77]"
    rcu = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
    for line in (lockup, rcu):
        talking_vm.run(f"echo '<0>{line}' >/dev/kmsg")
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wrote_s = time.time()
        for line in (lockup.replace("26s", "31s"), "nothing to see here", rcu):
            talking_vm.run(f"echo '<0>{line}' >/dev/kmsg")
        player.go_on()
        assert player.finish().exit_code == 0
    with reading(str(node.root / "var/lib/pvehook/history.db")) as history:
        (record,) = last_records(history, 0.0)
    guest = value_of(record.guest)
    assert guest is not None
    events = value_of(guest.kernel)
    assert events is not None
    assert [(event.kind, event.text) for event in events] == [
        ("soft-lockup", lockup.replace("26s", "31s")),
        ("rcu-stall", rcu),
    ]
    assert all(event.at_s == pytest.approx(wrote_s, abs=5) for event in events)
    assert record.verdict.severity == "locked-up"
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_GUEST_LOCKUPS"] == "2"
