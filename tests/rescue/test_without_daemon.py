"""The daemon is absent, hung, killed, refusing or mad: no phase fails or outlasts its deadline, the window still
refuses, idle priority is still set."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pvehook.contract.phases import GUEST_PHASES, PHASES
from pvehook.hook_call import DEADLINE_S
from pvehook.host.clock import SystemClock, at, local_zone
from pvehook.host.ioprio import IDLE, NONE, read_all_threads
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.last_good import store_config, window_of
from pvehook.rules.window import is_open
from pvehook.settings import DEFAULT, Config, WindowConfig
from tests.node_under_test import AS_WORKER, NodeUnderTest

ALWAYS_OPEN = Config(window=WindowConfig(open=("00:00-24:00",)))
NEVER_OPEN = Config(window=WindowConfig(open=()))


def assert_idle(node: NodeUnderTest, pid: int) -> None:
    assert {state.priority for state in read_all_threads(node.node, pid).values()} == {IDLE}


def test_absent_the_backup_runs_at_idle_priority_and_says_so(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    store_config(node.node, ALWAYS_OPEN)
    with Player(node.run(pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        assert_idle(node, player.pid)
        assert_idle(node, player.children(101)["zstd"])
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert any("the daemon does not answer (No such file or directory)" in line for line in played.task_log)


def test_absent_a_closed_window_still_refuses(node_without_daemon: NodeUnderTest) -> None:
    store_config(node_without_daemon.node, NEVER_OPEN)
    played = play(node_without_daemon.run())
    assert [(call.argv[0], call.exit_code) for call in played.calls] == [("job-init", 1)]
    assert any("is refused: it is" in line for line in played.calls[0].lines)


def test_what_is_left_of_a_window_counts_when_a_part_of_it_is_not_understood() -> None:
    """A zone may leave the system with an upgrade (Debian 13: US/Eastern without tzdata-legacy)."""
    zone = ZoneInfo("Europe/Warsaw")
    config = WindowConfig(open=("22:00-06:00", "a later pvehook's"), timezone="US/Nowhere")
    window, doubt = window_of(Config(window=config), zone)
    assert ([span.text for span in window.spans], window.zone) == (["22:00-06:00"], zone)
    assert "US/Nowhere" in doubt
    assert "a later pvehook's" in doubt

    window, doubt = window_of(Config(window=WindowConfig(open=("a later pvehook's",), timezone="UTC")), zone)
    assert ([span.text for span in window.spans], window.zone) == ([*DEFAULT.window.open], ZoneInfo("UTC"))
    assert "02:00-05:00 applies" in doubt

    assert window_of(Config(window=WindowConfig(open=())), zone)[0].spans == ()  # never, as configured


def test_absent_from_the_first_night_on_the_built_in_window_counts(node_without_daemon: NodeUnderTest) -> None:
    """No daemon ever ran, so there is no last good configuration. The answer must be that of 02:00-05:00."""
    zone = local_zone(node_without_daemon.node)
    expected = 0 if is_open(window_of(DEFAULT, zone)[0], at(SystemClock(), zone)) else 1
    assert play(node_without_daemon.run()).calls[0].exit_code == expected


def test_absent_a_vm_that_vzdump_started_is_put_back(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    store_config(node.node, ALWAYS_OPEN)
    with Player(node.run(Guest(105), mode="stop", pauses=("after log-end 105",))) as player:
        player.wait_for("after log-end 105")
        kvm = player.started_vm(105)
        assert {state.priority for state in read_all_threads(node.node, kvm).values()} == {NONE}
        player.go_on()
        assert player.finish().exit_code == 0


@pytest.mark.parametrize("phase", PHASES)
def test_killed_before_any_phase_the_run_goes_on(node: NodeUnderTest, phase: str) -> None:
    """SIGKILL leaves the socket file behind: what the hook then sees is a refused connection."""
    where = f"before {phase}" + (" 101" if phase in GUEST_PHASES else "")
    failing = phase in ("backup-abort", "job-abort")
    if failing:  # these phases come when a chained script makes the run fail
        fail_in = "pre-stop" if phase == "backup-abort" else "job-start"
        chain = node.root / "fails"
        chain.write_text(f'#!/bin/sh\ntest "$1" != {fail_in}\n')
        chain.chmod(0o755)
        node.configure('window: {open: ["00:00-24:00"]}\nchain: /fails\n')
    with Player(node.run(pauses=(where,))) as player:
        player.wait_for(where)
        if phase == "job-init":
            store_config(node.node, ALWAYS_OPEN)  # nothing was remembered yet: no phase has been
        node.kill_daemon()
        player.go_on()
        played = player.finish()
    own_failures = [
        call for call in played.calls if call.exit_code != 0 and call.argv[0] not in ("pre-stop", "job-start")
    ]
    assert own_failures == []
    assert (played.exit_code == 0) is not failing
    assert any(
        "the daemon does not answer (Connection refused)" in line for call in played.calls for line in call.lines
    )


def test_hung_no_phase_outlasts_its_deadline(node: NodeUnderTest) -> None:
    store_config(node.node, ALWAYS_OPEN)
    node.daemon.send_signal(signal.SIGSTOP)
    try:
        calls = {
            phase: subprocess.Popen(
                [*AS_WORKER, node.hook, phase, *(("snapshot", "101") if phase in GUEST_PHASES else ())],
                env={"LC_ALL": "C"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for phase in PHASES
        }
        for phase, call in calls.items():
            # All run side by side, so each is waited for at most its own deadline and the start of an interpreter.
            output, _ = call.communicate(timeout=DEADLINE_S[phase] + 2)
            assert call.returncode == 0, (phase, output)
            assert "the daemon does not answer (not taken up within 2.5 s)" in output, phase
    finally:
        node.daemon.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"", "the connection was closed without an answer"),
        (b"exi", "the answer broke off"),
        (b"exit one\n", "the answer broke off"),
        (b"\xff\xfe\x00garbage\n" * 3, "the answer broke off"),
    ],
)
def test_a_mad_daemon_is_treated_as_none(node_without_daemon: NodeUnderTest, answer: bytes, seen: str) -> None:
    store_config(node_without_daemon.node, ALWAYS_OPEN)
    Path(node_without_daemon.node.run_dir).mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(node_without_daemon.node.hook_socket)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = subprocess.run(
            [*AS_WORKER, node_without_daemon.hook, "job-start"], env={}, capture_output=True, text=True, check=False
        )
        thread.join(10)
    assert done.returncode == 0
    assert seen in done.stdout


def test_killed_in_the_middle_of_an_archive_a_new_daemon_picks_the_job_up(node: NodeUnderTest) -> None:
    with Player(node.run(Guest(105), mode="stop", pauses=("archive 105",))) as player:
        player.wait_for("archive 105")
        node.wait_for_event("io-priority-restored", vmid="105")
        node.kill_daemon()
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert node.wait_for_event("guest-done", vmid="105")["PVEHOOK_RESULT"] == "ok"
    assert not any("does not answer" in line for line in played.task_log)


def test_a_worker_that_died_while_no_daemon_watched_is_settled_by_the_next(node: NodeUnderTest) -> None:
    with Player(node.run(Guest(105), mode="stop", pauses=("archive 105",))) as player:
        player.wait_for("archive 105")
        kvm = player.started_vm(105)
        node.kill_daemon()
        player.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, player.pid, os.WEXITED | os.WNOWAIT)
        node.start_daemon()
        assert node.wait_for_event("guest-done", vmid="105")["PVEHOOK_RESULT"] == "worker-died"
        node.wait_for_event("worker-died", vmid="105")
        assert {state.priority for state in read_all_threads(node.node, kvm).values()} == {NONE}
    assert os.listdir(node.root / "run/pvehook/jobs") == []


def test_nothing_left_to_watch_the_daemon_leaves(node_without_daemon: NodeUnderTest) -> None:
    daemon = node_without_daemon.start_daemon("--idle-exit", "1s")
    assert play(node_without_daemon.run()).exit_code == 0
    assert daemon.wait(20) == 0
