"""One run of vzdump through the real hook and the real daemon: what vzdump shows, what the journal says."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from pvehook.host.ioprio import IDLE, NONE, Priority, read_all_threads, set_all_threads
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue import allowances
from pvehook.rules.admission import Allowance
from tests.node_under_test import NEVER, NodeUnderTest


def priorities(node: NodeUnderTest, pid: int) -> set[tuple[int, ...]]:
    return {tuple(state.priority) for state in read_all_threads(node.node, pid).values()}


def test_a_run_in_the_window_is_backed_up_and_accounted_for(node: NodeUnderTest) -> None:
    played = play(node.run(Guest(101, name="web", archive_s=1), Guest(110, kind="lxc", name="mail", archive_s=1)))

    assert played.exit_code == 0
    assert [call.exit_code for call in played.calls] == [0] * len(played.calls)
    log = "\n".join(played.task_log)
    assert "pvehook: VM 101 (web): idle I/O priority on vzdump, zstd" in log
    assert "pvehook: CT 110 (mail): idle I/O priority on vzdump, tar, zstd" in log
    mailed = "\n".join(played.notification)
    assert "VM 101 web" in mailed
    assert "CT 110 mail" in mailed
    done = node.wait_for_event("guest-done", vmid="101")
    assert done["PVEHOOK_RESULT"] == "ok"
    assert done["PVEHOOK_IDLE_THREADS"] == done["PVEHOOK_IDLE_THREADS_CONFIRMED"]
    assert done["PVEHOOK_JOB"] == played.upid
    assert done["SYSLOG_IDENTIFIER"] == "pvehook"
    assert node.wait_for_event("job-ended")["PVEHOOK_GUESTS_OK"] == "2"


def test_a_backup_whose_end_no_daemon_saw_is_unknown_and_not_failed(node: NodeUnderTest) -> None:
    run = node.run(Guest(101, name="web"), pauses=("archive 101", "before log-end 101"))
    with Player(run) as player:
        player.wait_for("archive 101")
        node.kill_daemon()
        player.go_on()
        player.wait_for("before log-end 101")
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        player.go_on()
        played = player.finish()
    done = node.wait_for_event("guest-done", vmid="101")
    assert (done["PVEHOOK_RESULT"], done["PRIORITY"]) == ("unknown", "6")
    assert "backup ended unseen" in done["MESSAGE"]
    ended = node.wait_for_event("job-ended")
    assert ended["MESSAGE"] == "vzdump ended: 1 guest, 0 backed up, 0 refused, 0 failed, 1 not known"
    assert ended["PVEHOOK_GUESTS_UNKNOWN"] == "1"
    assert any("VM 101 web        unknown" in line for line in played.notification)


def test_a_daemon_that_answers_leaves_no_failures_for_which_the_next_one_would_wait(node: NodeUnderTest) -> None:
    """Two daemons that were ended in runs of their own are not one that cannot start (hooks/systemd/restart-pause)."""
    failures = Path(node.node.run_dir, "failures")
    failures.write_text("watchdog\n")
    assert play(node.run(Guest(101, name="web"))).exit_code == 0
    assert not failures.exists()


def test_every_thread_of_worker_and_compressor_is_idle_while_the_archive_runs(node: NodeUnderTest) -> None:
    with Player(node.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        zstd = player.children(101)["zstd"]
        node.wait_for_event("io-priority-set", process=str(zstd))
        assert priorities(node, zstd) == {tuple(IDLE)}
        assert len(read_all_threads(node.node, zstd)) > 1  # zstd -T2
        assert priorities(node, player.pid) == {tuple(IDLE)}
        assert priorities(node, node.daemon.pid) == {tuple(NONE)}
        player.go_on()
        assert player.finish().exit_code == 0


def test_a_compressor_that_lost_its_priority_gets_it_back(node: NodeUnderTest) -> None:
    """Checked again while the archive runs: somebody's own ionice may come in between."""
    with Player(node.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        zstd = player.children(101)["zstd"]
        node.wait_for_event("io-priority-set", process=str(zstd))
        before = len(node.journal.events)
        set_all_threads(node.node, zstd, Priority(2, 4))
        node.wait_for_event("io-priority-set", after=before, process=str(zstd))
        assert priorities(node, zstd) == {tuple(IDLE)}
        player.go_on()
        player.finish()


def test_a_vm_that_vzdump_started_is_put_back_to_normal(node: NodeUnderTest) -> None:
    guest = Guest(105, name="db", state="running")
    with Player(node.run(guest, mode="stop", pauses=("archive 105",))) as player:
        player.wait_for("archive 105")
        kvm = player.started_vm(105)
        restored = node.wait_for_event("io-priority-restored", vmid="105")
        assert restored["PVEHOOK_PROCESS"] == str(kvm)
        assert int(restored["PVEHOOK_WAS_IDLE"]) > 1  # it was the trap, on several threads
        assert priorities(node, kvm) == {tuple(NONE)}
        player.go_on()
        played = player.finish()
        assert priorities(node, kvm) == {tuple(NONE)}
    assert any(f"kvm {kvm}" in line and "back at normal priority" in line for line in played.task_log)


def test_a_closed_window_refuses_the_run_with_one_line_that_says_how_to_allow_it(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-02:01"], timezone: Europe/Warsaw}\n')
    node.set_clock("2026-11-22T14:00:00+00:00")

    played = play(node.run())

    assert [call.argv for call in played.calls] == [("job-init",)]
    assert played.calls[0].exit_code == 1
    (line,) = played.calls[0].lines
    assert line.startswith("pvehook: this run is refused: it is 15:00:")
    assert "Europe/Warsaw" in line
    assert "it opens next: Mon 2026-11-23 02:00 CET" in line
    assert 'to allow it now: pvehook allow --for 2h --reason "..."' in line
    refused = node.wait_for_event("window-refused")
    assert refused["PRIORITY"] == "4"
    assert refused["PVEHOOK_REASON"] == "window-closed"


def test_the_guest_after_the_windows_end_is_refused_and_the_running_one_finishes(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-05:00"], timezone: UTC}\n')
    node.set_clock("2026-11-22T04:50:00+00:00")
    with Player(node.run(Guest(101, name="web"), Guest(102, name="db"), pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        node.set_clock("2026-11-22T05:10:00+00:00")
        closed = node.wait_for_event("window-closed-on-guest", vmid="101")
        assert "running_guest: finish" in closed["MESSAGE"]
        player.go_on()
        played = player.finish()
    assert [call.exit_code for call in played.calls if call.argv[0] == "backup-start"] == [0, 1]
    log = "\n".join(played.task_log)
    assert "minutes past the window's end (running_guest: finish lets it finish)" in log
    assert "pvehook: guest 102 is refused: it is 05:10:" in log
    assert node.wait_for_event("guest-done", vmid="102")["PVEHOOK_RESULT"] == "refused"
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"


def test_next_guest_allow_lets_the_night_run_over(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-05:00"], timezone: UTC, next_guest: allow}\n')
    node.set_clock("2026-11-22T04:50:00+00:00")
    with Player(node.run(Guest(101), Guest(102), pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        node.set_clock("2026-11-22T05:10:00+00:00")
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert any("next_guest: allow lets guest 102 go on" in line for line in played.task_log)


def test_a_job_that_waited_for_the_lock_until_the_window_closed_is_refused_at_job_start(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-05:00"], timezone: UTC}\n')
    node.set_clock("2026-11-22T04:50:00+00:00")
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        node.set_clock("2026-11-22T06:00:00+00:00")
        player.go_on()
        played = player.finish()
    assert [(call.argv[0], call.exit_code) for call in played.calls] == [
        ("job-init", 0),
        ("job-start", 1),
        ("job-abort", 0),
    ]


def test_one_allowed_guest_is_backed_up_and_the_others_are_refused(node: NodeUnderTest) -> None:
    node.configure(NEVER)
    allowances.grant(node.node, Allowance("a1", (102,), time.time() + 3600, "restore test", "root"))
    played = play(node.run(Guest(101), Guest(102)))
    starts = {call.argv[2]: call.exit_code for call in played.calls if call.argv[0] == "backup-start"}
    assert starts == {"101": 1, "102": 0}
    assert any("only these guests will be backed up" in line for line in played.calls[0].lines)


def test_an_exempt_guest_is_backed_up_by_hand_at_noon(node: NodeUnderTest) -> None:
    node.configure("window: {open: [], exempt: {guests: [101]}}\n")
    assert play(node.run(Guest(101), upid_id="101")).exit_code == 0


def test_an_exempt_job_is_known_by_what_the_scheduler_wrote_down(node: NodeUnderTest) -> None:
    node.configure("window: {open: [], exempt: {jobs: [nightly]}}\n")
    states = node.root / "var/lib/pve-manager/jobs"
    states.mkdir(parents=True)
    (states / "vzdump-nightly.json").write_text('{"state": "starting"}')
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        upid = player.so_far().upid
        (states / "vzdump-nightly.json").write_text(json.dumps({"state": "started", "upid": upid}))
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert node.wait_for_event("window-admitted", phase="job-start")["PVEHOOK_REASON"] == "job-exempt"


def test_a_killed_worker_ends_its_job_and_its_guest_is_put_back(node: NodeUnderTest) -> None:
    with Player(node.run(Guest(105), mode="stop", pauses=("archive 105",))) as player:
        player.wait_for("archive 105")
        kvm = player.started_vm(105)
        node.wait_for_event("io-priority-restored", vmid="105")
        player.send_signal(signal.SIGKILL)
        done = node.wait_for_event("guest-done", vmid="105")
        assert done["PVEHOOK_RESULT"] == "worker-died"
        node.wait_for_event("worker-died", vmid="105")
        assert priorities(node, kvm) == {tuple(NONE)}
    assert os.listdir(node.root / "run/pvehook/jobs") == []


def test_a_second_run_rings_in_the_middle_of_the_first(node: NodeUnderTest) -> None:
    with Player(node.run(pauses=("archive 101",))) as first:
        first.wait_for("archive 101")
        with Player(node.run(Guest(102), pauses=("after job-init",))) as second:
            second.wait_for("after job-init")
            assert len(os.listdir(node.root / "run/pvehook/jobs")) == 2
            second.send_signal(signal.SIGKILL)  # refused the lock: job-init is all that is ever seen of it
            node.wait_for_event("worker-ended", worker=str(second.pid))
        first.go_on()
        assert first.finish().exit_code == 0
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"
