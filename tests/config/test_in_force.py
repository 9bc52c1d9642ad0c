"""A configuration that is wrong or hangs: the run goes on by the last good one and says so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import Call, Player, play
from pvehook.rescue.last_good import stored_config
from tests.daemon.caller import Caller
from tests.node_under_test import ALWAYS, NEVER, NodeUnderTest

WRONG = 'window:\n  opens: ["00:00-24:00"]\n'
DOUBT = "pvehook: CONFIGURATION NOT USED: "


@pytest.fixture
def hanging_file(node: NodeUnderTest) -> Iterator[Path]:
    """A cluster's file whose open() never returns, as on a /etc/pve whose daemon hangs."""
    path = node.root / "etc/pve/pvehook.yaml"
    os.mkfifo(path)
    aside = node.root / "hanging"
    os.link(path, aside)
    yield aside
    let_go(aside)


def let_go(fifo: Path) -> None:
    """The open() that hangs returns, and reads an empty file."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        pass  # nobody hangs on it


def test_a_time_zone_that_hangs_holds_no_phase(node: NodeUnderTest) -> None:
    """/etc/localtime on a file system that hangs: the phases are answered, the window by UTC, and that is reported."""
    (node.root / "etc/localtime").unlink(missing_ok=True)
    os.mkfifo(node.root / "etc/localtime")
    try:
        with Caller(node) as vzdump:
            for phase in ("job-init", "job-start", "job-end"):
                assert "exit 0" in vzdump.call(phase, within_s=7.0)
        assert "/etc/localtime" in node.wait_for_event("configuration-problem")["MESSAGE"]
        assert "fault" not in node.event_names()
    finally:
        let_go(node.root / "etc/localtime")


def doubts(call: Call) -> list[str]:
    return [line for line in call.lines if line.startswith(DOUBT)]


def test_an_invalid_file_never_stops_a_run_and_is_said_loudly(node: NodeUnderTest) -> None:
    assert play(node.run()).exit_code == 0  # this remembers ALWAYS
    node.configure(WRONG)
    played = play(node.run())
    assert played.exit_code == 0
    (line,) = doubts(played.calls[0])
    assert "/etc/pvehook.yaml:2: window.opens: " in line
    assert "in force: last good configuration" in line
    assert "see `pvehook config check`" in line
    assert any(DOUBT in mailed for mailed in played.notification)
    problem = node.wait_for_event("configuration-problem")
    assert problem["PRIORITY"] == "3"
    assert "/etc/pvehook.yaml:2: window.opens: " in problem["MESSAGE"]
    assert problem["PVEHOOK_IN_FORCE"] == "last good configuration"


def test_an_invalid_file_does_not_open_a_window_that_was_closed(node: NodeUnderTest) -> None:
    node.configure(NEVER)
    assert play(node.run()).calls[0].exit_code == 1
    node.configure(WRONG)
    refused = play(node.run()).calls[0]
    assert refused.exit_code == 1
    assert doubts(refused)  # said also to the one who is refused by an old rule


def test_of_several_problems_the_first_is_shown_and_all_are_in_the_journal(node: NodeUnderTest) -> None:
    node.configure("windows: {}\nchains: x\nio: 1\n")
    played = play(node.run())
    (line,) = doubts(played.calls[0])
    assert "(and 2 more)" in line
    node.wait_for_event("job-ended" if played.exit_code == 0 else "window-refused")  # which comes after them
    assert node.event_names().count("configuration-problem") == 3


@pytest.mark.parametrize(("clock", "exit_code"), [("2026-11-22T03:00", 0), ("2026-11-22T12:00", 1)])
def test_with_no_last_good_one_the_built_in_defaults_count(
    node_without_daemon: NodeUnderTest, clock: str, exit_code: int
) -> None:
    node = node_without_daemon  # one that runs would take the file before for the last good one
    (node.root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    node.configure(WRONG)
    node.set_clock(clock + "+00:00")
    node.start_daemon()
    first = play(node.run()).calls[0]
    assert first.exit_code == exit_code
    assert "built-in defaults" in doubts(first)[0]
    assert stored_config(node.node) is None  # and they do not become the last good one


@pytest.mark.parametrize(("clock", "exit_code"), [("2026-11-22T23:00", 0), ("2026-11-22T03:00", 1)])
def test_with_no_last_good_one_the_valid_values_count(
    node_without_daemon: NodeUnderTest, clock: str, exit_code: int
) -> None:
    node = node_without_daemon  # one that runs would take the file before for the last good one
    (node.root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    node.configure('window: {open: ["22:00-24:00", "at night"]}\n')
    node.set_clock(clock + "+00:00")
    node.start_daemon()
    first = play(node.run()).calls[0]
    assert first.exit_code == exit_code
    assert "in force: the files' valid values" in doubts(first)[0]
    assert stored_config(node.node) is None


def test_a_mended_file_is_used_from_the_next_phase_on(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon  # one that runs would take the file before for the last good one
    node.configure(WRONG)
    node.set_clock("2026-11-22T03:00+00:00")
    (node.root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    node.start_daemon()
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        assert player.so_far().calls[0].exit_code == 0  # by the defaults
        node.configure(NEVER)
        player.go_on()
        played = player.finish()
    assert [(call.argv[0], call.exit_code) for call in played.calls[:2]] == [("job-init", 0), ("job-start", 1)]


def test_a_file_broken_in_the_middle_of_a_run_changes_nothing(node: NodeUnderTest) -> None:
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        node.configure("window: [")
        player.go_on()
        assert player.finish().exit_code == 0


def test_the_last_good_one_survives_the_daemon(node: NodeUnderTest) -> None:
    node.configure(NEVER)
    play(node.run())
    node.kill_daemon()
    node.configure(WRONG)
    node.start_daemon()
    first = play(node.run()).calls[0]
    assert first.exit_code == 1
    assert "in force: last good configuration" in doubts(first)[0]


def test_a_damaged_last_good_one_is_as_none(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    (node.root / "var/lib/pvehook").mkdir(parents=True, exist_ok=True)
    (node.root / "var/lib/pvehook/config.json").write_text("{")
    node.configure(WRONG)
    node.start_daemon()
    assert "built-in defaults" in doubts(play(node.run()).calls[0])[0]


def test_a_cluster_file_system_that_hangs_costs_no_run(node: NodeUnderTest, hanging_file: Path) -> None:
    """Every phase gets its answer from the daemon, in time: the hook does not have to help itself."""
    node.configure(ALWAYS)
    (node.root / "etc/pve/pvehook.yaml").unlink()
    assert play(node.run()).exit_code == 0
    os.link(hanging_file, node.root / "etc/pve/pvehook.yaml")

    played = play(node.run())

    assert played.exit_code == 0
    (line,) = doubts(played.calls[0])
    # The daemon reads it between two runs as well, and may have found out before.
    assert re.search("etc/pve/pvehook.yaml (did not answer within 1 s|still does not answer)", line)
    assert "in force: last good configuration" in line
    assert not any("the daemon does not answer" in line for call in played.calls for line in call.lines)
    assert node.wait_for_event("configuration-problem")["PRIORITY"] == "3"


def test_while_it_hangs_the_next_question_fails_at_once_and_then_it_is_read_again(
    node: NodeUnderTest, hanging_file: Path
) -> None:
    node.configure(ALWAYS)
    node.set_clock("2026-11-22T03:00+00:00")
    (node.root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    assert "did not answer within" in doubts(play(node.run()).calls[0])[0]
    assert "was not asked" in doubts(play(node.run()).calls[0])[0]

    (node.root / "etc/pve/pvehook.yaml").unlink()
    (node.root / "etc/pve/pvehook.yaml").write_text(WRONG)
    let_go(hanging_file)
    for _ in range(20):  # the daemon's thread needs a moment to see it
        (line,) = doubts(play(node.run()).calls[0])
        if "was not asked" not in line:
            break
    assert "/etc/pve/pvehook.yaml:2: window.opens: " in line

    (node.root / "etc/pve/pvehook.yaml").write_text("io_priority: {mode: off}\n")
    assert doubts(play(node.run()).calls[0]) == []
