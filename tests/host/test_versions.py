"""Which kernel and which Proxmox VE a node runs, as their own files tell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.host.node import Node
from pvehook.host.versions import installed_packages, read_versions

BEFORE = "Package: pve-lxc-syscalld\nStatus: install ok installed\nVersion: 2.0.1\n\n"
MANAGER = """\
Package: pve-manager
Status: install ok installed
Priority: optional
Section: admin
Architecture: all
Version: 9.2.11
Depends: apt (>= 1.5~), pve-cluster (>= 8.0.5)
Conffiles:
 /etc/vzdump.conf 0123456789abcdef0123456789abcdef
Description: Proxmox Virtual Environment Management Tools
 Status: not this one
"""
AFTER = "\nPackage: pve-qemu-kvm\nStatus: install ok installed\nVersion: 10.1.2-1\n"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    write(tmp_path, "/proc/sys/kernel/osrelease", "6.14.11-4-pve\n")
    return Node(str(tmp_path))


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize("status", [MANAGER, BEFORE + MANAGER + AFTER, BEFORE + MANAGER, MANAGER.rstrip("\n")])
def test_a_node(node: Node, tmp_path: Path, status: str) -> None:
    write(tmp_path, "/var/lib/dpkg/status", status)
    assert read_versions(node) == ("6.14.11-4-pve", "9.2.11")


@pytest.mark.parametrize(
    "state", ["deinstall ok config-files", "install ok unpacked", "install reinstreq half-installed"]
)
def test_what_is_not_installed_has_no_version(node: Node, tmp_path: Path, state: str) -> None:
    write(tmp_path, "/var/lib/dpkg/status", MANAGER.replace("install ok installed", state))
    assert read_versions(node).pve_manager == Absent("no Proxmox VE: pve-manager is not installed")


@pytest.mark.parametrize("status", ["", BEFORE + AFTER, "Package: pve-manager-extras\nStatus: install ok installed\n"])
def test_a_debian_without_proxmox(node: Node, tmp_path: Path, status: str) -> None:
    write(tmp_path, "/var/lib/dpkg/status", status)
    assert read_versions(node) == ("6.14.11-4-pve", Absent("no Proxmox VE: pve-manager is not installed"))


def test_a_system_without_dpkg(node: Node) -> None:
    assert read_versions(node).pve_manager == Absent("no Proxmox VE: dpkg is not used here")


def test_what_cannot_be_read_is_broken(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg/status").mkdir(parents=True)
    found = read_versions(Node(str(tmp_path)))
    assert isinstance(found.kernel, Broken)
    assert isinstance(found.pve_manager, Broken)


def test_a_package_without_a_version_is_broken(node: Node, tmp_path: Path) -> None:
    write(tmp_path, "/var/lib/dpkg/status", MANAGER.replace("Version: 9.2.11\n", ""))
    assert isinstance(read_versions(node).pve_manager, Broken)


KERNELS = """\
Package: proxmox-kernel-6.17
Status: install ok installed
Version: 6.17.4-2

Package: proxmox-kernel-6.17.2-1-pve-signed
Status: deinstall ok config-files
Version: 6.17.2-1

Package: proxmox-kernel-6.17.4-2-pve-signed
Status: install ok installed
Version: 6.17.4-2
"""


def test_all_packages_that_matter_are_found_in_one_pass(node: Node, tmp_path: Path) -> None:
    write(tmp_path, "/var/lib/dpkg/status", f"{BEFORE}{KERNELS}\n{MANAGER}{AFTER}")
    assert installed_packages(node) == {
        "proxmox-kernel-6.17": "6.17.4-2",
        "proxmox-kernel-6.17.4-2-pve-signed": "6.17.4-2",
        "pve-manager": "9.2.11",
        "pve-qemu-kvm": "10.1.2-1",
    }


def test_this_machines_kernel() -> None:
    assert read_versions(Node()).kernel == os.uname().release


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg here")
def test_dpkgs_own_file_is_read_as_dpkg_reads_it(tmp_path: Path) -> None:
    """A package that every Debian has, under the name of pve-manager."""
    status = Path("/var/lib/dpkg/status").read_text(encoding="utf-8")
    write(tmp_path, "/var/lib/dpkg/status", status.replace("\nPackage: dash\n", "\nPackage: pve-manager\n"))
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "dash"], capture_output=True, text=True, check=True)
    assert read_versions(Node(str(tmp_path))).pve_manager == shown.stdout
