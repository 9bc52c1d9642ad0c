"""`pvehook governor status`: who is watched, who suffers and who steers, as an administrator reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvehook.cli import main
from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.watch.watch_status import WatchedGuest, status_of, write_status

DB = WatchedGuest(105, "db", "qemu", "shared", "requests", True, 12.2, 64.0, 412.3, 1310.0, 35.0)
MAIL = WatchedGuest(
    110, "mail", "lxc", "shared", "pressure", True, 4.0, 31.0, put_aside="a container's pressure does not steer"
)
FILES = WatchedGuest(107, "files", "qemu", "unknown", "block-devices", slowed_s=3.2, mean_ms=12.4, target_ms=40.0)
QUIET = WatchedGuest(120, "quiet", "qemu", "elsewhere", "block-devices")
HUNG = WatchedGuest(111, "hung", "qemu", "shared", None, not_watched="its monitor does not answer")


class Status:
    """The command on a node on which the daemon has said so."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.node = Node(str(root))
        self._capsys = capsys

    def write(self, *guests: WatchedGuest, steers: int | None = None, age_s: float = 0.0) -> None:
        written_s = SystemClock().steady_s() - age_s
        assert write_status(self.node, status_of(written_s, "UPID:pve:1", 101, steers, guests)) is None

    def of(self, *guests: WatchedGuest, steers: int | None = None) -> list[str]:
        """The lines below those about the backups."""
        self.write(*guests, steers=steers)
        return self.shown().splitlines()[3:]

    def shown(self, *arguments: str) -> str:
        assert main(["governor", "status", "--root", self.node.root, *arguments]) == 0
        return self._capsys.readouterr().out


@pytest.fixture
def status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Status:
    return Status(tmp_path, capsys)


def test_it_says_who_is_beside_the_backup_who_suffers_and_who_steers(status: Status) -> None:
    assert status.of(QUIET, HUNG, FILES, MAIL, DB, steers=105) == [
        "beside guest 101's backup: 5 guests, 3 on its disks, 1 perhaps, 1 elsewhere",
        "2 suffer now; the backup is steered by VM 105 (db)",
        "",
        "guest                  mean ms  p99 ms  target  stalled  slowed",
        "VM 105 (db)                412    1310      35      12s    1m04  steers",
        "CT 110 (mail)                -       -       -       4s     31s  suffers, aside",
        "VM 107 (files)              12       -      40       0s      3s",
        "",
        "aside, a container's pressure does not steer: CT 110",
        "not watched, its monitor does not answer: VM 111",
    ]


def test_a_quiet_night_is_two_lines(status: Status) -> None:
    assert status.of(QUIET) == ["beside guest 101's backup: 1 guest, 1 elsewhere", "none suffers now"]
    assert status.of() == ["beside guest 101's backup: no other guest runs"]


def test_of_many_guests_the_worst_are_shown_in_80_columns(status: Status) -> None:
    guests = [
        MAIL._replace(vmid=1_000_000 + i, name="n" * 90, stalled_s=1e5 + i, slowed_s=2e5, mean_ms=1e6, p99_ms=1e6)
        for i in range(300)
    ]
    lines = status.of(*guests, steers=1_000_000)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("CT ") for line in lines) == 15
    assert "and 285 more that suffered less" in lines
    assert len(lines) < 30


def test_guests_that_share_a_reason_share_its_line(status: Status) -> None:
    lines = status.of(*(HUNG._replace(vmid=111 + i) for i in range(3)))
    assert lines[-1] == "not watched, its monitor does not answer: VM 111, VM 112, VM 113"


def test_each_with_another_reason_does_not_fill_the_screen(status: Status) -> None:
    lines = status.of(*(HUNG._replace(vmid=111 + i, not_watched=f"reason {i}") for i in range(9)))
    assert sum("not watched, reason" in line for line in lines) == 5
    assert lines[-1] == "and 4 more reasons; --json has them all"


def test_what_a_killed_daemon_left_is_not_shown_as_now(status: Status) -> None:
    status.write(DB, age_s=600.0)
    shown = " ".join(status.shown().split())
    assert "who is watched is not known" in shown
    assert "written 600 s ago: the daemon has ended or hangs" in shown
    assert "VM 105" not in shown


def test_a_damaged_file_is_named(status: Status) -> None:
    status.write(DB)
    Path(status.node.path("/run/pvehook/watch.json")).write_text("{")
    assert "watch.json cannot be read" in " ".join(status.shown().split())
    assert "broken" in json.loads(status.shown("--json"))["watch"]


def test_json_has_all_of_it(status: Status) -> None:
    status.write(DB, QUIET, steers=105)
    watch = json.loads(status.shown("--json"))["watch"]
    assert (watch["in_backup"], watch["steers"], watch["counts"]["shared"]) == (101, 105, 1)
    assert [guest["vmid"] for guest in watch["guests"]] == [105, 120]
    assert watch["guests"][0]["p99_ms"] == 1310.0
    status.write(DB, age_s=600.0)
    assert "600 s ago" in json.loads(status.shown("--json"))["watch"]["stale"]
