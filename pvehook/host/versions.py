"""Which kernel and which Proxmox VE this node runs: an upgrade of either is the first suspect when backups get worse.

Packages' versions are taken from dpkg's status file (deb822(5)), which dpkg replaces by rename; PVE/pvecfg.pm has
changed its shape between releases. No process is started: dpkg-query takes 7 ms, this 1.

    Package: pve-manager
    Status: install ok installed
    Version: 9.2.11

The installed Proxmox VE can be newer than the running one until its daemons are restarted; the kernel's version is the
running one. QEMU's version belongs to each running VM, not to the node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.host.node import Node

_STATUS = "/var/lib/dpkg/status"
_STATUS_LIMIT_BYTES = 32 * 1024 * 1024  # some 1.5 MB on a node
_VERSION_CHARACTERS = 80
_PACKAGES: Final = re.compile(
    rb"^Package: (pve-manager|pve-qemu-kvm|qemu-server|(?:proxmox|pve)-kernel-[a-z0-9.+-]+)\n(?:.+\n?)*", re.MULTILINE
)


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
    packages = installed_packages(node)
    if isinstance(packages, (Absent, Broken)):
        return packages
    version = packages.get("pve-manager", Absent("no Proxmox VE: pve-manager is not installed"))
    return version or Broken(f"{node.path(_STATUS)}: pve-manager without a version")


def installed_packages(node: Node) -> Measured[Mapping[str, str]]:
    """The versions of Proxmox's packages that matter here and are installed, all kernels among them; "" where dpkg's
    status has none. Takes a millisecond or two, and reads a file of the root disk."""
    path = node.path(_STATUS)
    try:
        with open(path, "rb") as file:
            status = file.read(_STATUS_LIMIT_BYTES)
    except FileNotFoundError:
        return Absent("no Proxmox VE: dpkg is not used here")
    except OSError as error:
        return Broken(f"{path} cannot be read: {error.strerror}")
    found: dict[str, str] = {}
    for paragraph in _PACKAGES.finditer(status):
        # Else only its configuration is left, or half of it.
        if re.search(rb"^Status: .* installed$", paragraph[0], re.MULTILINE):
            version = re.search(rb"^Version: (.+)$", paragraph[0], re.MULTILINE)
            text = version[1].decode(errors="replace") if version else ""
            found[paragraph[1].decode()] = printable(text, _VERSION_CHARACTERS)
    return found
