"""What `pvehook doctor` makes of its groups: order, deadlines, what failed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pvehook.cli import doctor, main
from pvehook.config.in_force import Configuration
from pvehook.doctor import checks
from pvehook.doctor.checks import Diagnosis, diagnose
from pvehook.doctor.doctor_terminal import doctor_lines
from pvehook.doctor.finding import Check, Finding, Group, Severity, Sources
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.report.terminal_style import TerminalStyle

NOW = datetime(2026, 11, 29, 10, 20, tzinfo=UTC)
PLAIN = TerminalStyle(80, unicode=False, colour=False)


def finding(subject: str, severity: Severity = "warning", **fields: Any) -> Finding:
    return Finding(subject, severity, fields.pop("evidence", "seen"), fields.pop("remedy", ("do it",)), **fields)


def group(
    name: str,
    *found: Finding,
    check: str = "PVH-901",
    gather: Callable[[Sources], Any] = lambda _: None,
    missing: tuple[str, ...] = (),
) -> Group[Any]:
    return Group(name, gather, lambda _: missing, (Check(check, f"Title of {check}", lambda _: found),))


def diagnosed(tmp_path: Path, *groups: Group[Any], vmids: tuple[int, ...] = (), patience_s: float = 8.0) -> Diagnosis:
    node = Node(str(tmp_path))
    in_force = Configuration(node, TimelyReader(), None, remembers=False).now()
    return diagnose(node, in_force, NOW, vmids, groups, patience_s)


def subjects(diagnosis: Diagnosis) -> list[str]:
    return [each.finding.subject for each in diagnosis.found]


def test_the_worst_comes_first_then_the_checks_order(tmp_path: Path) -> None:
    vms = [finding(f"VM {vmid}", vmid=vmid) for vmid in (1000, 101)]
    seen = diagnosed(
        tmp_path,
        group("b", *vms, finding("node", "error"), check="PVH-902"),
        group("a", finding("node", "note"), finding("nas"), check="PVH-901"),
    )
    assert [(each.check.id, each.finding.subject) for each in seen.found] == [
        ("PVH-902", "node"),
        ("PVH-901", "nas"),
        ("PVH-902", "VM 101"),
        ("PVH-902", "VM 1000"),
        ("PVH-901", "node"),
    ]


def test_a_guest_asked_for_is_all_that_is_shown(tmp_path: Path) -> None:
    of = group("guests", finding("VM 101", vmid=101), finding("VM 102", vmid=102), finding("node", "error"))
    seen = diagnosed(tmp_path, of, vmids=(101,))
    assert subjects(seen) == ["VM 101"]
    lines = doctor_lines(seen, "pve1", NOW, PLAIN)
    assert "left out: 2 findings about the node, its jobs, storages and other guests" in lines


def test_a_group_that_fails_costs_a_line(tmp_path: Path) -> None:
    def fail(sources: Sources) -> None:
        raise NodeError("/etc/pve/jobs.cfg did not answer within 5 s")

    def be_wrong(sources: Sources) -> None:
        raise KeyError("vmid")

    def check_wrongly(facts: object) -> Iterator[Finding]:
        yield finding("half")
        raise IndexError("of nothing")

    half = Group("half", lambda _: None, lambda _: (), (Check("PVH-903", "Half", check_wrongly),))
    good = group("good", finding("node"), missing=("VM 104: its agent did not answer",))
    seen = diagnosed(tmp_path, group("jobs", gather=fail), group("storage", gather=be_wrong), half, good)
    assert subjects(seen) == ["node", "half"]
    assert seen.not_checked == (
        "jobs: /etc/pve/jobs.cfg did not answer within 5 s",
        "storage: a fault of pvehook: KeyError('vmid')",
        "PVH-903 (Half): a fault of pvehook: IndexError('of nothing')",
        "VM 104: its agent did not answer",
    )


def test_a_group_that_does_not_come_back_is_left_behind(tmp_path: Path) -> None:
    comes_back = threading.Event()

    def hang(sources: Sources) -> None:
        comes_back.wait()

    seen = diagnosed(tmp_path, group("hangs", gather=hang), group("good", finding("node")), patience_s=0.2)
    comes_back.set()
    assert subjects(seen) == ["node"]
    assert seen.not_checked == ("hangs: no answer within 0.2 s",)


def test_where_nothing_could_be_read_nothing_is_said_to_be_fine(tmp_path: Path) -> None:
    def fail(sources: Sources) -> None:
        raise NodeError("no /proc")

    with pytest.raises(NodeError, match=r"nothing could be checked: host: no /proc"):
        diagnosed(tmp_path, group("host", gather=fail))


def test_findings_with_one_remedy_share_it(tmp_path: Path) -> None:
    same = [finding(f"VM {vmid}", vmid=vmid, evidence="huge pages always") for vmid in range(101, 114)]
    lines = doctor_lines(diagnosed(tmp_path, group("guests", *same)), "pve1", NOW, PLAIN)
    assert lines[:5] == [
        "pvehook: doctor of node pve1, 2026-11-29 10:20",
        "13 warnings",
        "",
        "WARNING PVH-901: Title of PVH-901",
        "  VM 101: huge pages always",
    ]
    assert lines.count("    -> do it") == 1
    assert "  and 3 more; --json has all" in lines


@pytest.mark.parametrize(
    ("severities", "code"),
    [((), 0), (("note",), 0), (("note", "warning"), 1), (("warning", "error"), 3)],
)
def test_the_exit_code_is_the_worst_findings(
    severities: tuple[Severity, ...],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = group("host", *(finding(f"node {each}", each) for each in severities))
    monkeypatch.setattr(checks, "GROUPS", (found,))
    assert main(["doctor", "--root", str(tmp_path)]) == code
    capsys.readouterr()
    assert main(["doctor", "--root", str(tmp_path), "--json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert [each["severity"] for each in said["findings"]] == sorted(severities, key=list(doctor.EXIT).index)
    assert said["not_checked"] == []
