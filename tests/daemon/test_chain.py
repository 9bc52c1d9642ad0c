"""The script that was in vzdump.conf before us: it gets what it got, and its end is what vzdump sees."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvehook.rehearsal.vzdump.player import Call, Played, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.node_under_test import AS_WORKER, NodeUnderTest

ALWAYS_CHAINED = Config(window=WindowConfig(open=("00:00-24:00",)), chain="/chained")

WITNESS = f"""#!{sys.executable} -IS
import json, os, sys
seen = {{"argv": sys.argv[1:], "env": dict(os.environ), "stdin": sys.stdin.read(), "cwd": os.getcwd()}}
print("witness " + json.dumps(seen))
print("on stderr", file=sys.stderr)
"""


@pytest.fixture
def chained(node_without_daemon: NodeUnderTest) -> Path:
    node_without_daemon.configure('window: {open: ["00:00-24:00"]}\nchain: /chained\n')
    return node_without_daemon.root / "chained"


def write(script: Path, text: str) -> None:
    script.write_text(text)
    script.chmod(0o755)


def witnessed(call: Call) -> dict[str, Any]:
    (line,) = [line for line in call.lines if line.startswith("witness ")]
    seen: dict[str, Any] = json.loads(line.removeprefix("witness "))
    return seen


def phase(played: Played, name: str) -> Call:
    (call,) = [call for call in played.calls if call.argv[0] == name]
    return call


@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])
def test_it_finds_everything_as_vzdump_left_it(
    node_without_daemon: NodeUnderTest, chained: Path, has_daemon: bool
) -> None:
    write(chained, WITNESS)
    if has_daemon:
        node_without_daemon.start_daemon()
    else:
        store_config(node_without_daemon.node, ALWAYS_CHAINED)
    played = play(node_without_daemon.run(Guest(101, name="web"), Guest(110, kind="lxc", name="mail")))
    assert played.exit_code == 0
    for call in played.calls:
        seen = witnessed(call)
        assert tuple(seen["argv"]) == call.argv
        assert seen["env"] == dict(call.env)
        assert seen["stdin"] == ""
        assert seen["cwd"] == "/"
        assert "on stderr" in call.lines
    assert len(played.calls) == 3 + 2 * 6


def test_our_lines_come_first(node_without_daemon: NodeUnderTest, chained: Path) -> None:
    write(chained, WITNESS)
    node_without_daemon.start_daemon()
    lines = phase(play(node_without_daemon.run()), "log-end").lines
    ours = [number for number, line in enumerate(lines) if line.startswith("pvehook: ")]
    assert ours
    assert max(ours) < lines.index(next(line for line in lines if line.startswith("witness ")))


@pytest.mark.parametrize(("ends", "seen"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -15 $$", -15)])
@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])
def test_its_end_is_what_vzdump_sees(
    node_without_daemon: NodeUnderTest, chained: Path, has_daemon: bool, ends: str, seen: int
) -> None:
    write(chained, f'#!/bin/sh\ntest "$1" != pre-stop || {ends}\n')
    if has_daemon:
        node_without_daemon.start_daemon()
    else:
        store_config(node_without_daemon.node, ALWAYS_CHAINED)
    played = play(node_without_daemon.run())
    assert phase(played, "pre-stop").exit_code == seen
    assert played.exit_code != 0
    how = f"exit code {seen}" if seen > 0 else f"got signal {-seen}"
    assert any(f"pre-stop snapshot 101' failed: {how}" in line for line in played.task_log)
    assert {call.exit_code for call in played.calls if call.argv[0] != "pre-stop"} == {0}


def test_a_guest_that_it_failed_is_told_as_failed(node_without_daemon: NodeUnderTest, chained: Path) -> None:
    write(chained, '#!/bin/sh\ntest "$1$3" != pre-stop101\n')
    node_without_daemon.start_daemon()
    play(node_without_daemon.run(Guest(101), Guest(102)))
    assert node_without_daemon.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "failed"
    assert node_without_daemon.wait_for_event("guest-done", vmid="102")["PVEHOOK_RESULT"] == "ok"


@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])
def test_a_closed_window_comes_before_it(node_without_daemon: NodeUnderTest, chained: Path, has_daemon: bool) -> None:
    write(chained, "#!/bin/sh\necho it ran\n")
    node_without_daemon.configure("window: {open: []}\nchain: /chained\n")
    if has_daemon:
        node_without_daemon.start_daemon()
    else:
        store_config(node_without_daemon.node, ALWAYS_CHAINED._replace(window=WindowConfig(open=())))
    (refused,) = play(node_without_daemon.run()).calls
    assert refused.exit_code == 1
    assert "it ran" not in refused.lines


def test_a_guest_that_is_refused_still_shows_it_the_phases_that_follow(
    node_without_daemon: NodeUnderTest, chained: Path
) -> None:
    """A refused guest's other phases still come, and a script that cleans up there must see them."""
    write(chained, "#!/bin/sh\necho it ran\n")
    node_without_daemon.configure("window: {open: [], exempt: {guests: [101]}}\nchain: /chained\n")
    node_without_daemon.start_daemon()
    played = play(node_without_daemon.run(Guest(101), Guest(102)))
    ran = {call.argv for call in played.calls if "it ran" in call.lines}
    assert ("backup-start", "snapshot", "102") not in ran
    assert ("backup-abort", "snapshot", "102") in ran
    assert ("log-end", "snapshot", "102") in ran
    assert ("backup-start", "snapshot", "101") in ran


