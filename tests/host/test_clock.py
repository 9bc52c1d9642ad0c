"""What time it is, and in which zone the node lives."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvehook.host.clock import RehearsalClock, SystemClock, at, local_zone
from pvehook.host.node import Node

ZONES = Path("/usr/share/zoneinfo")


def zone_name(root: Path) -> str:
    return str(at(SystemClock(), local_zone(Node(str(root)))).tzinfo)


@pytest.fixture
def localtime(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc/localtime"


@pytest.mark.parametrize("target", ["/usr/share/zoneinfo/Europe/Warsaw", "../usr/share/zoneinfo/Europe/Warsaw"])
def test_the_zone_is_named_by_the_link(tmp_path: Path, localtime: Path, target: str) -> None:
    localtime.symlink_to(target)
    assert zone_name(tmp_path) == "Europe/Warsaw"


def test_a_copied_zone_has_its_hours_but_no_name(tmp_path: Path, localtime: Path) -> None:
    if not (ZONES / "Europe/Warsaw").exists():
        pytest.skip("this system has no /usr/share/zoneinfo to copy from")
    shutil.copy(ZONES / "Europe/Warsaw", localtime)
    zone = local_zone(Node(str(tmp_path)))
    assert datetime(2026, 7, 1, tzinfo=zone).tzname() == "CEST"
    assert datetime(2026, 1, 1, tzinfo=zone).tzname() == "CET"


def test_without_a_zone_it_is_utc(tmp_path: Path) -> None:
    assert local_zone(Node(str(tmp_path))) is UTC


@pytest.mark.parametrize("content", [b"", b"Europe/Warsaw\n", b"TZif2", b"TZif2" + bytes(39), b"TZif" + b"\xff" * 60])
def test_a_broken_zone_is_utc_too(tmp_path: Path, localtime: Path, content: bytes) -> None:
    """It is asked in every phase: no state of this file may cost one."""
    localtime.write_bytes(content)
    assert local_zone(Node(str(tmp_path))) is UTC


@pytest.mark.parametrize("target", ["/nowhere", "/usr/share/zoneinfo/Mars/Base", "/usr/share/zoneinfo/../../passwd"])
def test_a_link_to_no_zone_is_utc(tmp_path: Path, localtime: Path, target: str) -> None:
    localtime.symlink_to(target)
    assert local_zone(Node(str(tmp_path))) is UTC


def test_now_is_an_instant_of_the_zone() -> None:
    before = time.time()
    now = at(SystemClock(), UTC)
    assert before <= now.timestamp() <= time.time()
    assert now.tzinfo is UTC


def test_the_rehearsals_clock_follows_its_file(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    clock = RehearsalClock(str(file))
    for offset_s in (0.0, 86_400.0, -3600.5):
        file.write_text(str(offset_s))
        before = time.time()
        assert before + offset_s <= clock.now_s() <= time.time() + offset_s


@pytest.mark.parametrize("content", ["", "soon", None])
def test_while_its_file_is_away_or_broken_the_last_number_counts(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "clock"
    file.write_text("1000000")
    clock = RehearsalClock(str(file))
    clock.now_s()
    if content is None:
        os.unlink(file)
    else:
        file.write_text(content)
    assert clock.now_s() - time.time() > 999_000


def test_the_rehearsals_clock_can_stand_still_and_go_on(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    clock = RehearsalClock(str(file))
    file.write_text("@1795373786.5\n")
    assert clock.now_s() == clock.now_s() == 1795373786.5
    file.write_text("@")  # broken: it goes on standing
    assert clock.now_s() == 1795373786.5
    assert clock.steady_s() == 1795373786.5
    file.write_text("@1795373786.5 1795373700.0\n")  # somebody has set it
    assert (clock.now_s(), clock.steady_s()) == (1795373786.5, 1795373700.0)
    file.write_text("0")
    assert abs(clock.now_s() - time.time()) < 60
    assert abs(clock.steady_s() - time.time()) < 60
