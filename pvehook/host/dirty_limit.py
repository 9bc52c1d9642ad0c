"""How many bytes may wait in the page cache before a writer has to wait: vm.dirty_bytes or vm.dirty_ratio.

Sources: Linux Documentation/admin-guide/sysctl/vm.rst; the ratio is of what `global_dirtyable_memory` in
mm/page-writeback.c counts: free memory and the pages of files.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pvehook.contract.measured import Broken, Measured
from pvehook.host.node import Node

_COUNTED: Final = ("MemFree", "Active(file)", "Inactive(file)")


class DirtyLimit(NamedTuple):
    limit_bytes: int
    """As memory is now."""
    setting: str
    """`vm.dirty_ratio=20`: the one that counts."""
    background: str
    """`vm.dirty_background_ratio=10`: from where on it is written out; likewise the one that counts."""


def read_dirty_limit(node: Node) -> Measured[DirtyLimit]:
    """Of the whole node."""
    figures = [_number(node, f"dirty_{each}") for each in ("bytes", "ratio", "background_bytes", "background_ratio")]
    if None in figures:
        return Broken("/proc/sys/vm/dirty_* cannot be read")
    # Bytes and ratio exclude each other: the kernel sets the other one to 0.
    limit_bytes, ratio, background_bytes, background_ratio = (each or 0 for each in figures)
    background = f"vm.dirty_background_ratio={background_ratio}"
    if background_bytes:
        background = f"vm.dirty_background_bytes={background_bytes}"
    if limit_bytes:
        return DirtyLimit(limit_bytes, f"vm.dirty_bytes={limit_bytes}", background)
    memory = dict(re.findall(r"^([A-Za-z()]+): +(\d+) kB$", node.read("/proc/meminfo").decode(), re.MULTILINE))
    try:
        counted_bytes = sum(int(memory[name]) for name in _COUNTED) * 1024
    except KeyError as error:
        return Broken(f"/proc/meminfo has no {error}")
    return DirtyLimit(counted_bytes * ratio // 100, f"vm.dirty_ratio={ratio}", background)


def _number(node: Node, name: str) -> int | None:
    text = node.read(f"/proc/sys/vm/{name}").strip()
    return int(text) if text.isdigit() else None
