"""`--fix` and `--unfix`: what they change, what they keep, and where they keep their hands off."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from pvehook.doctor.checks import Found
from pvehook.doctor.finding import Check, Command, Finding, Step, Write
from pvehook.doctor.fixes import Report, fix, run_on, unfix
from pvehook.errors import NodeError
from pvehook.host.node import Node

CONF = "/etc/vzdump.conf"
JOBS = "/etc/pve/jobs.cfg"
TWO_JOBS = """vzdump: nightly
\tschedule 02:30
\tscript /root/own.sh

vzdump: weekly
\tscript /root/own.sh
"""
NOW_S = 1795312800.5


class Commands:
    """A node that knows `drop FILE TEXT` and `add FILE AFTER TEXT`, and what was run on it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ran: list[str] = []
        self.fails = ""
        """Commands with this text."""

    def __call__(self, command: Sequence[str]) -> None:
        if self.fails and self.fails in command:
            raise NodeError(f"`{command[0]}` ended with 1: no")
        self.ran.append(command[0])
        verb, path, *texts = command
        file = Path(self.node.path(path))
        old, new = (texts[0], "") if verb == "drop" else (texts[0], texts[0] + texts[1])
        file.write_text(file.read_text().replace(old, new, 1))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    for path, text in ((CONF, "# mine\nionice: 7\n"), (JOBS, TWO_JOBS)):
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text)
    return Node(str(tmp_path))


def found(*steps: Step, subject: str = "node", vmid: int | None = None) -> Found:
    check = Check[None]("PVH-109", "A title", lambda _: ())
    return Found(check, Finding(subject, "warning", "seen", ("do it",), steps, vmid))


def read(node: Node, path: str) -> str:
    return Path(node.path(path)).read_text()


def said(report: Report) -> str:
    return "\n".join(report.lines)


IONICE = Write(CONF, "# mine\nionice: 7\n", "# mine\nionice: 8\n")
WITHOUT_SCRIPT = Command(
    ("drop", JOBS, "\tscript /root/own.sh\n"),
    ("add", JOBS, "\tschedule 02:30\n", "\tscript /root/own.sh\n"),
    JOBS,
    key="script",
    section="vzdump: nightly",
)


def test_the_old_value_is_said_and_kept_and_comes_back(node: Node) -> None:
    Path(node.path(CONF)).chmod(0o640)
    report = fix(node, found(IONICE), Commands(node), NOW_S)
    assert report.lines == (
        "PVH-109 node: fixed",
        "  /etc/vzdump.conf",
        "    - ionice: 7",
        "    + ionice: 8",
        "  to take it back: pvehook doctor --unfix PVH-109",
    )
    assert read(node, CONF) == "# mine\nionice: 8\n"
    assert stat.S_IMODE(os.stat(node.path(CONF)).st_mode) == 0o640
    (record,) = Path(node.path("/var/lib/pvehook/fixes")).iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert said(back) == "PVH-109 node: taken back\n  wrote /etc/vzdump.conf as it was before"
    assert read(node, CONF) == "# mine\nionice: 7\n"
    assert unfix(node, "PVH-109", (), Commands(node)) == []


def test_a_file_that_was_not_there_goes_again(node: Node) -> None:
    rules = "/etc/udev/rules.d/60-pvehook.rules"
    os.makedirs(node.path("/etc/udev/rules.d"))
    assert fix(node, found(Write(rules, None, "ACTION\n")), Commands(node), NOW_S).is_done
    assert stat.S_IMODE(os.stat(node.path(rules)).st_mode) == 0o644
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert "removed /etc/udev/rules.d/60-pvehook.rules" in said(back)
    assert not os.path.exists(node.path(rules))


def test_a_file_that_changed_after_the_check_is_left_alone(node: Node) -> None:
    Path(node.path(CONF)).write_text("ionice: 5\n")
    report = fix(node, found(IONICE), Commands(node), NOW_S)
    assert not report.is_done
    assert said(report) == "PVH-109 node: NOT FIXED: /etc/vzdump.conf was changed after it was checked; run this again"
    assert read(node, CONF) == "ionice: 5\n"
    assert unfix(node, "PVH-109", (), Commands(node)) == []


