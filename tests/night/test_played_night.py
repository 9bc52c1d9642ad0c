"""Nights that the real daemon has seen, as `pvehook night` tells them."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from pvehook.config.in_force import Configuration
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.night.night import run_night
from pvehook.night.standings import standings_beside
from pvehook.night.summary import running_now
from pvehook.records.history import history_file
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from tests.node_under_test import NodeUnderTest


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def night(node: Node, now: str) -> str:
    at = datetime.fromisoformat(now)
    path, out = history_file(node), io.StringIO()
    in_force = Configuration(node, TimelyReader(), None, remembers=False).now()
    assert run_night(
        path,
        out,
        at,
        lambda turns: standings_beside(path, turns.nodes, node, in_force, at.timestamp()),
        running=running_now(node),
    ) == 0  # fmt: skip
    return out.getvalue()


def guests_in_a_job(node: NodeUnderTest, *vmids: int) -> None:
    (node.root / "etc/pve/qemu-server").mkdir(parents=True, exist_ok=True)
    for vmid in vmids:
        (node.root / f"etc/pve/qemu-server/{vmid}.conf").write_text(f"name: vm{vmid}\n")
    (node.root / "etc/pve/jobs.cfg").write_text("vzdump: nightly\n\tschedule 05:00\n\tall 1\n\tstorage nas\n")


def test_a_night_with_one_that_failed_and_one_that_was_refused(node: NodeUnderTest) -> None:
    node.configure('window: {open: ["02:00-05:00"], exempt: {guests: [101, 102]}}\n')
    node.set_clock("2026-11-24T05:12:07+00:00")
    guests_in_a_job(node, 101, 103, 900)
    played = play(node.run(Guest(101, name="web"), Guest(102, exists=False), Guest(103, name="db")))
    lines = night(node.node, "2026-11-24T08:00:00+00:00").splitlines()
    assert lines[1].startswith("1 of 3 guests was backed up, 1 failed, 1 refused, from 05:12 to 05:12")
    at = lines.index("not backed up")
    assert lines[at : at + 5] == [
        "not backed up",
        "failed       guest 102 (05:12)",
        "             unable to find VM '102'",
        "refused      VM 103 vm103 (05:12)",
        "             at 05:12 the backup window was closed (outside 02:00-05:00)",
    ]
    at = lines.index("what to do")
    assert lines[at : at + 4] == [
        "what to do",
        "1. how the backup of guest 102 ended is in the task log:",
        f"   pvenode task log {played.upid}",
        "2. VM 103 vm103 was refused; to back it up before the next run:",
    ]
    assert [line.split()[1] for line in lines[lines.index("last good backup, the oldest first") + 1 :]] == [
        *("103", "900", "101")
    ]


def test_a_night_that_goes_on(node: NodeUnderTest) -> None:
    with Player(node.run(Guest(101), Guest(102), pauses=("archive 102",))) as player:
        player.wait_for("archive 102")
        now = datetime.now(UTC).isoformat()
        assert "A backup is running now (guest 102)" in night(node.node, now)
        player.go_on()
        player.finish()
    assert "running" not in night(node.node, now)
