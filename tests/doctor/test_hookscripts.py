"""`pvehook guests hookscript enable|disable`: whose hookscript it becomes, what a guest had before, and back again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pvehook.doctor.hookscripts import CHAINING, NAME, Hooked, disable, enable
from pvehook.errors import NodeError
from pvehook.host.guest_configs import ConfiguredGuest, read_guest_configs
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from tests.node_under_test import REPO

OURS = f"local:snippets/{NAME}"
CHAINED = f"nas:snippets/{CHAINING}own.pl"
STORAGES = (
    "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl\n\n"
    "nfs: nas\n\tpath /mnt/pve/nas\n\tcontent snippets\n\n"
    "dir: usb\n\tpath /mnt/usb\n\tcontent snippets\n\tcontent-dirs snippets=/hooks,iso=x\n\n"
    "lvmthin: thin\n\tvgname pve\n\tthinpool data\n"
)


class ProxmoxNode:
    """A tree, and `qm` and `pct` on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = Node(str(root))
        self.ran: list[str] = []
        self.fails = ""
        self.does_nothing = False
        self.write("/etc/pve/storage.cfg", STORAGES)
        self.write("/usr/local/lib/pvehook/hooks/guest-hook", (REPO / "hooks/guest-hook").read_text())
        for directory in ("var/lib/vz", "mnt/pve/nas/snippets", "mnt/usb"):
            (root / directory).mkdir(parents=True)

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def guest(self, vmid: int, hookscript: str | None = None, kind: str = "qemu-server") -> None:
        line = f"hookscript: {hookscript}\n" if hookscript else ""
        self.write(f"/etc/pve/{kind}/{vmid}.conf", f"{'host' if kind == 'lxc' else ''}name: web\n{line}[old]\n{line}")

    def has(self, vmid: int, kind: str = "qemu-server") -> str | None:
        text = (self.root / f"etc/pve/{kind}/{vmid}.conf").read_text().partition("[")[0]
        return next((line.removeprefix("hookscript: ") for line in text.split("\n") if line.startswith("hook")), None)

    def enable(self, vmid: int, storage: str | None = None) -> Hooked:
        return enable(self.node, TimelyReader(), self._guest(vmid), storage, self._run)

    def disable(self, vmid: int) -> Hooked:
        return disable(self.node, TimelyReader(), self._guest(vmid), self._run)

    def _guest(self, vmid: int) -> ConfiguredGuest:
        return next(each for each in read_guest_configs(self.node, TimelyReader(), 30) if each.vmid == vmid)

    def _run(self, command: Sequence[str]) -> None:
        self.ran.append(" ".join(command))
        if self.fails:
            raise NodeError(f"`{self.ran[-1]}` ended with 255: {self.fails}")
        if not self.does_nothing:
            kind = "lxc" if command[0] == "pct" else "qemu-server"
            self.guest(int(command[2]), command[4] if command[3] == "--hookscript" else None, kind)


@pytest.fixture
def proxmox(tmp_path: Path) -> ProxmoxNode:
    return ProxmoxNode(tmp_path)


def test_a_guest_without_one_has_ours_and_then_none_again(proxmox: ProxmoxNode) -> None:
    proxmox.guest(101)
    assert proxmox.enable(101) == (101, True, f"VM 101 web: has pvehook's hookscript: {OURS}")
    snippet = proxmox.root / "var/lib/vz/snippets" / NAME
    assert snippet.read_text() == (REPO / "hooks/guest-hook").read_text()
    assert os.access(snippet, os.X_OK)
    assert proxmox.has(101) == OURS
    assert proxmox.disable(101) == (101, True, "VM 101 web: has none any more")
    assert proxmox.has(101) is None
    assert snippet.exists()  # others may have it
    assert proxmox.ran == [f"qm set 101 --hookscript {OURS}", "qm set 101 --delete hookscript"]


def test_a_guests_own_is_chained_where_it_is_and_given_back(proxmox: ProxmoxNode) -> None:
    proxmox.guest(101, "nas:snippets/own.pl")
    own = proxmox.write("/mnt/pve/nas/snippets/own.pl", "#!/bin/sh\n", 0o755)
    done = proxmox.enable(101, "usb")
    assert done.text == f"VM 101 web: has pvehook's hookscript: {CHAINED}, which runs its own after it: own.pl"
    assert os.access(own.with_name(f"{CHAINING}own.pl"), os.X_OK)
    assert proxmox.has(101) == CHAINED
    assert proxmox.disable(101).text == "VM 101 web: has its own hookscript again: nas:snippets/own.pl"
    assert proxmox.has(101) == "nas:snippets/own.pl"


