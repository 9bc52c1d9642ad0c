"""The node of the bench of neighbours: its tree, from which pvehook itself finds out which disks a guest is on.

    ROOT/etc/pve/storage.cfg, qemu-server/ID.conf      volumes on LVM-thin, a group for each disk, or in a directory
    ROOT/dev/GROUP/vm-ID-disk-0                        a device's node as LVM makes one, with the numbers of
    ROOT/sys/block/dm-N -> slaves/sdX                  a device that only this tree's /sys has
    ROOT/sys/block/dm-N/stat, inflight                 its counters, which the disk's model writes (disk_models.py)
    ROOT/proc -> /proc                                 the guests' QEMUs are real processes

A volume in a directory is on the disk `sda` by the number of the file system that the tree is on; nothing counts its
requests but QEMU. The archive goes to a backup server, which is no disk of this node. Needs root, for the devices'
nodes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pvehook.host.node import Node
from pvehook.rehearsal.tree import RehearsalNode

CONFIG: Final = 'window: {open: ["00:00-24:00"]}\n'
_DM_MAJOR: Final = 253
_DISKS: Final = {"sda": 0, "sdb": 16}
_SCSI_MAJOR: Final = 8

_STORAGES: Final = """\
lvmthin: on-sda
\tvgname sda-group
\tthinpool data
\tcontent images

lvmthin: on-sdb
\tvgname sdb-group
\tthinpool data
\tcontent images

dir: files
\tpath /mnt/files
\tcontent images

pbs: pbs
\tserver 192.0.2.1
\tdatastore backup
\tcontent backup
"""


class Placed(NamedTuple):
    """One guest and where its disk is."""

    vmid: int
    disk: str = "sda"
    in_a_file: bool = False
    """In a directory; else a logical volume."""


def node_of(root: str, guests: Sequence[Placed]) -> RehearsalNode:
    """The tree, at a short path; not yet started."""
    files = {"/etc/pvehook.yaml": CONFIG, "/etc/pve/storage.cfg": _STORAGES}
    for vmid, disk, in_a_file in guests:
        volume = f"files:{vmid}/vm-{vmid}-disk-0.qcow2" if in_a_file else f"on-{disk}:vm-{vmid}-disk-0"
        files[f"/etc/pve/qemu-server/{vmid}.conf"] = f"name: guest{vmid}\nvirtio0: {volume},size=8G\n"
    node = RehearsalNode(root, files)
    os.unlink(node.node.path("/sys"))
    for name, minor in _DISKS.items():
        _device(node.node, name, f"pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/{name}", (_SCSI_MAJOR, minor))
    tree_is_on = os.stat(root).st_dev
    _link(node.node, f"/sys/dev/block/{os.major(tree_is_on)}:{os.minor(tree_is_on)}", "/sys/class/block/sda")
    for index, (vmid, disk, in_a_file) in enumerate(guests):
        if in_a_file:
            os.makedirs(node.node.path(f"/mnt/files/images/{vmid}"))
        else:
            _logical_volume(node.node, index, f"{disk}-group", f"vm-{vmid}-disk-0", disk)
    return node


def counters_of(node: Node, guests: Sequence[Placed]) -> dict[int, str]:
    """The directory of each guest's volume's counters, by its number, of those that have one."""
    return {
        guest.vmid: node.path(f"/sys/devices/virtual/block/dm-{index}")
        for index, guest in enumerate(guests)
        if not guest.in_a_file
    }


def _logical_volume(node: Node, index: int, group: str, name: str, disk: str) -> None:
    number = (_DM_MAJOR, index)
    device = _device(node, f"dm-{index}", f"virtual/block/dm-{index}", number)
    for file, text in (("name", f"{group.replace('-', '--')}-{name.replace('-', '--')}"), ("uuid", f"LVM-{index:064}")):
        _write(device / "dm" / file, text)
    _link(node, f"/sys/devices/virtual/block/dm-{index}/slaves/{disk}", f"/sys/class/block/{disk}")
    path = Path(node.path(f"/dev/{group}/{name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*number))


def _device(node: Node, name: str, place: str, number: tuple[int, int]) -> Path:
    """One block device in /sys."""
    device = Path(node.path(f"/sys/devices/{place}"))
    _write(device / "queue/scheduler", "[none] mq-deadline")
    _write(device / "dev", f"{number[0]}:{number[1]}")
    _write(device / "stat", " ".join(17 * ["0"]))
    _write(device / "inflight", "0 0")
    (device / "slaves").mkdir()
    for link in (f"/sys/block/{name}", f"/sys/class/block/{name}", f"/sys/dev/block/{number[0]}:{number[1]}"):
        _link(node, link, f"/sys/devices/{place}")
    return device


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


def _link(node: Node, path: str, to: str) -> None:
    """As the kernel's own, relative: a link is followed on this machine and not under the tree's root."""
    link = Path(node.path(path))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(node.path(to), link.parent))