@pytest.mark.parametrize("how", ["missing", "not executable", "a directory"])
@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])
def test_one_that_cannot_be_run_ends_the_run_as_it_did_before(
    node_without_daemon: NodeUnderTest, chained: Path, has_daemon: bool, how: str
) -> None:
    if how == "not executable":
        chained.write_text("#!/bin/sh\n")
    elif how == "a directory":
        chained.mkdir()
    if has_daemon:
        node_without_daemon.start_daemon()
    else:
        store_config(node_without_daemon.node, ALWAYS_CHAINED)
    (first,) = play(node_without_daemon.run()).calls
    assert first.exit_code == 1
    why = {"missing": "No such file or directory"}.get(how, "Permission denied")
    assert first.lines[-1] == (
        f"pvehook: the chained script {chained} cannot be run ({why}); "
        "fix it or take `chain:` out of /etc/pvehook.yaml"
    )


@pytest.mark.parametrize(("phase", "code"), [("job-init", 1), ("pre-stop", 0)])
def test_a_path_that_no_file_can_have_is_one_that_cannot_be_run(
    node_without_daemon: NodeUnderTest, phase: str, code: int
) -> None:
    store_config(node_without_daemon.node, ALWAYS_CHAINED._replace(chain="/chai\0ned"))
    arguments = ("snapshot", "101") if phase == "pre-stop" else ()
    command = [*AS_WORKER, node_without_daemon.hook, phase, *arguments]
    done = subprocess.run(command, env={}, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (code, b"")
    assert b"/chai\\0ned cannot be run (" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("last_good_phase", ["job-start", "backup-start"])
def test_one_that_vanishes_later_harms_no_guest(
    node_without_daemon: NodeUnderTest, chained: Path, last_good_phase: str
) -> None:
    """A failing post-restart would leave a guest down: where no refusal is possible it is only a line."""
    write(chained, f'#!/bin/sh\ntest "$1" != {last_good_phase} || rm "$0"\n')
    node_without_daemon.start_daemon()
    played = play(node_without_daemon.run(Guest(101), mode="stop"))
    codes = {call.argv[0]: call.exit_code for call in played.calls}
    if last_good_phase == "job-start":
        assert codes.pop("backup-start") == 1
    assert set(codes.values()) == {0}
    late = phase(played, "log-end" if last_good_phase == "job-start" else "post-restart")
    assert late.lines[-1].endswith("cannot be run (No such file or directory); the backup goes on")


def test_one_without_an_interpreters_line_runs_as_it_did_before(
    node_without_daemon: NodeUnderTest, chained: Path
) -> None:
    """Perl's exec, like execvp(3), hands such a file to /bin/sh; so Proxmox ran it."""
    write(chained, 'echo "plain $1"\ntest "$1" != job-end\n')
    node_without_daemon.start_daemon()
    played = play(node_without_daemon.run())
    assert "plain job-init" in played.calls[0].lines
    assert phase(played, "job-end").exit_code == 1


def test_a_path_with_blanks_is_one_path(node_without_daemon: NodeUnderTest) -> None:
    write(node_without_daemon.root / "my own chain", "#!/bin/sh\necho it ran\n")
    node_without_daemon.configure('window: {open: ["00:00-24:00"]}\nchain: /my own chain\n')
    node_without_daemon.start_daemon()
    assert "it ran" in play(node_without_daemon.run()).calls[0].lines


def test_signals_descriptors_and_group_are_those_of_a_script_that_vzdump_calls_itself(
    node_without_daemon: NodeUnderTest, chained: Path
) -> None:
    """Python ignores SIGPIPE for itself and the hook has an alarm: neither may reach the script."""
    write(
        chained,
        "#!/bin/sh\ngrep -E 'Sig(Ign|Blk|Pnd)|ShdPnd' /proc/self/status\nls /proc/self/fd\nreadlink /proc/self/fd/0\n"
        "cut -d' ' -f5 /proc/$$/stat\numask\n",
    )
    node_without_daemon.start_daemon()
    by_us = node_without_daemon.run()
    directly = replace(by_us, hook=str(chained))
    ours, bare = play(by_us), play(directly)
    for through_us, without_us in zip(ours.calls, bare.calls, strict=True):
        its, own = [line for line in through_us.lines if not line.startswith("pvehook: ")], list(without_us.lines)
        its = its[-len(own) :]
        # The last line but one is the process group: vzdump's, and so the same in all phases.
        assert its.pop(-2) == ours.calls[0].lines[-2]
        assert own.pop(-2) == bare.calls[0].lines[-2]
        assert its == own


def test_no_alarm_of_ours_waits_for_it(node_without_daemon: NodeUnderTest, chained: Path) -> None:
    """An alarm outlives execve and would kill it in the middle of its work."""
    write(chained, f"#!{sys.executable} -IS\nimport signal\nprint(signal.getitimer(signal.ITIMER_REAL))\n")
    node_without_daemon.start_daemon()
    assert play(node_without_daemon.run()).calls[0].lines == ("(0.0, 0.0)",)