def test_a_file_that_changed_after_the_fix_is_not_taken_back(node: Node) -> None:
    fix(node, found(IONICE), Commands(node), NOW_S)
    Path(node.path(CONF)).write_text("# mine\nionice: 8\nbwlimit: 1000\n")
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert not back.is_done
    assert "PVH-109 node: NOT TAKEN BACK: /etc/vzdump.conf was changed since" in back.lines
    assert read(node, CONF) == "# mine\nionice: 8\nbwlimit: 1000\n"
    Path(node.path(CONF)).write_text("# mine\nionice: 7\n")
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert said(back) == "PVH-109 node: taken back\n  /etc/vzdump.conf is as it was before already"


def test_a_symbolic_link_is_not_replaced(node: Node) -> None:
    os.rename(node.path(CONF), node.path("/etc/real.conf"))
    os.symlink("real.conf", node.path(CONF))
    report = fix(node, found(Write(CONF, "real.conf", "x")), Commands(node), NOW_S)
    assert "NOT FIXED: /etc/vzdump.conf is a symbolic link" in said(report)
    assert read(node, "/etc/real.conf") == "# mine\nionice: 7\n"


def test_a_command_is_taken_back_where_only_other_lines_changed_since(node: Node) -> None:
    commands = Commands(node)
    report = fix(node, found(WITHOUT_SCRIPT, subject="job nightly"), commands, NOW_S)
    assert "    - script /root/own.sh" in report.lines
    assert "  /etc/pve/jobs.cfg (vzdump: nightly)" in report.lines
    assert read(node, JOBS).count("own.sh") == 1
    jobs = Path(node.path(JOBS))
    jobs.write_text(jobs.read_text().replace("weekly\n", "weekly\n\tall 1\n"))
    (back,) = unfix(node, "PVH-109", (), commands)
    assert back.is_done
    assert commands.ran == ["drop", "add"]
    assert read(node, JOBS) == TWO_JOBS.replace("weekly\n", "weekly\n\tall 1\n")


def test_a_command_is_not_taken_back_where_its_own_line_changed_since(node: Node) -> None:
    commands = Commands(node)
    fix(node, found(WITHOUT_SCRIPT, subject="job nightly"), commands, NOW_S)
    jobs = Path(node.path(JOBS))
    jobs.write_text(jobs.read_text().replace("schedule 02:30\n", "schedule 02:30\n\tscript /root/new.sh\n"))
    (back,) = unfix(node, "PVH-109", (), commands)
    assert "NOT TAKEN BACK: script in /etc/pve/jobs.cfg was changed since" in said(back)
    assert "by hand: add /etc/pve/jobs.cfg" in said(back)
    assert commands.ran == ["drop"]


def test_of_a_guest_the_current_configuration_counts_and_no_snapshot(node: Node) -> None:
    path = "/etc/pve/qemu-server/101.conf"
    os.makedirs(os.path.dirname(node.path(path)))
    Path(node.path(path)).write_text("name: web\n\n[before]\nagent: 0\n")
    agent = Command(("add", path, "name: web\n", "agent: 1\n"), ("drop", path, "agent: 1\n"), path, key="agent")
    report = fix(node, found(agent, subject="VM 101 web", vmid=101), Commands(node), NOW_S)
    assert report.lines[3:] == ("    + agent: 1", "  to take it back: pvehook doctor --unfix PVH-109 --vmid 101")
    assert unfix(node, "PVH-109", (102,), Commands(node)) == []
    (back,) = unfix(node, "PVH-109", (101,), Commands(node))
    assert back.is_done
    assert read(node, path) == "name: web\n\n[before]\nagent: 0\n"


