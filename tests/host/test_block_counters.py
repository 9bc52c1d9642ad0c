"""The kernel's counters of one block device, as of 6.8 and as of before 5.5."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.latency import RequestCounters
from pvehook.host.block_counters import parse_block_stat, read_block_stat
from pvehook.host.node import Node

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
