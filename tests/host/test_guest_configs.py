"""The configurations of a node's guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.errors import NodeError
from pvehook.host.guest_configs import read_guest_configs
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader


def test_all_guests_are_read_by_number_and_other_files_are_none(tmp_path: Path) -> None:
    for path, data in (
        ("lxc/110.conf", b"hostname: box\n"),
        ("qemu-server/101.conf", b"name: web\n#\xff\n"),
        ("qemu-server/9.conf", b""),
        ("qemu-server/102.conf.tmp", b""),
    ):
        file = tmp_path / "etc/pve" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    found = read_guest_configs(Node(str(tmp_path)), TimelyReader(), 30)
    assert [(each.vmid, each.vmtype, each.config.name) for each in found] == [(101, "qemu", "web"), (110, "lxc", "box")]
    assert found[0].text == "name: web\n#\udcff\n"


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "etc/pve").mkdir(parents=True)
    assert read_guest_configs(Node(str(tmp_path)), TimelyReader(), 30) == ()
    (tmp_path / "etc/pve/lxc").write_text("no directory")
    with pytest.raises(NodeError, match="configurations cannot be read"):
        read_guest_configs(Node(str(tmp_path)), TimelyReader(), 30)