def test_a_change_that_waits_for_the_guests_restart_is_taken_back_before_and_after_it(node: Node) -> None:
    path = "/etc/pve/qemu-server/101.conf"
    os.makedirs(os.path.dirname(node.path(path)))
    running, pending = "agent: 0\nname: web\n", "\n[PENDING]\nagent: 1\n"
    step = Command(("add", path, running, pending), ("drop", path, pending), path, key="agent")
    for restarted in (None, "agent: 1\nname: web\n"):
        Path(node.path(path)).write_text(running)
        report = fix(node, found(step, subject="VM 101 web", vmid=101), Commands(node), NOW_S)
        assert report.lines[3:5] == ("    - agent: 0", "    + agent: 1")
        if restarted is not None:
            Path(node.path(path)).write_text(restarted)
        (back,) = unfix(node, "PVH-109", (), Commands(node))
        assert back.is_done
    Path(node.path(path)).write_text(running)
    fix(node, found(step, subject="VM 101 web", vmid=101), Commands(node), NOW_S)
    Path(node.path(path)).write_text("agent: 1,freeze-fs=0\nname: web\n")
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert "agent in /etc/pve/qemu-server/101.conf was changed since" in said(back)


def test_a_command_that_changes_nothing_is_not_a_fix(node: Node) -> None:
    idle = Command(("drop", JOBS, "no such text"), ("drop", JOBS, "no such text"), JOBS, "script", "vzdump: nightly")
    report = fix(node, found(idle), Commands(node), NOW_S)
    assert f"NOT FIXED: `drop {JOBS} 'no such text'` has changed nothing in {JOBS}" in said(report)
    assert unfix(node, "PVH-109", (), Commands(node)) == []


def test_a_finding_is_fixed_as_a_whole_or_not_at_all(node: Node) -> None:
    commands = Commands(node)
    commands.fails = JOBS
    report = fix(node, found(IONICE, WITHOUT_SCRIPT), commands, NOW_S)
    assert report.lines == (
        "PVH-109 node: NOT FIXED: `drop` ended with 1: no",
        "  taken back: wrote /etc/vzdump.conf as it was before",
    )
    assert read(node, CONF) == "# mine\nionice: 7\n"
    assert unfix(node, "PVH-109", (), commands) == []


def test_the_newest_fix_is_taken_back_first(node: Node) -> None:
    fix(node, found(IONICE), Commands(node), NOW_S)
    again = Write(CONF, "# mine\nionice: 8\n", "# mine\nionice: 8\nbwlimit: 1\n")
    fix(node, found(again, subject="more"), Commands(node), NOW_S)
    assert [report.lines[0] for report in unfix(node, "PVH-109", (), Commands(node))] == [
        "PVH-109 more: taken back",
        "PVH-109 node: taken back",
    ]
    assert read(node, CONF) == "# mine\nionice: 7\n"


def test_what_a_killed_fix_left_is_not_guessed(node: Node) -> None:
    class Killed(BaseException):
        pass

    def run(command: Sequence[str]) -> None:
        Commands(node)(command)
        raise Killed

    with pytest.raises(Killed):
        fix(node, found(WITHOUT_SCRIPT), run, NOW_S)
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert "pvehook was stopped while it changed script in /etc/pve/jobs.cfg" in said(back)
    Path(node.path(JOBS)).write_text(TWO_JOBS)
    assert [report.is_done for report in unfix(node, "PVH-109", (), Commands(node))] == [True]


def test_a_damaged_record_is_reported(node: Node) -> None:
    fix(node, found(IONICE), Commands(node), NOW_S)
    (record,) = Path(node.path("/var/lib/pvehook/fixes")).iterdir()
    record.write_text("{")
    (back,) = unfix(node, "PVH-109", (), Commands(node))
    assert not back.is_done
    assert f"/var/lib/pvehook/fixes/{record.name}: cannot be read" in said(back)


def test_what_is_right_already_leaves_no_record(node: Node) -> None:
    text = read(node, CONF)
    report = fix(node, found(Write(CONF, text, text)), Commands(node), NOW_S)
    assert said(report) == "PVH-109 node: it is as it should be already"
    assert unfix(node, "PVH-109", (), Commands(node)) == []


def test_in_a_tree_no_command_of_this_machine_is_run(node: Node) -> None:
    report = fix(node, found(WITHOUT_SCRIPT), run_on(node), NOW_S)
    assert not report.is_done
    assert "would change this machine" in said(report)
    assert read(node, JOBS) == TWO_JOBS
