"""The node's memory, swap and stolen time, as the kernel writes them."""

from __future__ import annotations

import pytest

from pvehook.contract.node_memory import Swap, available_bytes, parse_numbers, parse_swaps, steal_share

MEMINFO = """\
MemTotal:       65764500 kB
MemFree:          512000 kB
MemAvailable:    1024000 kB
HugePages_Total:       0
"""
ARCSTATS = """\
12 1 0x01 147 39984 3284627518 4129837465918273
name                            type data
size                            4    34359738368
c_min                           4    2147483648
"""


def test_memory_is_what_can_be_had_without_swapping() -> None:
    meminfo = parse_numbers(MEMINFO)
    assert meminfo == {"MemTotal": 65764500, "MemFree": 512000, "MemAvailable": 1024000, "HugePages_Total": 0}
    assert available_bytes(meminfo, {}) == 1024000 * 1024


def test_zfs_gives_back_all_but_the_least_of_its_cache() -> None:
    numbers = parse_numbers(ARCSTATS)
    assert (numbers["size"], numbers["c_min"]) == (32 << 30, 2 << 30)
    assert available_bytes(parse_numbers(MEMINFO), numbers) == 1024000 * 1024 + (30 << 30)
    assert available_bytes(parse_numbers(MEMINFO), {"size": 1, "c_min": 2}) == 1024000 * 1024


def test_what_is_no_meminfo_is_no_memory() -> None:
    with pytest.raises(KeyError):
        available_bytes(parse_numbers("nothing\n"), {})


def test_counters_of_the_kernel() -> None:
    assert parse_numbers("nr_free_pages 1\npswpin 4711\npswpout 0\n")["pswpin"] == 4711


def test_swaps() -> None:
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/dm-0                               partition\t8388604\t\t1048576\t\t-2\n"
        "/srv/my\\040swap                         file\t\t1024\t\t0\t\t-3\n"
        "half a line\n"
    )
    assert parse_swaps(text) == (
        Swap("/dev/dm-0", 8388604 * 1024, 1 << 30),
        Swap("/srv/my swap", 1 << 20, 0),
    )
    assert parse_swaps("") == ()


def test_stolen_time_is_a_share_of_all_time() -> None:
    assert steal_share("cpu  100 0 100 700 0 0 50 50 90 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n") == 0.05
    assert steal_share("cpu  0 0 0 0 0 0 0 0 0 0\n") == 0.0


@pytest.mark.parametrize("text", ["", "cpu 1 2 3", "cpu0 1 1 1 1 1 1 1 1", "cpu a b c d e f g h"])
def test_what_shows_no_times_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no times of all CPUs|invalid literal"):
        steal_share(text)
