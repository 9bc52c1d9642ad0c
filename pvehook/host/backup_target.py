"""Where a job's archives would go: whether Proxmox can use it as it is now, and how much is free there.

Proxmox does not ask for free space: a job whose archives do not fit fails on the way. It asks whether a directory that
is to be a mount point is one (DirPlugin.pm of pve-storage), and whether a dumpdir is there (PVE/VZDump.pm). A network
file system that is not mounted is mounted when it is used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pvehook.contract.guest_config import boolean
from pvehook.contract.section_config import Section, find_section
from pvehook.errors import NodeError
from pvehook.host.mounts import read_mounts
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader

_MOUNTED_TYPES: Final = ("nfs", "cifs", "cephfs", "glusterfs")
"""Those that Proxmox mounts at their `path`."""
_PBS_PORT: Final = 8007


class Target(NamedTuple):
    """`refusal` is why Proxmox fails the job; None: nothing that was asked speaks against it."""

    name: str
    refusal: str | None = None
    free_bytes: int | None = None
    unknown: str = ""
    """Why `free_bytes` is not known."""
    is_silent: bool = False
    """It did not answer in time, or refused."""
    not_mounted: bool = False
    """A network file system that Proxmox would have to mount first."""

    def in_words(self) -> str:
        """For people."""
        if self.free_bytes is None:
            return f"free on {self.name}: not known ({self.unknown})"
        return f"free on {self.name}: {self.free_bytes / (1 << 30):.1f} GiB; PVE does not check whether an archive fits"


def look_at_target(node: Node, options: Mapping[str, str], storages: Sequence[Section], deadline_s: float) -> Target:
    """Asks within its time, in a thread of its own: a file system that hangs leaves nothing but this unknown."""
    mount_point: str | None = None
    is_mounted_by_pve = False
    if "storage" not in options:
        path = options["dumpdir"]
        target = Target(f"dumpdir {path}")
    else:
        storage = find_section(storages, options["storage"])
        target = Target(f"storage {options['storage']}")
        if storage is None or storage.type not in ("dir", "btrfs", *_MOUNTED_TYPES):
            return target._replace(unknown=f"a storage of type {storage.type}" if storage else "it does not exist")
        path = storage.properties.get("path", f"/mnt/pve/{storage.id}")
        is_mounted_by_pve = storage.type in _MOUNTED_TYPES
        is_mount_point = storage.properties.get("is_mountpoint", "0")  # yes, no, or the path of the mount point
        mount_point = {True: path, False: None, None: is_mount_point}[boolean(is_mount_point)]
    if not path.startswith("/"):
        return target._replace(unknown="relative to the directory in which vzdump is started")

    def ask() -> Target:
        mounted = {each.mount_point for each in read_mounts(node)}
        if is_mounted_by_pve and node.path(path) not in mounted:
            return target._replace(unknown="not mounted now", not_mounted=True)
        return _look(node, target, path, mount_point)

    try:
        return TimelyReader().within(deadline_s, path, ask)
    except (NodeError, OSError) as error:
        return target._replace(unknown=str(error), is_silent=True)


def why_pbs_is_silent(storage: Section, deadline_s: float) -> str | None:
    """Why a backup server does not answer to a connection, which is closed at once; None: it does."""
    options = storage.properties
    server, port = options.get("server", ""), options.get("port", str(_PBS_PORT))

    def connect() -> None:
        with socket.create_connection((server, int(port)), timeout=deadline_s):
            pass

    try:
        # In a thread: looking up the server's name has no end of its own.
        TimelyReader().within(deadline_s, f"{server} port {port}", connect)
    except (NodeError, OSError, ValueError) as error:
        return str(error) if isinstance(error, NodeError) else f"{server} port {port}: {error}"
    return None


def _look(node: Node, target: Target, path: str, mount_point: str | None) -> Target:
    if mount_point and os.path.realpath(node.path(mount_point)) not in {each.mount_point for each in read_mounts(node)}:
        return target._replace(refusal=f"{target.name} is to be a mount point, and nothing is mounted at {mount_point}")
    if not os.path.isdir(node.path(path)):
        # The path of a storage is made when it is missing.
        missing = f"{target.name} does not exist" if target.name.startswith("dumpdir") else None
        return target._replace(refusal=missing, unknown="the directory is not there")
    status = os.statvfs(node.path(path))
    return target._replace(free_bytes=status.f_bavail * status.f_frsize)
