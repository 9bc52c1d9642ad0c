"""The whole list of each node, as an administrator reads it.

    .venv/bin/python -m pytest -q tests/doctor/test_nodes.py --update-golden      writes tests/doctor/data/*.txt anew
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pvehook.doctor.checks import Diagnosis, name_of
from pvehook.doctor.doctor_terminal import doctor_lines
from pvehook.report.terminal_style import TerminalStyle
from tests.doctor.fixture_node import NOW, FixtureNode
from tests.doctor.fixture_nodes import clean_node, first_node, ids, pve8_node

DATA = Path(__file__).parent / "data"
NODES = {"clean": clean_node, "first": first_node, "pve8": pve8_node}
COLUMNS = TerminalStyle(80, unicode=False, colour=False)

BuildNode = Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[FixtureNode]]


@pytest.mark.parametrize("name", NODES)
def test_the_list_of_a_node(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    build: BuildNode = NODES[name]
    with build(tmp_path, monkeypatch) as node:
        text = "\n".join(doctor_lines(node.diagnose(), name_of(node.node), NOW, COLUMNS)) + "\n"
    assert str(tmp_path) not in text
    kept = DATA / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        kept.write_text(text)
    assert text == kept.read_text(), "if that is as it should be: --update-golden"


def test_a_clean_node_has_nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clean_node(tmp_path, monkeypatch) as node:
        assert node.diagnose() == Diagnosis((), ())


@pytest.mark.parametrize("name", NODES)
def test_looking_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own files beside the history are its readers' too."""

    def files() -> dict[Path, tuple[bytes, float]]:
        regular = [each for each in tmp_path.rglob("*") if each.is_file() and not each.is_symlink()]
        own = [each for each in regular if not each.name.startswith("history.db-")]
        return {each: (each.read_bytes(), each.stat().st_mtime) for each in own}

    build: BuildNode = NODES[name]
    with build(tmp_path, monkeypatch) as node:
        before = files()
        node.diagnose()
        assert files() == before


def test_an_etc_pve_that_hangs_costs_only_what_it_would_have_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with first_node(tmp_path, monkeypatch) as node:
        node.write("/etc/vzdump.conf", "")
        node.remove("/etc/pve/jobs.cfg")
        hanging = tmp_path / "etc/pve/jobs.cfg"
        os.mkfifo(hanging)
        try:
            seen = node.diagnose()
        finally:
            os.close(os.open(hanging, os.O_RDWR))  # lets go whoever waits
    assert {"PVH-101", "PVH-406", "PVH-601"} <= set(ids(seen))
    assert [text for text in seen.not_checked if text.startswith(("vzdump: ", "the scripts of jobs: "))] == [
        f"{what}: {hanging} did not answer within 5 s" for what in ("the scripts of jobs", "vzdump")
    ]
