"""The node's memory and swap, as the kernel shows them (proc(5), and module/zfs/arc.c of OpenZFS):

    /proc/meminfo                        MemAvailable:   12345678 kB
    /proc/swaps                          /dev/dm-0    partition    8388604    1048576    -2      size and use in KiB
    /proc/vmstat                         pswpin 4711                         pages that were read back since the boot
    /proc/spl/kstat/zfs/arcstats         size    4    8589934592             bytes; c_min is what ZFS keeps of it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_KIB = 1024
_SWAP = re.compile(r"(\S+)\s+\S+\s+(\d{1,18})\s+(\d{1,18})\s")
_PAIR = re.compile(r"^(\w+):? +(?:\d+ +)?(\d{1,18})(?: kB)?$", re.MULTILINE)


class Swap(NamedTuple):
    """One device or file that is swapped to."""

    path: str
    size_bytes: int
    used_bytes: int


def parse_numbers(text: str) -> Mapping[str, int]:
    """The numbers of /proc/meminfo, in KiB, of /proc/vmstat or of one of ZFS' kstats. Other lines are skipped."""
    return {match[1]: int(match[2]) for match in _PAIR.finditer(text)}


def available_bytes(meminfo: Mapping[str, int], arcstats: Mapping[str, int]) -> int:
    """What can be had without swapping. ZFS gives most of its cache back, which MemAvailable does not count. Raises
    KeyError: this is no /proc/meminfo."""
    return meminfo["MemAvailable"] * _KIB + max(arcstats.get("size", 0) - arcstats.get("c_min", 0), 0)


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """All lines but the heading; one of another shape is skipped. Blanks in a file's name are `\\040`."""
    rows = (match for line in text.splitlines()[1:] if (match := _SWAP.match(line)))
    return tuple(Swap(row[1].replace("\\040", " "), int(row[2]) * _KIB, int(row[3]) * _KIB) for row in rows)


def steal_share(stat: str) -> float:
    """Of all CPU time since the boot what a hypervisor took for others, 0 to 1, by the first line of /proc/stat:
    `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; user has guest in it. Raises ValueError."""
    fields = stat.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        raise ValueError(f"no times of all CPUs: {stat[:60]!r}")
    times = [int(each) for each in fields[1:9]]
    return times[7] / max(sum(times), 1)
