"""One slow disk of this machine's kernel with a partition for each guest: they share its queue.

    with partitions(file, (384, 128)) as devices: ...      # /dev/loop5p1, /dev/loop5p2

The disk is the model of tests/bench/pacer_disk.py; each partition has counters of its own in /sys. Needs root,
/dev/fuse and a free loop device.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.pacer_disk import served_disk

MIB: Final = 1 << 20
SECTOR_BYTES: Final = 512
TOOL_S: Final = 30

_FIRST_MIB = 1
_TABLE_BYTES, _FIRST_ENTRY, _LINUX = 512, 446, 0x83


def what_is_missing() -> str:
    """Why no such disk can be made here; empty if one can."""
    missing = [tool for tool in ("partx", "losetup") if shutil.which(tool) is None]
    if not os.path.exists("/dev/fuse"):
        missing.append("/dev/fuse")
    return f"needs {', '.join(missing)}" if missing else ""


@contextmanager
def partitions(file: Path, sizes_mib: Sequence[int], mib_per_s: float, seek_ms: float) -> Iterator[list[str]]:
    """At most four, in this order, on a disk of this speed."""
    with served_disk(file, sum(sizes_mib) + _FIRST_MIB, mib_per_s, seek_ms, seek_ms / 8) as disk:
        with open(disk.device, "r+b") as written:
            written.write(_table(sizes_mib))
            written.flush()
            os.fsync(written.fileno())
        # One that was in use when its disk went (a run that was killed) is still there, in the way of the same number.
        subprocess.run(["partx", "--delete", disk.device], timeout=TOOL_S, capture_output=True, check=False)
        subprocess.run(["partx", "--add", disk.device], timeout=TOOL_S, check=True)
        try:
            yield [f"{disk.device}p{number}" for number, _ in enumerate(sizes_mib, 1)]
        finally:
            subprocess.run(["partx", "--delete", disk.device], timeout=TOOL_S, check=True)


def _table(sizes_mib: Sequence[int]) -> bytes:
    """A DOS partition table: of each partition its type, and its start and length in sectors."""
    table, start = bytearray(_TABLE_BYTES), _FIRST_MIB * MIB // SECTOR_BYTES
    for number, size_mib in enumerate(sizes_mib):
        length = size_mib * MIB // SECTOR_BYTES
        struct.pack_into("<4xB3xII", table, _FIRST_ENTRY + 16 * number, _LINUX, start, length)
        start += length
    table[-2:] = b"\x55\xaa"
    return bytes(table)
