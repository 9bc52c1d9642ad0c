"""The kernel's counters of one block device, as of 6.8 and as of before 5.5."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.latency import DiskCounters, RequestCounters
from pvehook.host.block_counters import completed_between, parse_block_stat, read_block_stat
from pvehook.host.node import Node
from pvehook.rules.latency import disks_between, sum_of

STAT = b"  1000  5  8000  2500  300  7  2400  900  2  3000  3500  40  0  80  10  12  36\n"


def test_requests_by_kind_and_those_in_flight() -> None:
    found = parse_block_stat("dm-3", STAT)
    assert found is not None
    assert found.in_flight == 2
    assert found.disk.name == "dm-3"
    assert found.disk.read == RequestCounters(1000, 8000 * 512, 2_500_000_000, None)
    assert found.disk.write == RequestCounters(300, 2400 * 512, 900_000_000, None)
    assert found.disk.flush == RequestCounters(12, 0, 36_000_000, None)


def test_an_older_kernel_does_not_count_flushes() -> None:
    found = parse_block_stat("sda", b" ".join(STAT.split()[:11]))
    assert found is not None
    assert (found.disk.read.operations, found.disk.flush.operations) == (1000, 0)


@pytest.mark.parametrize("text", [b"", b"1 2 3", b"1 2 x"])
def test_what_is_no_counters_is_a_device_that_is_gone(text: bytes) -> None:
    assert parse_block_stat("dm-3", text) is None


def test_it_is_read_from_sys(tmp_path: Path) -> None:
    node = Node(str(tmp_path))
    assert read_block_stat(node, "dm-3") == b""
    (tmp_path / "sys/class/block/dm-3").mkdir(parents=True)
    (tmp_path / "sys/class/block/dm-3/stat").write_bytes(STAT)
    assert read_block_stat(node, "dm-3") == STAT


def test_what_completed_between_two_readings_is_what_the_slower_way_tells() -> None:
    before = [counters("dm-3", STAT), counters("dm-4", STAT)]
    after = [counters("dm-3", STAT), counters("dm-4", STAT.replace(b"1000", b"1010").replace(b"2500", b"2600"))]
    assert completed_between(before, after) == (10, 100_000_000)
    together = sum_of(disks_between(before, after).values())
    assert (together.operations, together.total_time_ns) == (10, 100_000_000)
    assert completed_between(before, before) == (0, 0)


@pytest.mark.parametrize("names", [["dm-3"], ["dm-3", "dm-5"], ["dm-4", "dm-3"]])
def test_other_devices_or_a_counter_that_went_back_tell_nothing(names: list[str]) -> None:
    both = [counters("dm-3", STAT), counters("dm-4", STAT)]
    assert completed_between(both, [counters(name, STAT) for name in names]) is None
    assert completed_between(both, [both[0], counters("dm-4", STAT.replace(b"1000", b"999"))]) is None


def counters(name: str, text: bytes) -> DiskCounters:
    found = parse_block_stat(name, text)
    assert found is not None
    return found.disk
