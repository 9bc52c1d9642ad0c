"""Processes in a real guest that write to its first disk past the page cache, and note when each write began and ended.

with writing(vm, pause_ms=50):
    ...
    lasted = [each.lasted_s for each in writes(vm)]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.guest_on_node import Span
from tests.rig.qemu_guest import QemuGuest

_WRITER = (
    "(n=$(({number} * 1501)); until [ -e /tmp/stop ]; do n=$(((n + 5003) % {blocks})); began=$EPOCHREALTIME;"
    " dd if=/dev/zero of=/dev/sda bs=4096 count=1 seek=$n conv=notrunc oflag=direct 2>/dev/null;"
    " echo $began $EPOCHREALTIME; usleep {pause_us}; done) >/tmp/writes.{number} 2>&1 & echo $! >>/tmp/writers"
)
"""4 KiB every 20 MB round the disk: a place that the backup has not come to, and never two in one cluster of 64 KiB."""


@contextmanager
def writing(vm: QemuGuest, pause_ms: float, at_once: int = 1) -> Iterator[None]:
    """So many writers, each with a pause after each write. What is on the disk is lost."""
    vm.run("umount /data 2>/dev/null || true")
    vm.run("rm -f /tmp/stop /tmp/writes.* /tmp/writers")
    blocks = int(vm.run("cat /sys/block/sda/size")) // 8
    for number in range(at_once):
        vm.run(_WRITER.format(number=number, blocks=blocks, pause_us=round(pause_ms * 1000)))
    try:
        yield
    finally:
        vm.run(
            "touch /tmp/stop; for each in $(cat /tmp/writers); do while [ -d /proc/$each ]; do usleep 5000; done; done"
        )


def writes(vm: QemuGuest) -> list[Span]:
    """Those that have ended, by the guest's own clock, in the order of their beginning."""
    lines = vm.run("cat /tmp/writes.*").split("\n")[:-1]
    return sorted(Span(*map(float, line.split())) for line in lines)


def lasted_s(seen: list[Span]) -> float:
    """From the first one's begin to the last one's end, in seconds."""
    return max((each.until_s for each in seen), default=0.0) - min((each.from_s for each in seen), default=0.0)


def p99_s(spans: list[Span]) -> float:
    lasted = sorted(each.lasted_s for each in spans)
    return lasted[math.ceil(0.99 * len(lasted)) - 1]
