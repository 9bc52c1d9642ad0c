"""What is seen of a guest while it is backed up, through the real hook and the real daemon, on a simulated guest.

That the figures are true is shown on a real QEMU guest (tests/rig/test_stalls_real.py); here it is shown that they are
taken from where they should be, and that what cannot be had costs a figure and nothing else.
"""

from __future__ import annotations

import io
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from pvehook.contract.latency import our_boundaries_ns
from pvehook.contract.measured import Absent, Broken, value_of
from pvehook.deadline import Deadline
from pvehook.guest.block_stats import read_disks
from pvehook.guest.qmp import open_qmp
from pvehook.records.history import last_records, reading
from pvehook.records.stall_record import StallRecord
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.player import Played, Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.report.report import run_report
from pvehook.rules.stalls import GuestView, HypervisorView, PressureSeconds
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, NodeUnderTest

WEB = Guest(101, name="web", agent=True)
CONFIG = "agent: 1\nname: web\nscsi0: local:101/vm-101-disk-0.raw\n"
HUNG_S = 5.0
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:1:44]"
RCU = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"


@contextmanager
def running_vm(
    node: NodeUnderTest, vmid: int = 101, config: str = CONFIG, **options: object
) -> Iterator[SimulatedGuest]:
    (node.root / f"etc/pve/qemu-server/{vmid}.conf").write_text(config)
    sockets = str(node.root / "var/run/qemu-server")
    with SimulatedGuest(sockets, vmid, **options) as guest:  # type: ignore[arg-type]
        yield guest


def looked_at(guest: SimulatedGuest) -> int:
    return sum(each.command == "query-block-jobs" for each in guest.heard)


def wait_for_looks(guest: SimulatedGuest, more: int = 2) -> None:
    wanted = looked_at(guest) + more
    assert guest.wait_until(lambda: looked_at(guest) >= wanted, 20)


def record(node: NodeUnderTest, vmid: int = 101) -> StallRecord:
    with reading(str(node.root / "var/lib/pvehook/history.db")) as history:
        (found,) = [each for each in last_records(history, 0.0) if each.vmid == vmid]
    return found


