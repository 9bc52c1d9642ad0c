"""Others between vzdump and the hook, or behind it: a wrapper script, a chain that leads back."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pvehook.hook_call import CHAINED_NS
from pvehook.host.ioprio import IDLE, read_all_threads, restore_normal
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.daemon.caller import Caller
from tests.node_under_test import ALWAYS, NEVER, NodeUnderTest
from tests.rescue.test_without_daemon import assert_idle

WITH_AND_WITHOUT = pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])


def write(script: Path, text: str) -> str:
    script.write_text(text)
    script.chmod(0o755)
    return str(script)


def chain_to(node: NodeUnderTest, chain: str, has_daemon: bool) -> None:
    node.configure(f"{ALWAYS}chain: {chain}\n")
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",)), chain=chain))
    if has_daemon:
        node.start_daemon()


@WITH_AND_WITHOUT
@pytest.mark.parametrize("how", ["the hook", "link", "link to link"])
def test_a_chain_to_the_hook_itself_is_not_run(node_without_daemon: NodeUnderTest, how: str, has_daemon: bool) -> None:
    node = node_without_daemon
    chain = Path(node.hook)
    if how != "the hook":
        (node.root / "a").symlink_to(node.hook)
        (node.root / "b").symlink_to("a")
        chain = node.root / ("a" if how == "link" else "b")
    chain_to(node, str(chain).removeprefix(str(node.root)), has_daemon)
    played = play(node.run())
    assert played.exit_code == 0
    for call in played.calls:
        assert call.lines.count(
            "pvehook: `chain:` leads back to pvehook's own hook and is not run; correct /etc/pvehook.yaml"
        ) == 1


@WITH_AND_WITHOUT
@pytest.mark.parametrize("how", ["", "exec", "env -i", "exec env -i", "exec setsid -w env -i", "perl -e 'exec @ARGV'"])
def test_a_chained_script_that_calls_the_hook_ends(
    node_without_daemon: NodeUnderTest, has_daemon: bool, how: str
) -> None:
    """vzdump runs the wrapper, the wrapper the hook, the hook its chain, which is the wrapper: it ran for ever."""
    node = node_without_daemon
    wrapper = write(node.root / "wrapper", f'#!/bin/sh\necho wrapper\n{how} "{node.hook}" "$@"\n')
    chain_to(node, "/wrapper", has_daemon)
    played = play(replace(node.run(), hook=wrapper))
    assert played.exit_code == 0
    for call in played.calls:
        assert call.lines.count("wrapper") == 2
        circles = [line for line in call.lines if line.startswith("pvehook: called by its own chained script")]
        assert len(circles) == 1


def test_a_chained_script_that_is_called_by_hand_ends_too(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    write(node.root / "wrapper", f'#!/bin/sh\necho wrapper\nexec env -i "{node.hook}" "$@"\n')
    chain_to(node, "/wrapper", has_daemon=False)
    done = subprocess.run([node.hook, "log-end"], env={}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines().count("wrapper") == 1
    assert "called by its own chained script" in done.stdout


def test_a_run_that_a_chained_script_starts_is_served_as_any_other(node_without_daemon: NodeUnderTest) -> None:
    """Its worker has inherited what marks a chained script."""
    node = node_without_daemon
    node.start_daemon()
    with Path("/proc/self/timerslack_ns").open("r+") as slack:
        was = slack.read()
        try:
            slack.write(str(int(was) + CHAINED_NS))
            slack.flush()
            played = play(node.run())
        finally:
            slack.write(was)
    assert not any("called by its own" in line for call in played.calls for line in call.lines)
    assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"


@WITH_AND_WITHOUT
@pytest.mark.parametrize("depth", [1, 3])
def test_the_worker_is_found_behind_a_wrapper(node_without_daemon: NodeUnderTest, has_daemon: bool, depth: int) -> None:
    node = node_without_daemon
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    if has_daemon:
        node.start_daemon()
    inner = node.hook
    for number in range(depth):
        inner = write(node.root / f"wrapper{number}", f'#!/bin/sh\n"{inner}" "$@" || true\n')
    with Player(replace(node.run(pauses=("archive 101",)), hook=inner)) as player:
        player.wait_for("archive 101")
        assert_idle(node, player.pid)
        player.go_on()
        assert player.finish().exit_code == 0
    if has_daemon:
        assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"
        assert os.listdir(node.root / "run/pvehook/jobs") == []


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "passed on"])
def test_a_refusal_whose_exit_code_is_lost_is_reported_as_critical(
    node_without_daemon: NodeUnderTest, lost: bool
) -> None:
    node = node_without_daemon
    node.configure(NEVER)
    node.start_daemon()
    wrapper = write(node.root / "wrapper", f'#!/bin/sh\n"{node.hook}" "$@"{" || true" if lost else ""}\n')
    played = play(replace(node.run(), hook=wrapper))
    assert (played.exit_code == 0) is lost
    said = [call.argv[0] for call in played.calls if any("was refused, but goes on" in line for line in call.lines)]
    assert said == (["backup-start", "pre-stop", "backup-end"] if lost else [])
    if lost:
        assert node.wait_for_event("refusal-ignored")["PRIORITY"] == "2"
    else:
        assert "refusal-ignored" not in node.event_names()


@pytest.mark.parametrize("guest", [Guest(101), Guest(110, kind="lxc", name="mail")], ids=["vm", "container"])
def test_what_runs_in_spite_of_a_refusal_is_cancelled_where_that_is_wanted(
    node_without_daemon: NodeUnderTest, guest: Guest
) -> None:
    """Guest by guest: the next one, which the window exempts, is backed up."""
    node = node_without_daemon
    node.configure('window: {open: [], enforce: cancel, exempt: {guests: [102]}}\n')
    node.start_daemon()
    wrapper = write(node.root / "wrapper", f'#!/bin/sh\n"{node.hook}" "$@" || true\n')
    played = play(replace(node.run(guest, Guest(102)), hook=wrapper))
    phases = [call.argv[0] for call in played.calls if call.argv[2:] == (str(guest.vmid),)]
    assert phases == ["backup-start", "backup-abort", "log-end"]  # pre-stop is interrupted, before anything was read
    assert any("was refused, but went on: it is cancelled" in line for line in played.task_log)
    report = node.wait_for_event("refusal-ignored")
    assert report["PRIORITY"] == "2"
    assert report["MESSAGE"].endswith("It is cancelled (window.enforce: cancel)")
    assert node.wait_for_event("guest-done", vmid=str(guest.vmid))["PVEHOOK_RESULT"] == "refused"
    assert node.wait_for_event("guest-done", vmid="102")["PVEHOOK_RESULT"] == "ok"


def test_nobody_but_vzdump_is_cancelled(node: NodeUnderTest) -> None:
    """The hook called by hand: its caller is a shell."""
    node.configure("window: {open: [], enforce: cancel}\n")
    with Caller(node) as shell:
        assert "is refused" in shell.call("backup-start", "snapshot", "101")
        assert "could not be cancelled" in shell.call("pre-stop", "snapshot", "101")
        assert "exit 0" in shell.call("log-end", "snapshot", "101")


def open_window(node: NodeUnderTest, has_daemon: bool) -> None:
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    if has_daemon:
        node.start_daemon()


@WITH_AND_WITHOUT
def test_a_shell_that_calls_the_hook_by_hand_keeps_its_priority(
    node_without_daemon: NodeUnderTest, has_daemon: bool
) -> None:
    node = node_without_daemon
    open_window(node, has_daemon)
    shell = '"$0" job-init; "$0" job-start; ionice -p $$'
    done = subprocess.run(["/bin/sh", "-c", shell, node.hook], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "none: prio 0"


@WITH_AND_WITHOUT
def test_a_hook_whose_worker_was_killed_leaves_the_nodes_first_process_alone(
    node_without_daemon: NodeUnderTest, has_daemon: bool
) -> None:
    """It is process 1's child then, which every service and every guest inherits its priority from."""
    node = node_without_daemon
    open_window(node, has_daemon)
    orphan = 'while test "$(ps -o ppid= -p $$)" -ne 1; do :; done; exec "$0" job-start'
    killed = f"/bin/sh -c '{orphan}' \"$0\" &"
    try:
        subprocess.run(["/bin/sh", "-c", killed, node.hook], capture_output=True, check=True, timeout=60)
        assert IDLE not in {state.priority for state in read_all_threads(Node("/"), 1).values()}
    finally:
        restore_normal(Node("/"), 1)
