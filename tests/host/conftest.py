"""Fixtures: real processes that end with the test, and a node as a directory tree with block devices as the
kernel shows them in /sys, mounts, and device numbers.

Device nodes cannot be made without root, so the tree answers `device_of` itself: `number[path]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pvehook.host import block
from pvehook.host.node import Node
from tests.host.players import Player


class BlockTree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = Node(str(root))
        self.number: dict[str, tuple[int, int]] = {}
        self._mounts: list[str] = []
        self.write("/proc/self/mountinfo", "")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def device(
        self,
        name: str,
        number: tuple[int, int],
        *,
        under: str = "virtual",
        scheduler: str | None = None,
        rotational: str | None = None,
        slaves: Sequence[str] = (),
    ) -> Path:
        """One block device below /sys/devices/UNDER/block, with the links that the kernel makes to it."""
        home = self.root / "sys/devices" / under / "block" / name
        home.mkdir(parents=True)
        if scheduler is not None:
            self.write(f"/sys/devices/{under}/block/{name}/queue/scheduler", f"{scheduler}\n")
        if rotational is not None:
            self.write(f"/sys/devices/{under}/block/{name}/queue/rotational", f"{rotational}\n")
        if slaves:
            (home / "slaves").mkdir()
        for slave in slaves:
            (home / "slaves" / slave).symlink_to(self.root / "sys/class/block" / slave)
        self._link(home, number, is_whole=True)
        return home

    def partition(self, disk: Path, name: str, number: tuple[int, int]) -> None:
        home = disk / name
        home.mkdir()
        (home / "partition").write_text("1\n")
        self._link(home, number, is_whole=False)

    def _link(self, home: Path, number: tuple[int, int], *, is_whole: bool) -> None:
        links = [self.root / "sys/class/block" / home.name, self.root / f"sys/dev/block/{number[0]}:{number[1]}"]
        if is_whole:
            links.append(self.root / "sys/block" / home.name)
        for link in links:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(home, link.parent))

    def mount(self, mount_point: str, fs_type: str, source: str, options: str = "rw") -> None:
        escaped = self.node.path(mount_point).replace(" ", "\\040")
        self._mounts.append(f"36 35 0:50 / {escaped} rw,noatime shared:1 - {fs_type} {source} {options}\n")
        self.write("/proc/self/mountinfo", "".join(self._mounts))

    def place(self, path: str, number: tuple[int, int]) -> str:
        """Something at `path` (a directory, a device's node) for which the kernel gives this number."""
        (self.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.number[path] = number
        return path

    def device_of(self, path: str) -> tuple[int, int]:
        if not os.path.exists(path):
            raise FileNotFoundError(2, os.strerror(2), path)
        inside = path.removeprefix(str(self.root))
        while inside not in self.number:
            assert inside not in ("", "/"), f"the test gives no device number for {path}"
            inside = os.path.dirname(inside)
        return self.number[inside]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockTree:
    tree = BlockTree(tmp_path)
    monkeypatch.setattr(block, "device_of", tree.device_of)
    return tree


@pytest.fixture
def start() -> Iterator[Callable[..., Player]]:
    """Starts players: `start("rsync", "/dump")` is one that is called rsync and mentions /dump."""
    players: list[Player] = []

    def start_one(name: str = "player", *arguments: str) -> Player:
        players.append(Player(name, *arguments))
        return players[-1]

    yield start_one
    for player in players:
        player.end()
