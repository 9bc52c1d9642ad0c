"""A hundred guests: no file is read again and again. How long it takes is told by tests/bench/doctor_cost.py."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doctor.fixture_nodes import busy_node, ids

READS_AT_MOST = 6
"""Of one file: some of the five groups each read what is in /etc/pve. A scan for each guest would be 100."""


class OpenedFiles:
    """Counts what this process opens below a directory, for as long as `root` is set. An audit hook stays for good."""

    def __init__(self) -> None:
        self.root = ""
        self.counts: Counter[str] = Counter()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.root and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
            path = arguments[0]
            if path.startswith(self.root):
                self.counts[path.removeprefix(self.root)] += 1

    def during(self, root: Path, work: Callable[[], object]) -> Counter[str]:
        self.counts.clear()
        self.root = str(root)
        try:
            work()
        finally:
            self.root = ""
        return self.counts


OPENED = OpenedFiles()


def test_each_file_is_read_a_few_times_and_not_once_for_each_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of /etc and /var, which may be slow or hang. What the kernel keeps in memory is looked up for each volume."""
    with busy_node(tmp_path, monkeypatch, guests=100, running=0) as node:
        counts = OPENED.during(tmp_path, lambda: ids(node.diagnose()))
    assert counts["/etc/pve/qemu-server/299.conf"] >= 1
    assert [each for each in counts.items() if each[0].startswith(("/etc", "/var")) and each[1] > READS_AT_MOST] == []
    assert [each for each in counts.items() if each[1] > 3 * 100] == []
