"""Who is watched beside a backup, and how: on a node in a directory, with simulated guests and block devices."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent
from pvehook.host.processes import ProcessId
from pvehook.settings import GovernorRule
from pvehook.watch import node_looks
from pvehook.watch.patients import GuestTable
from pvehook.watch.watch_status import WatchStatus, read_status
from tests.watch.test_node_watch import stats_read
from tests.watch.watched_node import WITHIN_S, WatchedNode

LVM = "name: db\nscsi0: fast:vm-105-disk-0\n"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedNode]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))  # short: a unix socket's path has 108 bytes
    yield WatchedNode(root, monkeypatch)
    shutil.rmtree(root)


def wait_until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_guest_beside_a_backup_is_made_known_and_sampled(node: WatchedNode) -> None:
    db = node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_until(lambda: 105 in governor.known)
        assert isinstance(governor.known[105], Absent)  # nothing is known of it from before
        governor.wait_for_sample(105)
        db.serve_requests("write", 2600.0, 7)
        governor.wait_until(governor.write_is_seen(105, 7))
        assert not node.woken.is_set()
        governor.wants_backup_sample = True
        assert node.woken.wait(WITHIN_S)
        watch.load_ends(101)
        (record,) = watch.end()
    assert (record.vmid, record.name, record.seen_by, record.severity) == (105, "vm105", "requests", "stalled")


def test_the_guest_in_backup_is_left_to_its_own_sampler(node: WatchedNode) -> None:
    web, db = node.vm(101), node.vm(105)
    with node.watched() as watch:
        assert web.wait_until(lambda: stats_read(web) == 2, WITHIN_S)  # before and after it is armed
        heard = len(web.heard)
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105, 3)
        assert len(web.heard) == heard
        assert 101 not in governor.ever_known
        watch.load_ends(101)
        second = node.backup_begins(watch, 105)
        heard = len(db.heard)
        second.wait_for_sample(101, 3)
        assert len(db.heard) <= heard + 3  # a look that had begun
        assert sorted(node.run.waiting) == [101, 105]


def test_histograms_are_removed_at_the_end_of_the_run_only(node: WatchedNode) -> None:
    web, db = node.vm(101), node.vm(105)
    with node.watched() as watch:
        wait_until(lambda: web.has_histograms and db.has_histograms)
        node.backup_begins(watch)
        watch.load_ends(101)
        assert web.has_histograms
        assert db.has_histograms
        watch.end()
        wait_until(lambda: not web.has_histograms and not db.has_histograms)


def test_guests_come_and_go_and_nobody_minds(node: WatchedNode) -> None:
    node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
        mail = node.vm(106)  # started
        governor.wait_for_sample(106)
        assert mail.has_histograms
        node.stop_vm(105)  # stopped, or migrated away
        governor.wait_until(lambda: 105 not in governor.known)
        node.stop_vm(106)
        mail = node.vm(106, pid=7777)  # rebooted
        governor.wait_until(lambda: governor.ever_known.count(106) >= 2)
        mail.serve_requests("write", 5.0, 9)
        governor.wait_until(governor.write_is_seen(106, 9))


def test_a_disk_that_is_plugged_in_is_counted_and_one_that_is_unplugged_is_missed_by_nobody(node: WatchedNode) -> None:
    db = node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
        db.plug("scsi1")
        governor.wait_for_sample(105, 2)
        db.serve_requests("write", 5.0, 9, disk="scsi1")
        governor.wait_until(governor.write_is_seen(105, 9))
        assert all(each.completed["write"].histogram for each in governor.samples[-1:])
        db.unplug("scsi0")
        governor.wait_for_sample(105, 2)
        db.serve_requests("write", 5.0, 11, disk="scsi1")
        governor.wait_until(governor.write_is_seen(105, 11))


def test_a_monitor_that_hangs_delays_nobody_and_never_has_two_places_of_ours(node: WatchedNode) -> None:
    hangs = node.vm(104)
    node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(104)
        hangs.stick("qmp")
        governor.wait_for_sample(105, 15)
        clients = {each.peer.number for each in hangs.heard}
        governor.wait_for_sample(105, 15)
        assert len({each.peer.number for each in hangs.heard} - clients) <= 1
        assert connects(hangs.qmp_path)  # there is a place for PVE
        hangs.unstick("qmp")
        governor.wait_for_sample(104)


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(path)  # BlockingIOError where the queue is full
    return True


def test_what_hangs_for_long_is_not_reckoned_with(node: WatchedNode) -> None:
    hangs = node.vm(104)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(104)
        hangs.stick("qmp")
        governor.wait_until(lambda: 104 not in governor.known)
        hangs.unstick("qmp")
        governor.wait_until(lambda: 104 in governor.known)


def test_a_guest_on_other_disks_is_watched_and_not_made_known(node: WatchedNode) -> None:
    node.logical_volume("fast", "vm-104-disk-0", "sda")
    node.logical_volume("other", "vm-105-disk-0", "sdb")
    node.vm(104, "name: a\nscsi0: fast:vm-104-disk-0\n")
    node.vm(105, "name: b\nscsi0: other:vm-105-disk-0\n")
    node.vm(106, "name: c\nscsi0: nas:106/vm-106-disk-0.qcow2\n")
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(104, 5)
        wait_until(lambda: exposures(node) == {104: "shared", 105: "elsewhere", 106: "elsewhere"})
        assert governor.ever_known == [104]


def exposures(node: WatchedNode) -> dict[int, str]:
    """As the status tells it."""
    found = status(node)
    return {each.vmid: each.exposure for each in found.guests} if found is not None else {}


def status(node: WatchedNode) -> WatchStatus | None:
    found = read_status(node.node, time.monotonic())
    return found if isinstance(found, WatchStatus) and all(each.seen_by for each in found.guests) else None


def test_what_cannot_be_found_out_counts_as_shared_and_is_said(node: WatchedNode) -> None:
    db = node.vm(105, "name: db\nscsi0: nowhere:vm-105-disk-0\n")
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
        db.serve_requests("write", 2600.0, 1)
        governor.wait_until(governor.write_is_seen(105, 1))
        (record,) = watch.end()
    assert "storage nowhere is not configured" in record.unknown[0]
    assert record.beside[0].exposure == "unknown"


def test_a_guest_that_a_rule_excludes_is_watched_and_not_made_known(node: WatchedNode) -> None:
    db = node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch, rules=(GovernorRule(guests=(105,), spare="own-backup"),))
        wait_until(lambda: status(node))
        db.serve_requests("write", 2600.0, 1)
        wait_until(lambda: watch._sufferings.totals_s(105)[0] > 0)
        assert governor.ever_known == []


def test_block_counters_tell_when_a_monitor_is_to_be_asked(node: WatchedNode) -> None:
    device = node.logical_volume("fast", "vm-105-disk-0", "sda")
    node.count(device, writes=1000, took_ms=5000)
    db = node.vm(105, LVM)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.look_every_s = lambda _vmid: 3600.0  # type: ignore[method-assign]
        governor.wait_until(lambda: 105 in governor.known)
        asked = len(db.heard)
        wait_until(lambda: watch._looks.patients[105].devices_load == 1)
        node.count(device, writes=1010, took_ms=9000)
        wait_until(lambda: len(db.heard) > asked)
        assert watch._looks.patients[105].waits(time.monotonic())


def test_a_wait_that_a_long_look_dilutes_is_looked_at_again_at_once(
    node: WatchedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = node.logical_volume("fast", "vm-105-disk-0", "sda")
    db = node.vm(105, LVM)
    monkeypatch.setattr(node_looks, "WAITING_EVERY_S", 3600.0)
    monkeypatch.setattr(node_looks, "RANKED_S", 0.0)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.look_every_s = lambda _vmid: 3600.0  # type: ignore[method-assign]
        governor.wait_until(lambda: 105 in governor.known)
        wait_until(lambda: watch._looks.patients[105].devices_load == 1)
        db.serve_requests("write", 300.0, 5)
        node.count(device, writes=1010, took_ms=9000)
        governor.wait_for_sample(105, 2)


def test_a_request_that_does_not_come_back_is_a_wait(node: WatchedNode) -> None:
    device = node.logical_volume("fast", "vm-105-disk-0", "sda")
    node.vm(105, LVM)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
        assert not watch._looks.patients[105].waits(time.monotonic())
        node.count(device, writes=0, took_ms=0, in_flight=1)
        wait_until(lambda: watch._looks.patients[105].waits(time.monotonic()))
        assert governor.wait_for_sample(105).waits


def test_a_container_steers_by_its_block_devices_and_its_pressure_counts(node: WatchedNode) -> None:
    device = node.logical_volume("fast", "vm-110-disk-0", "sda")
    node.write("/etc/pve/lxc/110.conf", "hostname: ct\nrootfs: fast:vm-110-disk-0,size=8G\n")
    pressure(node, 110, some_us=0, full_us=0)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(110)
        node.count(device, writes=20, took_ms=40_000)
        pressure(node, 110, some_us=9_000_000, full_us=4_000_000)
        governor.wait_until(governor.write_is_seen(110, 20))
        wait_until(lambda: watch._sufferings.totals_s(110)[0] > 0)
        (record,) = watch.end()
    assert (record.seen_by, record.stalled_s, record.vmtype) == ("pressure", 4.0, "lxc")


@pytest.mark.parametrize("its_disks_are_known", [True, False])
def test_what_a_container_waits_for_every_day_is_not_the_backups_doing(
    node: WatchedNode, its_disks_are_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.write("/etc/pve/lxc/110.conf", "hostname: ct\nrootfs: local:110/vm-110-disk-0.raw,size=8G\n")
    pressure(node, 110, some_us=0, full_us=0, share=99.99)
    if not its_disks_are_known:
        monkeypatch.setattr(GuestTable, "_look_up", lambda *_: None)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        wait_until(lambda: 110 in watch._looks.patients and watch._looks.patients[110].pressure)
        first = watch._looks.patients[110].pressure
        pressure(node, 110, some_us=10_000, full_us=10_000, share=99.99)
        wait_until(lambda: watch._looks.patients[110].pressure != first)
        wait_until(lambda: watch._looks.patients[110].pressure[1].full_us == 10_000)  # type: ignore[index]
        assert watch._sufferings.totals_s(110)[0] < 0.01
        assert governor.ever_known == []  # its pressure alone does not steer


def pressure(node: WatchedNode, vmid: int, *, some_us: int, full_us: int, share: float = 0.0) -> None:
    averages = f"avg10=0.00 avg60=0.00 avg300={share:.2f}"
    text = f"some {averages} total={some_us}\nfull {averages} total={full_us}\n"
    file = node.root / f"sys/fs/cgroup/lxc/{vmid}/io.pressure"
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_a_hundred_guests_are_all_looked_at_and_the_one_that_waits_comes_first(node: WatchedNode) -> None:
    slow, *_ = [node.vm(vmid) for vmid in range(200, 300)]
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.look_every_s = lambda _vmid: 5.0  # type: ignore[method-assign]
        governor.wait_until(lambda: 200 in governor.known)
        slow.serve_requests("write", 300.0, 5)
        governor.wait_until(lambda: len(governor.known) == 100)
        governor.wait_for_sample(200, 2)


def test_totals_outlive_the_daemon(node: WatchedNode) -> None:
    db = node.vm(105)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
        db.serve_requests("write", 2600.0, 1)
        governor.wait_until(governor.write_is_seen(105, 1))
        watch.note()
        watch.leave()
        assert db.has_histograms
        assert sorted(node.run.waiting) == [101, 105]
        with node.watched() as next_watch:
            (record,) = next_watch.end()
            wait_until(lambda: not db.has_histograms)
    assert record.stalled_s == pytest.approx(2.6, rel=0.13)
    assert record.marks


def test_a_guest_that_is_left_running_when_etc_pve_hangs_is_watched_all_the_same(node: WatchedNode) -> None:
    node.vm(105)
    (node.root / "etc/pve/qemu-server/105.conf").unlink()
    node.vms[105] = ProcessId(1, 1)
    with node.watched() as watch:
        governor = node.backup_begins(watch)
        governor.wait_for_sample(105)
