"""Whole nodes as directory trees, as Proxmox VE 8 and 9 nodes have them: /etc/pve, /sys, /proc, dpkg's status, sockets.

    with clean_node(tmp_path, monkeypatch) as node:       nothing to find
        node.write("/etc/vzdump.conf", "ionice: 7\n")
        assert ids(node.diagnose()) == ["PVH-101", "PVH-109"]

`first_node` is the setup that this project came from. What a group of checks reads, it adds here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pvehook.config.in_force import Configuration
from pvehook.doctor.checks import Diagnosis, diagnose
from pvehook.host import block
from pvehook.host.node import HOOK, INSTALLED_UNDER
from pvehook.host.timely_files import TimelyReader
from tests.host.conftest import BlockTree

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=ZoneInfo("Europe/Vienna"))
BOOTED_S = 1_794_900_000
"""2026-11-17."""


class FixtureNode(BlockTree):
    """A node in a directory. Its sockets, if it has some, live as long as `stack`."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        super().__init__(root)
        patch.setattr(block, "device_of", self.device_of)
        self.stack = stack

    def link(self, path: str, target: str) -> None:
        link = self.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def program(self, path: str, text: str = "#!/bin/sh\n") -> None:
        self.write(path, text)
        (self.root / path.lstrip("/")).chmod(0o755)

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def replace(self, path: str, old: str, new: str) -> None:
        text = self.read(path)
        assert old in text
        self.write(path, text.replace(old, new))

    def diagnose(self, *vmids: int) -> Diagnosis:
        """By all groups, at NOW."""
        in_force = Configuration(self.node, TimelyReader(), None, remembers=False).now()
        return diagnose(self.node, in_force, NOW, vmids)

    # Parts of a node

    def installed(self) -> None:
        """pvehook as install.sh leaves it, with its socket listening."""
        self.program(HOOK, "#!/usr/bin/python3 -IS\n")
        self.write(f"{INSTALLED_UNDER}/pvehook/__init__.py", "")
        os.utime(self.root / INSTALLED_UNDER[1:] / "pvehook/__init__.py", (BOOTED_S - 86400, BOOTED_S - 86400))
        unit = "/usr/local/lib/systemd/system/pvehook.socket"
        self.write(unit, "[Socket]\nListenStream=/run/pvehook/hook.sock\n")
        self.link("/etc/systemd/system/sockets.target.wants/pvehook.socket", unit)
        self.write("/proc/net/unix", f"0000000000000000: 00000002 0 00010000 0001 01 21 {self.node.hook_socket}\n")
        (self.root / "var/lib/pvehook").mkdir(parents=True)
        (self.root / "var/lib/pvehook").chmod(0o700)
        self.write("/etc/vzdump.conf", f"# vzdump default settings\nscript: {HOOK}\nionice: 8\n")

    def booted(self, name: str, kernel: str) -> None:
        self.write("/proc/sys/kernel/hostname", f"{name}\n")
        self.write("/proc/sys/kernel/osrelease", f"{kernel}\n")
        self.write("/proc/stat", f"cpu  1000 0 1000 100000 0 0 0 0 0 0\nbtime {BOOTED_S}\n")
        self.link("/etc/localtime", "/usr/share/zoneinfo/Europe/Vienna")


@contextmanager
def clean_node(root: Path, patch: pytest.MonkeyPatch) -> Iterator[FixtureNode]:
    """Proxmox VE 9, and nothing to find."""
    with ExitStack() as stack:
        node = FixtureNode(root, patch, stack)
        node.booted("pve1", "7.0.14-4-pve")
        node.installed()
        node.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tschedule 02:00\n\tall 1\n\tmode snapshot\n\tstorage nas\n")
        yield node


def ids(diagnosis: Diagnosis) -> list[str]:
    return [each.check.id for each in diagnosis.found]


def evidence(diagnosis: Diagnosis, check: str) -> str:
    """`subject: evidence` of all findings of one check."""
    found = (each.finding for each in diagnosis.found if each.check.id == check)
    return "\n".join(f"{finding.subject}: {finding.evidence}" for finding in found)


def without_root(text: str, node: FixtureNode) -> str:
    """Text as the node would say it."""
    return re.sub(re.escape(str(node.root)), "", text)
