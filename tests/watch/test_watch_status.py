"""The file in which the daemon says who is watched and who suffers: whole, or absent, broken and stale told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.host.node import Node
from pvehook.watch.watch_status import (
    FILE_LIMIT_BYTES,
    MOST_GUESTS,
    STALE_AFTER_S,
    Stale,
    WatchedGuest,
    WatchStatus,
    read_status,
    remove_status,
    status_of,
    write_status,
)

NOW_S = 81_213.5
DB = WatchedGuest(105, "db", "qemu", "shared", "requests", True, 12.5, 64.0, 412.0, 1310.0, 35.0)
MAIL = WatchedGuest(110, None, "lxc", "unknown", "pressure", slowed_s=3.0, put_aside="a container does not steer")
HUNG = WatchedGuest(111, "hung", "qemu", "elsewhere", None, not_watched="its monitor does not answer")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(str(tmp_path))


def written(node: Node, *guests: WatchedGuest, steers: int | None = None) -> WatchStatus:
    status = status_of(NOW_S, "UPID:pve:1", 101, steers, guests)
    assert write_status(node, status) is None
    return status


def path(node: Node) -> Path:
    return Path(node.path("/run/pvehook/watch.json"))


def test_what_was_written_comes_back_the_worst_first(node: Node) -> None:
    status = written(node, HUNG, MAIL, DB, steers=105)
    assert read_status(node, NOW_S + 1) == status
    assert [guest.vmid for guest in status.guests] == [105, 110, 111]
    assert (status.counts.guests, status.counts.suffer, status.counts.slowed, status.counts.not_watched) == (3, 1, 2, 1)


def test_who_is_worst_off_now_comes_before_who_suffered_longer(node: Node) -> None:
    worse = DB._replace(vmid=106, stalled_s=0.0, mean_ms=500.0, target_ms=10.0)
    over = DB._replace(vmid=107, suffers=False, stalled_s=100.0)
    status = written(node, over, DB, worse)
    assert [guest.vmid for guest in status.guests] == [106, 105, 107]


def test_without_a_backup_nobody_is_watched(node: Node) -> None:
    assert read_status(node, NOW_S) == Absent("no guest is watched")
    written(node, DB)
    remove_status(node)
    assert isinstance(read_status(node, NOW_S), Absent)


@pytest.mark.parametrize("age_s", [STALE_AFTER_S + 0.1, 86_400.0, -1.0])
def test_what_a_killed_daemon_left_is_not_taken_for_now(node: Node, age_s: float) -> None:
    written(node, DB)
    found = read_status(node, NOW_S + age_s)
    assert isinstance(found, Stale)
    assert f"was written {age_s:.0f} s ago" in found.why


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"written_s": 1}',
        '{"v": 2}',
        "[" * 100_000,
        "\udcff",
        '{"written_s": NaN}',
        '{"written_s": 1e999}',
        '{"a": 1}' + " " * FILE_LIMIT_BYTES,
    ],
    ids=range(11),
)
def test_a_damaged_file_is_broken_with_the_reason(node: Node, text: str) -> None:
    path(node).parent.mkdir(parents=True)
    path(node).write_bytes(text.encode("utf-8", "surrogateescape"))
    found = read_status(node, NOW_S)
    assert isinstance(found, Broken)
    assert "watch.json" in found.why


@pytest.mark.parametrize(("key", "value"), [("vmid", "105"), ("exposure", "maybe"), ("suffers", 1), ("mean_ms", "9")])
def test_a_guest_of_another_layout_is_broken(node: Node, key: str, value: object) -> None:
    written(node, DB)
    body = json.loads(path(node).read_text())
    body["guests"][0][key] = value
    path(node).write_text(json.dumps(body))
    assert isinstance(read_status(node, NOW_S), Broken)


def test_a_file_that_cannot_be_written_is_a_reason_and_no_error(node: Node) -> None:
    Path(node.path("/run")).mkdir()
    Path(node.path("/run/pvehook")).write_text("in the way")
    assert "watch.json cannot be written" in (write_status(node, status_of(NOW_S, "UPID:", 101, None, ())) or "")


def test_a_figure_that_is_no_number_is_not_written(node: Node) -> None:
    status = status_of(NOW_S, "UPID:", 101, None, (DB._replace(mean_ms=float("nan")),))
    assert "watch.json cannot be written" in (write_status(node, status) or "")
    assert isinstance(read_status(node, NOW_S), Absent)


def test_of_many_guests_the_worst_are_kept_and_all_are_counted(node: Node) -> None:
    long_text = "\U0001f40c" * 5000
    guests = [
        DB._replace(vmid=200 + i, name=long_text, stalled_s=float(i), put_aside=long_text, not_watched=long_text)
        for i in range(3 * MOST_GUESTS)
    ]
    status = written(node, *guests)
    assert read_status(node, NOW_S) == status
    assert (len(status.guests), status.counts.guests, status.counts.suffer) == (MOST_GUESTS, 300, 300)
    assert status.guests[0].vmid == 499
    assert path(node).stat().st_size < FILE_LIMIT_BYTES / 4


def test_a_name_cannot_break_the_file_or_a_terminal(node: Node) -> None:
    status = written(node, DB._replace(name="a\x1b[31m\ud800\n"))
    assert status.guests[0].name == r"a\x1b[31m\ud800\n"
    assert read_status(node, NOW_S) == status
