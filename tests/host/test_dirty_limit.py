"""How much may wait to be written: by bytes, by ratio, or not known."""

from __future__ import annotations

from pathlib import Path

from pvehook.contract.measured import Broken
from pvehook.host.dirty_limit import DirtyLimit, read_dirty_limit
from pvehook.host.node import Node


def node(root: Path, dirty_bytes: str, ratio: str, memory: str = "") -> Node:
    directory = root / "proc/sys/vm"
    directory.mkdir(parents=True)
    (directory / "dirty_bytes").write_text(f"{dirty_bytes}\n")
    (directory / "dirty_ratio").write_text(f"{ratio}\n")
    (directory / "dirty_background_bytes").write_text("0\n")
    (directory / "dirty_background_ratio").write_text("10\n")
    (root / "proc/meminfo").write_text(memory)
    return Node(str(root))


def test_bytes_win_and_a_ratio_is_of_free_memory_and_files(tmp_path: Path) -> None:
    memory = "MemTotal: 4000 kB\nMemFree: 1000 kB\nActive: 900 kB\nActive(file): 300 kB\nInactive(file): 700 kB\n"
    background = "vm.dirty_background_ratio=10"
    by_bytes, by_ratio = node(tmp_path / "a", "5000", "0"), node(tmp_path / "b", "0", "20", memory)
    assert read_dirty_limit(by_bytes) == DirtyLimit(5000, "vm.dirty_bytes=5000", background)
    assert read_dirty_limit(by_ratio) == DirtyLimit(409600, "vm.dirty_ratio=20", background)


def test_what_cannot_be_read_is_broken_and_not_nothing(tmp_path: Path) -> None:
    assert isinstance(read_dirty_limit(Node(str(tmp_path))), Broken)
    assert read_dirty_limit(node(tmp_path / "b", "0", "20")) == Broken("/proc/meminfo has no 'MemFree'")


def test_this_machines_limit_is_below_its_memory() -> None:
    limit = read_dirty_limit(Node())
    assert isinstance(limit, DirtyLimit)
    assert 0 < limit.limit_bytes < 1 << 50
