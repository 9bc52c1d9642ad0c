"""The mount table, and how to follow a path without touching what may never answer.

A stat on a dead NFS server, or on a FUSE file system whose process hangs, waits for ever; under autofs it mounts
something. So symbolic links are followed one component at a time, and the table is checked before each.

Source: proc_pid_mountinfo(5). Mount points are paths of this process, not of a tree under a root.
"""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

from pvehook.host.node import Node

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "beegfs"})
_NETWORK_FUSE = frozenset({"sshfs", "glusterfs", "ceph", "ceph-fuse", "s3fs", "rclone", "mfs", "davfs"})
_MAX_LINKS = 40  # as the kernel's own limit for one path


class Mount(NamedTuple):
    """One mount. All texts are "" for a path that the table does not cover."""

    mount_point: str
    fs_type: str
    source: str
    options: tuple[str, ...] = ()
    """Of the file system itself: `rw`, `hard`, `proto=tcp`."""

    @property
    def is_network(self) -> bool:
        """Whether another machine does the I/O."""
        return self.fs_type in _NETWORK or self.fs_type.removeprefix("fuse.") in _NETWORK_FUSE

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves it; not so `fuseblk`, which is on a block device."""
        return self.fs_type == "fuse" or self.fs_type.startswith("fuse.")

    @property
    def is_in_memory(self) -> bool:
        return self.fs_type in ("tmpfs", "devtmpfs", "ramfs")

    @property
    def may_hang(self) -> bool:
        """Whether nothing there may be accessed: that can wait for ever, or mount something."""
        return self.is_network or self.is_fuse or self.fs_type == "autofs"


def read_mounts(node: Node) -> list[Mount]:
    """All mounts, in the kernel's order; none if the table cannot be read.

    Example of one line; the part up to the single `-` has a varying number of fields:
    `36 35 98:0 / /mnt/nas rw,noatime shared:1 - nfs4 nas:/export rw,hard`. Blanks in names are `\\040`.
    """
    mounts = []
    for line in node.read("/proc/self/mountinfo").decode(errors="surrogateescape").split("\n"):
        left, dash, right = line.partition(" - ")
        fields, types = left.split(), right.split()
        if dash and len(fields) >= 5 and len(types) >= 2:
            options = tuple(types[2].split(",")) if len(types) > 2 else ()
            mounts.append(Mount(_unescape(fields[4]), types[0], _unescape(types[1]), options))
    return mounts


def follow_links(path: str, mounts: list[Mount]) -> tuple[str, Mount]:
    """The path without symbolic links, and its mount; it stops where nothing may be accessed. Raises OSError: a link
    that cannot be read, or more than 40 of them. Whether the path's end exists is not checked."""
    done, todo = "/", _pieces(os.path.normpath(path))
    links = 0
    while todo:
        done = os.path.normpath(os.path.join(done, todo.pop(0)))  # no link in `done`: `..` is what it seems
        mount = _mount_of(done, mounts)
        if mount.may_hang:
            whole = os.path.join(done, *todo)
            below = _mount_of(whole, mounts)
            if below == mount or ".." in todo:
                return whole, mount
            # Something is mounted further down (autofs is made for that). A mount point is no link, and no
            # component before it is one, so nothing on the way has to be accessed.
            done, todo = below.mount_point, _pieces(whole.removeprefix(below.mount_point))
            if below.may_hang:
                return whole, below
        elif os.path.islink(done):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(done)
            todo = _pieces(target) + todo
            done = "/" if target.startswith("/") else os.path.dirname(done)
    return done, _mount_of(done, mounts)


def _pieces(path: str) -> list[str]:
    return [piece for piece in path.split("/") if piece]


def _mount_of(path: str, mounts: list[Mount]) -> Mount:
    """The mount with the longest fitting mount point; of two on one place the later one covers the other."""
    best = Mount("", "", "")
    for mount in mounts:
        fits = path == mount.mount_point or path.startswith(mount.mount_point.rstrip("/") + "/")
        if fits and len(mount.mount_point) >= len(best.mount_point):
            best = mount
    return best


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