def night(
    node: NodeUnderTest, guest: SimulatedGuest, during: Callable[[], None] = lambda: None, run: Guest = WEB
) -> Played:
    """A backup during which `during` happens, after the first looks and before the last."""
    with Player(node.run(run, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        during()
        wait_for_looks(guest)
        guest.finish_backup()
        player.go_on()
        return player.finish()


def test_what_qemu_completed_during_the_backup_is_the_guests_night(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.serve_requests("write", 5000.0, 3)  # before the backup: not its doing

        def during() -> None:
            guest.serve_requests("write", 2.0, 200)
            guest.serve_requests("read", 1.0, 100)
            guest.serve_requests("write", 2600.0, 1)

        played = night(node, guest, during)
    view = record(node).hypervisor
    assert isinstance(view, HypervisorView)
    assert (view.write.operations, view.read.operations, view.write.over_1s, view.write.over_10s) == (201, 100, 1, 0)
    assert view.write.p50_ms == pytest.approx(2.0, rel=0.13)  # one bin
    assert view.stalled_s == pytest.approx(2.6, rel=0.13)
    done = node.wait_for_event("guest-done", vmid="101")
    assert done["PVEHOOK_SEVERITY"] == "stalled"
    assert float(done["PVEHOOK_STALLED_S"]) == pytest.approx(2.6, rel=0.13)
    assert done["PRIORITY"] == "4"
    assert any("stalled" in line for line in played.notification)


@pytest.mark.parametrize(
    ("window", "closes"),
    [
        ('open: ["02:00-05:00"], timezone: UTC', datetime(2026, 11, 24, 5, tzinfo=UTC)),
        ('open: ["00:00-24:00"]', None),
        ("open: [], exempt: {guests: [101]}", None),
    ],
    ids=["a window", "always", "an exempt guest"],
)
def test_the_record_has_when_the_window_closes(node: NodeUnderTest, window: str, closes: datetime | None) -> None:
    """For the picture of the night."""
    node.configure(f"window: {{{window}}}\n")
    node.set_clock("2026-11-24T03:00:00+00:00")
    with running_vm(node) as guest:
        night(node, guest)
    assert record(node).window_closes_s == (None if closes is None else closes.timestamp())


def test_a_quiet_night_is_zero_and_not_absent(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        night(node, guest)
    done = node.wait_for_event("guest-done", vmid="101")
    assert done["PVEHOOK_STALLED_S"] == "0"
    assert done["PVEHOOK_SEVERITY"] == "none"
    assert done["PRIORITY"] == "6"


def test_histograms_are_armed_for_the_backup_and_removed_after_it(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        with Player(node.run(WEB, pauses=("archive 101",))) as player:
            player.wait_for("archive 101")
            wait_for_looks(guest)
            assert histograms(guest) == {our_boundaries_ns()}
            guest.finish_backup()
            player.go_on()
            player.finish()
        assert histograms(guest) == {None}


def armings(guest: SimulatedGuest) -> int:
    """How often its histogram was armed or removed."""
    return sum(each.command == "block-latency-histogram-set" for each in guest.heard)


def histograms(guest: SimulatedGuest) -> set[tuple[int, ...] | None]:
    deadline = Deadline.after(5)
    with open_qmp(guest.qmp_path, deadline) as qmp:
        found = [disk.write.histogram for disk in read_disks(qmp, deadline)]
    return {each.boundaries_ns if each else None for each in found}


def test_an_administrators_own_histogram_is_read_and_left_as_it_is(node: NodeUnderTest) -> None:
    theirs = (1_000_000, 1_000_000_000)
    with running_vm(node) as guest:
        deadline = Deadline.after(5)
        with open_qmp(guest.qmp_path, deadline) as qmp:
            qmp.execute("block-latency-histogram-set", {"id": "scsi0", "boundaries": list(theirs)}, deadline=deadline)
        night(node, guest, lambda: guest.serve_requests("write", 1500.0, 1))
        assert histograms(guest) == {theirs}
    view = record(node).hypervisor
    assert isinstance(view, HypervisorView)
    assert view.their_histograms == ("scsi0",)
    assert view.write.over_1s == 1


def test_lines_of_the_guests_kernel_log_during_the_backup_are_quoted_and_those_before_are_not(
    node: NodeUnderTest,
) -> None:
    with running_vm(node) as guest:
        guest.files.log(f"{RCU} before")

        def during() -> None:
            guest.files.log(LOCKUP)
            guest.files.log("eth0: link up")
            guest.files.log(RCU)

        played = night(node, guest, during)
    found = record(node)
    assert isinstance(found.guest, GuestView)
    events = value_of(found.guest.kernel)
    assert events is not None
    assert [(event.kind, event.text) for event in events] == [("soft-lockup", LOCKUP), ("rcu-stall", RCU)]
    assert all(found.started_s <= event.at_s <= found.ended_s for event in events)
    assert found.verdict.severity == "locked-up"
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_SEVERITY"] == "locked-up"
    assert any("locked-up" in line or "lockup" in line for line in played.notification)


def test_what_the_guest_says_of_its_pressure_is_the_difference(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.files.set_pressure("io", 7_000_000, 6_000_000)
        night(node, guest, lambda: guest.files.set_pressure("io", 9_500_000, 7_000_000))
    view = record(node).guest
    assert isinstance(view, GuestView)
    assert view.io == PressureSeconds(2.5, 1.0)
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_GUEST_IO_SOME_S"] == "2.5"


def test_a_guest_without_an_agent_is_absent_in_its_own_words(node: NodeUnderTest) -> None:
    with running_vm(node, config="name: web\nscsi0: local:101/vm-101-disk-0.raw\n") as guest:
        night(node, guest, run=Guest(101, name="web"))
        assert [each for each in guest.heard if each.channel == "qga"] == []
    found = record(node)
    assert found.guest == Absent("it has no agent (option agent)")
    assert isinstance(found.hypervisor, HypervisorView)
    done = node.wait_for_event("guest-done", vmid="101")
    assert done["PVEHOOK_GUEST_IO_SOME_S"].startswith("absent: it has no agent")


def test_an_agent_that_hangs_is_broken_and_holds_up_nothing(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        guest.stick("agent")
        played = night(node, guest)
        assert played.exit_code == 0
        guest.unstick("agent")
    assert isinstance(record(node).guest, Broken)
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_GUEST_IO_SOME_S"].startswith("broken: ")


def test_a_qemu_that_hangs_for_a_while_is_silence_and_the_rest_is_told(node: NodeUnderTest) -> None:
    """Held by another client it looks the same to us: connected, and not a word. While vzdump asks nothing itself."""
    run = node.run(WEB, pauses=("before pre-restart 101",))
    with running_vm(node, backup_s=0.1) as guest, Player(run) as player:
        player.wait_for("before pre-restart 101")
        wait_for_looks(guest)
        with open_qmp(guest.qmp_path, Deadline.after(5)):
            threading.Event().wait(HUNG_S)  # the stimulus is time itself
        wait_for_looks(guest)
        player.go_on()
        assert player.finish().exit_code == 0
    view = record(node).hypervisor
    assert isinstance(view, HypervisorView)
    assert view.silence_ms > 4000
    done = node.wait_for_event("guest-done", vmid="101")
    assert float(done["PVEHOOK_QMP_SILENCE_MS"]) > 4000
    assert done["PVEHOOK_STALLED_S"] == "0"


def test_a_container_is_told_by_its_cgroup(node: NodeUnderTest) -> None:
    sys = node.root / "sys"
    sys.unlink()
    cgroup = sys / "fs/cgroup/lxc/110"
    cgroup.mkdir(parents=True)

    def pressure(total_us: int) -> None:
        line = f"avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}"
        for name in ("cpu", "io", "memory"):
            (cgroup / f"{name}.pressure").write_text(f"some {line}\nfull {line}\n")

    pressure(1_000_000)
    with Player(node.run(Guest(110, kind="lxc", name="mail"), pauses=("archive 110",))) as player:
        player.wait_for("archive 110")
        pressure(5_000_000)
        player.go_on()
        player.finish()
    found = record(node, 110)
    assert found.verdict.stalled_s == 4.0
    assert found.verdict.severity == "stalled"
    assert found.hypervisor == Absent("a container has no QEMU")


def test_a_guest_that_waits_for_its_turn_is_armed_when_the_job_starts(node: NodeUnderTest) -> None:
    """It keeps its histograms until its own turn is over: what is counted before is its baseline."""
    with ExitStack() as stack:
        web = stack.enter_context(running_vm(node))
        db = stack.enter_context(running_vm(node, 102, CONFIG.replace("101", "102"), backup_s=0.1))
        fake_vm_process.start(node.node, 102)
        stack.callback(fake_vm_process.stop, node.node, 102)
        with Player(node.run(WEB, Guest(102, name="db"), pauses=("archive 101",))) as player:
            player.wait_for("archive 101")
            wait_for_looks(web)
            assert db.wait_until(lambda: armings(db) == 1, 20)
            assert histograms(db) == {our_boundaries_ns()}
            web.finish_backup()
            player.go_on()
            player.finish()
        assert histograms(db) == {None}


def test_guests_whose_turn_does_not_come_keep_no_histogram(node: NodeUnderTest) -> None:
    with running_vm(node) as web, running_vm(node, 105, CONFIG) as other:
        fake_vm_process.start(node.node, 105)
        try:
            with Player(node.run(WEB, pauses=("archive 101",))) as player:
                player.wait_for("archive 101")
                assert other.wait_until(lambda: armings(other) == 1, 20)
                web.finish_backup()
                player.go_on()
                player.finish()
            assert other.wait_until(lambda: armings(other) == 2, 20)
            assert histograms(other) == {None}
        finally:
            fake_vm_process.stop(node.node, 105)


def test_a_daemon_killed_in_the_night_goes_on_with_the_same_counting(node: NodeUnderTest) -> None:
    with running_vm(node) as guest:
        with Player(node.run(WEB, pauses=("before pre-restart 101", "archive 101"))) as player:
            player.wait_for("before pre-restart 101")
            wait_for_looks(guest)
            player.go_on()
            player.wait_for("archive 101")
            guest.serve_requests("write", 1700.0, 1)
            wait_for_looks(guest)
            node.kill_daemon()
            node.start_daemon()
            wait_for_looks(guest)
            guest.serve_requests("write", 2.0, 10)
            wait_for_looks(guest)
            guest.finish_backup()
            player.go_on()
            player.finish()
        assert histograms(guest) == {None}
    view = record(node).hypervisor
    assert isinstance(view, HypervisorView)
    assert (view.write.operations, view.write.over_1s) == (11, 1)


def test_a_history_that_cannot_be_kept_costs_a_line(node: NodeUnderTest) -> None:
    (node.root / "var/lib/pvehook/history.db").mkdir(parents=True)
    with running_vm(node) as guest:
        played = night(node, guest)
    assert played.exit_code == 0
    assert node.wait_for_event("history-not-kept", vmid="101")
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_STALLED_S"] == "0"


def test_metrics_off_looks_at_nothing(node: NodeUnderTest) -> None:
    node.configure(ALWAYS + "metrics: {mode: off}\n")
    with running_vm(node, backup_s=0.1) as guest:
        play(node.run(WEB))
        assert not [each for each in guest.heard if each.command == "query-blockstats"]
    assert "PVEHOOK_STALLED_S" not in node.wait_for_event("guest-done", vmid="101")


def test_prometheus_finds_the_night_in_a_file_that_it_may_read(node: NodeUnderTest) -> None:
    (node.root / "srv").mkdir()
    node.configure(ALWAYS + "metrics: {textfile: /srv/pvehook.prom}\n")
    with running_vm(node) as guest:
        night(node, guest, lambda: guest.serve_requests("write", 2600.0, 1))
    file = node.root / "srv/pvehook.prom"
    stalled = 'pvehook_stalled_seconds{id="qemu/101",vmid="101",part="own"}'
    (line,) = [line for line in file.read_text().splitlines() if line.startswith(stalled)]
    assert float(line.split()[-1]) == pytest.approx(2.6, rel=0.13)
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_guest_without_pressure_is_absent_everywhere_and_one_that_hangs_is_broken_everywhere(
    node: NodeUnderTest,
) -> None:
    """In the journal, in the report and for Prometheus, and neither is told as zero."""
    (node.root / "srv").mkdir()
    node.configure(ALWAYS + "metrics: {textfile: /srv/pvehook.prom}\n")

    def shown() -> tuple[str, str, str]:
        done = [each.fields for each in node.journal.events if each.fields["PVEHOOK_EVENT"] == "guest-done"][-1]
        out = io.StringIO()
        history = str(node.root / "var/lib/pvehook/history.db")
        assert run_report(history, out, datetime.now(UTC), vmid=101) == 0
        return done["PVEHOOK_GUEST_IO_SOME_S"], out.getvalue(), (node.root / "srv/pvehook.prom").read_text()

    with running_vm(node) as guest:
        night(node, guest)
        journal, report, prometheus = shown()
        assert journal == "0"
        assert re.search(r"io some s +0\b", report)
        assert 'pvehook_view_up{id="qemu/101",vmid="101",view="guest"} 1' in prometheus
        assert re.search(r'^pvehook_guest_pressure_seconds\{.*"io".*\} 0(\.0)?$', prometheus, re.MULTILINE)

        for resource in ("cpu", "io", "memory"):
            del guest.files.contents[f"/proc/pressure/{resource}"]
        night(node, guest)
        journal, report, prometheus = shown()
        assert journal.startswith("absent: ")
        assert re.search(r"io some s +-", report)
        assert not re.search(r'^pvehook_guest_pressure_seconds\{.*"io"', prometheus, re.MULTILINE)

        guest.stick("agent")
        night(node, guest)
        guest.unstick("agent")
        journal, report, prometheus = shown()
        assert journal.startswith("broken: ")
        assert re.search(r"the guest itself", report)
        assert "?" in report
        assert 'pvehook_view_up{id="qemu/101",vmid="101",view="guest"} 0' in prometheus


def test_the_worst_night_keeps_its_record(node: NodeUnderTest) -> None:
    """QEMU and agent hang, and vzdump is killed: what was sampled until then is kept, and nobody calls it harmless."""
    with running_vm(node) as guest, Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        wait_for_looks(guest)
        guest.serve_requests("write", 2600.0, 1)
        wait_for_looks(guest)
        guest.stick("qmp")
        guest.stick("agent")
        player.send_signal(signal.SIGKILL)
        done = node.wait_for_event("guest-done", vmid="101")
        guest.unstick("qmp")
        guest.unstick("agent")
    assert (done["PVEHOOK_RESULT"], done["PVEHOOK_SEVERITY"]) == ("worker-died", "stalled")
    found = record(node)
    assert isinstance(found.hypervisor, HypervisorView)
    assert found.hypervisor.write.over_1s == 1
    assert isinstance(found.guest, Broken)