@pytest.mark.parametrize("script", [OURS, CHAINED])
def test_one_that_has_ours_is_left_as_it_is_but_for_an_old_copy(proxmox: ProxmoxNode, script: str) -> None:
    proxmox.guest(101, script)
    where = "var/lib/vz/snippets" if script == OURS else "mnt/pve/nas/snippets"
    old = proxmox.write(f"/{where}/{script.rpartition('/')[2]}", "old")
    assert proxmox.enable(101) == (101, True, f"VM 101 web: has pvehook's hookscript already: {script}")
    assert old.read_text() == (REPO / "hooks/guest-hook").read_text()
    assert proxmox.ran == []


@pytest.mark.parametrize(("script", "said"), [(None, ""), ("nas:snippets/own.pl", ", but nas:snippets/own.pl")])
def test_to_disable_what_is_not_ours_changes_nothing(proxmox: ProxmoxNode, script: str | None, said: str) -> None:
    proxmox.guest(101, script)
    assert proxmox.disable(101) == (101, True, f"VM 101 web: has not pvehook's hookscript{said}")
    assert proxmox.ran == []


def test_a_container_is_set_by_pct(proxmox: ProxmoxNode) -> None:
    proxmox.guest(110, kind="lxc")
    assert proxmox.enable(110).text == f"CT 110 web: has pvehook's hookscript: {OURS}"
    assert proxmox.ran == [f"pct set 110 --hookscript {OURS}"]


def test_another_storage_and_its_own_directory_for_snippets(proxmox: ProxmoxNode) -> None:
    proxmox.guest(101)
    assert proxmox.enable(101, "usb").done
    assert proxmox.has(101) == f"usb:snippets/{NAME}"
    assert (proxmox.root / "mnt/usb/hooks" / NAME).exists()


@pytest.mark.parametrize(
    ("script", "storage", "why"),
    [
        (None, "gone", "storage gone does not exist"),
        (None, "thin", "its storage holds no snippets"),
        ("/root/own.pl", None, "its hookscript is /root/own.pl, which is no snippet"),
        (
            "nas:snippets/own.pl",
            None,
            "its own hookscript is missing or not executable, and Proxmox does not start it:"
            " /mnt/pve/nas/snippets/own.pl",
        ),
    ],
)
def test_what_cannot_be_done_changes_nothing_and_says_why(
    proxmox: ProxmoxNode, script: str | None, storage: str | None, why: str
) -> None:
    proxmox.guest(101, script)
    assert proxmox.enable(101, storage) == (101, False, f"VM 101 web: not changed: {why}")
    assert proxmox.has(101) == script
    assert proxmox.ran == []


def test_below_a_network_storage_that_is_not_mounted_nothing_is_made(proxmox: ProxmoxNode) -> None:
    proxmox.guest(101)
    (proxmox.root / "mnt/pve/nas/snippets").rmdir()
    assert proxmox.enable(101, "nas").text == "VM 101 web: not changed: /mnt/pve/nas/snippets is not there"
    assert not (proxmox.root / "mnt/pve/nas/snippets").exists()


def test_what_proxmox_says_against_it_is_told(proxmox: ProxmoxNode) -> None:
    proxmox.guest(101)
    proxmox.fails = "VM is locked (backup)"
    done = proxmox.enable(101)
    assert not done.done
    assert done.text.endswith("ended with 255: VM is locked (backup)")


@pytest.mark.parametrize("has_ours", [False, True])
def test_what_the_configuration_does_not_show_is_not_done(proxmox: ProxmoxNode, has_ours: bool) -> None:
    proxmox.guest(101, OURS if has_ours else None)
    proxmox.does_nothing = True
    done = proxmox.disable(101) if has_ours else proxmox.enable(101)
    assert not done.done
    assert "its configuration does not show it" in done.text


class TestInACluster:
    """A guest that migrates needs its hookscript on the other node, too, or it does not start there."""

    @pytest.fixture(autouse=True)
    def three_nodes(self, proxmox: ProxmoxNode) -> None:
        for name in ("pve1", "pve2", "pve3"):
            (proxmox.root / "etc/pve/nodes" / name).mkdir(parents=True)

    def test_a_storage_that_each_node_has_by_itself_is_to_be_named(self, proxmox: ProxmoxNode) -> None:
        proxmox.guest(101)
        done = proxmox.enable(101)
        assert not done.done
        copy = f"scp -p /usr/local/lib/pvehook/hooks/guest-hook NODE:/var/lib/vz/snippets/{NAME}"
        assert copy in done.text
        assert "add --storage local" in done.text
        assert proxmox.ran == []
        assert proxmox.enable(101, "local").done

    def test_one_that_all_nodes_share_will_do(self, proxmox: ProxmoxNode) -> None:
        proxmox.guest(101)
        assert proxmox.enable(101, "nas").done

    def test_a_guests_own_on_a_shared_storage_is_chained_there(self, proxmox: ProxmoxNode) -> None:
        proxmox.guest(101, "nas:snippets/own.pl")
        proxmox.write("/mnt/pve/nas/snippets/own.pl", "#!/bin/sh\n", 0o755)
        assert proxmox.enable(101).done
