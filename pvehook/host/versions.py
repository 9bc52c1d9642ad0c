"""Which kernel and which Proxmox VE this node runs: an upgrade of either is the first suspect when backups get worse.

pve-manager's version is taken from dpkg's status file (deb822(5)), which dpkg replaces by rename; PVE/pvecfg.pm has
changed its shape between releases. No process is started: dpkg-query takes 7 ms, this 1.

    Package: pve-manager
    Status: install ok installed
    Version: 9.2.11

The installed Proxmox VE can be newer than the running one until its daemons are restarted; the kernel's version is the
running one. QEMU's version belongs to each running VM, not to the node.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.host.node import Node

_STATUS = "/var/lib/dpkg/status"
_STATUS_LIMIT_BYTES = 32 * 1024 * 1024  # some 1.5 MB on a node
_VERSION_CHARACTERS = 80


class Versions(NamedTuple):
    """Upstream's spelling: `6.8.12-4-pve`, `9.2.11`."""

    kernel: Measured[str]
    pve_manager: Measured[str]


def read_versions(node: Node) -> Versions:
    """Takes a millisecond or two, and reads a file of the root disk: not where a stalled disk must not matter."""
    return Versions(_kernel(node), _pve_manager(node))


def _kernel(node: Node) -> Measured[str]:
    text = node.read("/proc/sys/kernel/osrelease").decode("ascii", errors="replace").strip()
    return printable(text, _VERSION_CHARACTERS) if text else Broken("/proc/sys/kernel/osrelease cannot be read")


def _pve_manager(node: Node) -> Measured[str]:
    path = node.path(_STATUS)
    try:
        with open(path, "rb") as file:
            status = file.read(_STATUS_LIMIT_BYTES)
    except FileNotFoundError:
        return Absent("no Proxmox VE: dpkg is not used here")
    except OSError as error:
        return Broken(f"{path} cannot be read: {error.strerror}")
    paragraph = re.search(rb"^Package: pve-manager\n(.+\n)*", status, re.MULTILINE)
    # Else only its configuration is left, or half of it.
    if paragraph is None or not re.search(rb"^Status: .* installed$", paragraph[0], re.MULTILINE):
        return Absent("no Proxmox VE: pve-manager is not installed")
    version = re.search(rb"^Version: (.+)$", paragraph[0], re.MULTILINE)
    if version is None:
        return Broken(f"{path}: pve-manager without a version")
    return printable(version[1].decode(errors="replace"), _VERSION_CHARACTERS)
