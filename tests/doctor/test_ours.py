"""PVH-1xx on whole nodes: each check fires where it should, and is silent where it should not."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pvehook.cli import main
from pvehook.config.in_force import Configuration
from pvehook.doctor import ours_facts
from pvehook.doctor.checks import Diagnosis, diagnose
from pvehook.doctor.ours_checks import GROUP
from pvehook.host.node import HOOK
from pvehook.host.timely_files import TimelyReader
from pvehook.records.history_writing import append_attempts
from tests.doctor.fixture_node import BOOTED_S, NOW, FixtureNode
from tests.doctor.fixture_nodes import clean_node, evidence, ids
from tests.records.backups import attempt

JOBS = "/etc/pve/jobs.cfg"
CONF = "/etc/vzdump.conf"
OTHER = "/usr/local/bin/other-tool"
HISTORY = "/var/lib/pvehook/history.db"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FixtureNode]:
    with clean_node(tmp_path, monkeypatch) as node:
        yield node


def ours(node: FixtureNode) -> Diagnosis:
    """Of this group alone."""
    in_force = Configuration(node.node, TimelyReader(), None, remembers=False).now()
    return diagnose(node.node, in_force, NOW, groups=(GROUP,))


def fixed(node: FixtureNode, check: str) -> int:
    return main(["doctor", "--root", str(node.root), "--fix", check])


def unfixed(node: FixtureNode, check: str) -> int:
    return main(["doctor", "--root", str(node.root), "--unfix", check])


def test_an_installation_as_the_installer_leaves_it_has_no_findings(node: FixtureNode) -> None:
    assert ours(node) == Diagnosis((), ())


def test_without_our_lines_vzdump_does_not_call_us_and_they_can_be_set(node: FixtureNode) -> None:
    node.write(CONF, "bwlimit: 1000")
    seen = ours(node)
    assert ids(seen) == ["PVH-101", "PVH-109"]
    assert "there is no `script:` line" in evidence(seen, "PVH-101")
    assert "there is no `ionice:` line, so it is 7" in evidence(seen, "PVH-109")
    assert fixed(node, "PVH-101") == fixed(node, "PVH-109") == 0
    assert node.read(CONF) == f"bwlimit: 1000\nscript: {HOOK}\nionice: 8\n"
    assert ids(ours(node)) == []
    assert unfixed(node, "PVH-101") == 2, "changed since, by the second fix"
    assert unfixed(node, "PVH-109") == unfixed(node, "PVH-101") == 0
    assert node.read(CONF) == "bwlimit: 1000"


def test_a_node_without_the_file_gets_one_and_loses_it_again(node: FixtureNode) -> None:
    node.remove(CONF)
    assert "PVH-101" in ids(ours(node))
    assert fixed(node, "PVH-101") == 0
    assert node.read(CONF) == f"script: {HOOK}\n"
    assert unfixed(node, "PVH-101") == 0
    assert not os.path.exists(node.node.path(CONF))


def test_another_tools_script_is_chained_by_the_fix(node: FixtureNode) -> None:
    node.program(OTHER)
    node.replace(CONF, HOOK, OTHER)
    node.write("/etc/pvehook.yaml", "governor: {mode: off}")
    assert evidence(ours(node), "PVH-101").startswith(f"{CONF}: `script:` names {OTHER}, which does not call pvehook")
    assert fixed(node, "PVH-101") == 0
    assert node.read("/etc/pvehook.yaml") == f"governor: {{mode: off}}\nchain: '{OTHER}'\n"
    assert ids(ours(node)) == []
    assert unfixed(node, "PVH-101") == 0
    assert node.read("/etc/pvehook.yaml") == "governor: {mode: off}"
    assert OTHER in node.read(CONF)


@pytest.mark.parametrize("yaml", ["chain: /root/third\n", "{governor: {mode: off}}\n", "governor: {mode: perhaps}\n"])
def test_where_it_cannot_be_chained_by_adding_a_line_it_is_left_to_a_human(
    node: FixtureNode, yaml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node.program(OTHER)
    node.program("/root/third")
    node.replace(CONF, HOOK, OTHER)
    node.write("/etc/pvehook.yaml", yaml)
    assert "PVH-101" in ids(ours(node))
    assert fixed(node, "PVH-101") == 2
    assert "not fixed, this is for you to do:" in capsys.readouterr().out
    assert node.read("/etc/pvehook.yaml") == yaml
    assert OTHER in node.read(CONF)


def test_a_wrapper_that_calls_us_is_worth_a_note(node: FixtureNode) -> None:
    node.program(OTHER, f'#!/bin/sh\n{HOOK} "$@"\n')
    node.replace(CONF, HOOK, OTHER)
    seen = ours(node)
    assert ids(seen) == ["PVH-104"]
    assert seen.found[0].finding.severity == "note"


def test_a_link_to_our_hook_is_ours(node: FixtureNode) -> None:
    node.link("/etc/hook", node.node.path(HOOK))
    node.replace(CONF, HOOK, "/etc/hook")
    assert ids(ours(node)) == []


@pytest.mark.parametrize("script", [HOOK, OTHER])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_script_that_cannot_be_run_fails_every_backup(node: FixtureNode, script: str, is_there: bool) -> None:
    node.program(script)
    node.replace(CONF, HOOK, script)
    if is_there:
        (node.root / script[1:]).chmod(0o644)
    else:
        node.remove(script)
    seen = ours(node)
    assert ids(seen) == ["PVH-102"]
    assert ("is not executable" if is_there else "does not exist") in evidence(seen, "PVH-102")


def test_what_a_job_sets_itself_wins(node: FixtureNode) -> None:
    node.program(OTHER)
    node.write(
        JOBS,
        f"vzdump: own\n\tscript {OTHER}\n\tionice 5\n\nvzdump: off\n\tenabled 0\n\tscript {OTHER}\n\n"
        f"vzdump: elsewhere\n\tnode pve7\n\tscript {OTHER}\n\nvzdump: same\n\tscript {HOOK}\n\tionice 8\n\n"
        "vzdump: missing\n\tscript /root/gone\n",
    )
    node.write("/etc/pve/vzdump.cron", f"0 2 * * * root vzdump 101 --script {OTHER} --ionice 3\n")
    node.write("/etc/cron.d/backup", f"0 3 * * * root vzdump 102 --script '{OTHER}'\n")
    seen = ours(node)
    assert ids(seen) == ["PVH-102", *3 * ["PVH-103"], *2 * ["PVH-110"]]
    assert [each.finding.subject for each in seen.found] == [
        "job missing",
        "/etc/cron.d/backup:1",
        "/etc/pve/vzdump.cron:1",
        "job own",
        "/etc/pve/vzdump.cron:1",
        "job own",
    ]
    of_job = next(each.finding for each in seen.found if each.finding.subject == "job own")
    assert of_job.remedy == ("pvesh set /cluster/backup/own --delete script",)
    assert next(each.finding for each in seen.found if each.finding.subject.startswith("/etc/cron")).steps == ()


def test_without_our_idle_class_the_ionice_is_the_administrators(node: FixtureNode) -> None:
    node.replace(CONF, "ionice: 8", "ionice: 4")
    node.replace(JOBS, "\tall 1", "\tall 1\n\tionice 3")
    assert ids(ours(node)) == ["PVH-109", "PVH-110"]
    node.write("/etc/pvehook.yaml", "io_priority: {mode: off}\n")
    assert ids(ours(node)) == []


@pytest.mark.parametrize(
    ("text", "severity", "words"),
    [
        (None, "error", "does not exist, and then every run fails"),
        ("#!/bin/sh\n", "error", "is not executable"),
        (f"#!/bin/sh\nexec {HOOK}\n", "warning", "calls pvehook's own hook"),
    ],
)
def test_a_chain_that_leads_nowhere_or_back(node: FixtureNode, text: str | None, severity: str, words: str) -> None:
    node.write("/etc/pvehook.yaml", "chain: /root/old.sh\n")
    if text is not None:
        node.write("/root/old.sh", text)
    seen = ours(node)
    assert ids(seen) == ["PVH-105"]
    assert seen.found[0].finding.severity == severity
    assert words in evidence(seen, "PVH-105")
    node.program("/root/old.sh")
    assert ids(ours(node)) == []


def test_a_socket_that_does_not_listen(node: FixtureNode) -> None:
    node.write("/proc/net/unix", "Num RefCount\n")
    assert "nothing listens" in evidence(ours(node), "PVH-106")
    node.remove("/usr/local/lib/systemd/system/pvehook.socket")
    assert "its unit is not there" in evidence(ours(node), "PVH-106")
    node.remove("/etc/systemd/system/sockets.target.wants/pvehook.socket")
    assert "is not enabled" in evidence(ours(node), "PVH-106")
    node.link("/etc/systemd/system/pvehook.socket", "/dev/null")
    assert "is masked" in evidence(ours(node), "PVH-106")


def test_notifications_that_nobody_takes_are_a_warning_where_they_are_wanted(node: FixtureNode) -> None:
    node.remove("/etc/systemd/system/sockets.target.wants/pvehook-notify.socket")
    assert "nobody is told of a night" in evidence(ours(node), "PVH-114")
    node.write("/etc/pvehook.yaml", "notify: off\n")
    assert ids(ours(node)) == []


def test_a_daemon_that_fails_again_and_again(node: FixtureNode) -> None:
    node.write("/run/pvehook/failures", "exit-code\n")
    assert ids(ours(node)) == []
    node.write("/run/pvehook/failures", "exit-code\nwatchdog\n")
    assert "failed 2 times in a row" in evidence(ours(node), "PVH-107")


def test_each_problem_of_the_configuration(node: FixtureNode) -> None:
    node.write("/etc/pvehook.yaml", "windw: {}\ngovernor: {mode: perhaps}\n")
    seen = ours(node)
    assert ids(seen) == ["PVH-108", "PVH-108"]
    assert "/etc/pvehook.yaml:1" in evidence(seen, "PVH-108")


def test_a_daemon_that_was_started_before_the_update(node: FixtureNode) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    node.write("/sys/fs/cgroup/system.slice/pvehook.service/cgroup.procs", "4711\n")
    node.write("/proc/4711/stat", f"4711 (python3) S 1 {'0 ' * 17}{3600 * ticks} 0\n")
    node.write("/proc/4711/cmdline", "/usr/bin/python3\0-I\0pvehook\0serve\0")
    assert ids(ours(node)) == []
    program = node.root / "usr/local/lib/pvehook/pvehook/__init__.py"
    os.utime(program, (BOOTED_S + 7200, BOOTED_S + 7200))
    seen = ours(node)
    assert ids(seen) == ["PVH-111"]
    assert "process 4711 runs since 2026-11-17" in evidence(seen, "PVH-111")


def test_a_history_that_can_be_read_and_written_is_no_finding(node: FixtureNode) -> None:
    append_attempts(node.node.path(HISTORY), [attempt()], now_s=NOW.timestamp())
    assert ids(ours(node)) == []


def test_an_older_history_is_brought_up_to_date_and_so_not_damaged(node: FixtureNode) -> None:
    with closing(sqlite3.connect(node.node.path(HISTORY))) as history:
        history.execute("CREATE TABLE nights (id INTEGER)")
        history.execute("PRAGMA user_version = 1")
    assert ids(ours(node)) == []


def test_a_damaged_history(node: FixtureNode) -> None:
    node.write(HISTORY, "this is no database, and long enough to be taken for one " * 10)
    node.write(f"{HISTORY}.newer", "")
    seen = ours(node)
    assert ids(seen) == ["PVH-113", "PVH-113"]
    assert "file is not a database" in evidence(seen, "PVH-113")


def test_a_history_that_cannot_be_written(node: FixtureNode) -> None:
    node.write(HISTORY, "")
    (node.root / HISTORY[1:]).chmod(0o400)
    assert "mode 400" in evidence(ours(node), "PVH-112")


def test_a_history_without_room(node: FixtureNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours_facts, "LEAST_FREE_BYTES", 1 << 60)
    assert "/var/lib/pvehook has " in evidence(ours(node), "PVH-112")


def test_what_cannot_be_read_is_said_and_no_finding(node: FixtureNode) -> None:
    node.remove(CONF)
    (node.root / CONF[1:]).mkdir()
    node.remove(JOBS)
    (node.root / JOBS[1:]).mkdir()
    node.remove("/proc/net/unix")
    seen = ours(node)
    assert ids(seen) == []
    assert [text.partition(":")[0] for text in seen.not_checked] == [
        "the script of vzdump.conf",
        "the scripts of jobs",
        "pvehook.socket",
        "pvehook-notify.socket",
    ]


def test_an_id_or_a_guest_that_is_not_there_is_an_error(
    node: FixtureNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fixed(node, "PVH-999") == 2
    assert "PVH-999 is no check" in capsys.readouterr().err
    assert main(["doctor", "--root", str(node.root), "--vmid", "999"]) == 2
    assert "guest 999 is not on this node" in capsys.readouterr().err
    assert fixed(node, "PVH-101") == unfixed(node, "PVH-101") == 0
    said = capsys.readouterr().out
    assert "PVH-101: nothing to fix" in said
    assert "PVH-101: nothing was fixed by pvehook" in said
