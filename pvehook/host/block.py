"""From a path to the disks under it, and to each disk's I/O scheduler.

    path ── mount table ──▶ network file system | ZFS pool | device number
    device number ── /sys/dev/block ──▶ partition's disk ── slaves (LVM, dm-crypt, md, bcache) ──▶ disks

Nothing on a network file system is touched (host/mounts.py), and no device is opened. Sources: Linux
Documentation/ABI/stable/sysfs-block; the transports: where the SCSI and NVMe drivers put devices in /sys/devices.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

from pvehook.contract.disks import Disk, Location
from pvehook.host.commands import answer_of
from pvehook.host.mounts import Mount, follow_links, read_mounts
from pvehook.host.node import Node

_ZPOOL = "/usr/sbin/zpool"
_ZPOOL_DEADLINE_S = 5.0  # a suspended pool makes zpool hang
_MAX_LAYERS = 16  # of loop devices on files on loop devices; a bound against a circle

_NETWORK_NAMES = {"rbd": "rbd", "nbd": "nbd", "drbd": "drbd"}  # block devices by the start of their names


def device_of(path: str) -> tuple[int, int]:
    """Major and minor: of the device itself for a block device's node, else of the file system it is on."""
    status = os.stat(path)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    return os.major(number), os.minor(number)


def block_device_at(node: Node, path: str) -> str | None:
    """The kernel's name (`dm-4`, `zd16`) of the block device whose node, below /dev, is at `path`; None: there is
    none."""
    if not path.startswith("/dev/"):
        return None
    try:
        major, minor = device_of(node.path(path))
    except OSError:
        return None
    return _name_of(node, f"/sys/dev/block/{major}:{minor}")  # a file system in memory has no number there


def loop_device_over(node: Node, path: str) -> str | None:
    """The loop device that shows the file at `path` as a block device; None: there is none. The file is not touched."""
    real = follow_links(node.path(path), read_mounts(node))[0]
    loops = (name for name in _list(node, "/sys/block") if name.startswith("loop"))
    return next((name for name in loops if _read(node, f"/sys/block/{name}/loop/backing_file") == real), None)


def kernel_version(node: Node) -> tuple[int, int] | None:
    """(6, 8) of `6.8.12-4-pve`; None if unknown."""
    match = re.match(r"(\d+)\.(\d+)", _read(node, "/proc/sys/kernel/osrelease"))
    return (int(match[1]), int(match[2])) if match else None


def locate(node: Node, path: str, if_missing: str | None = None) -> Location:
    """The disks under a file, a directory or a block device's node, "unknown" where that cannot be found out.
    When there is nothing at `path`, under `if_missing`."""
    if path.startswith("/dev/zvol/"):  # the only name of a zvol that contains its pool
        return locate_zpool(node, path.split("/")[3])
    try:
        return _locate(node, node.path(path), _MAX_LAYERS)
    except FileNotFoundError:
        if if_missing is not None:
            return locate(node, if_missing)
        return Location("unknown", (), f"{path} is not there")
    except OSError as error:
        return Location("unknown", (), f"{path}: {error.strerror}")


def locate_volume_group(node: Node, group: str) -> Location:
    """The disks under all active logical volumes of an LVM volume group: for a volume that is not active, as a stopped
    guest's often has no device node until its backup starts."""
    prefix = group.replace("-", "--") + "-"  # how LVM spells its names for the device mapper
    volumes = {name: _read(node, f"/sys/block/{name}/dm/name") for name in _list(node, "/sys/block")}
    # A volume's name never begins with a hyphen: `pve--ssd-root` is of the group `pve-ssd`, not of `pve`.
    names = [name for name, volume in volumes.items() if re.match(re.escape(prefix) + "(?!-)", volume)]
    if not names:
        return Location("unknown", (), f"volume group {group} has no active volume on this node")
    return _located(_disks_under(node, names), f"disks of the active volumes of volume group {group}")


def locate_zpool(node: Node, pool: str) -> Location:
    """The disks of a ZFS pool as `zpool` lists them; without an answer only the pool."""
    lines = _zpool_list(node, pool)
    if lines is None:
        return Location("zfs", (), f"ZFS pool {pool}, its disks are unknown: {_ZPOOL} gave no answer")
    names = [os.path.basename(line.split()[0]) for line in lines if line.strip().startswith("/dev/")]
    return Location("zfs", _disks_under(node, names), f"ZFS pool {pool}")


def _locate(node: Node, path: str, layers: int) -> Location:
    """As `locate`, for a path of this process. Raises OSError if there is nothing at the path."""
    path, mount = follow_links(path, read_mounts(node))
    return _locate_by_mount(node, mount) or _locate_by_device(node, path, mount, layers)


def _locate_by_mount(node: Node, mount: Mount) -> Location | None:
    """By the file system's type where that is enough; None if the device number is needed."""
    if mount.is_network:
        return Location("network", (), f"{mount.fs_type} from {mount.source}")
    if mount.fs_type == "zfs":
        return locate_zpool(node, mount.source.split("/")[0])
    if mount.fs_type == "btrfs":  # its files show a device number that is no block device's
        return _locate_btrfs(node, mount)
    if mount.fs_type == "autofs":
        return Location("unknown", (), f"{mount.mount_point} is not mounted now (autofs)")
    if mount.is_fuse:
        return Location("unknown", (), f"{mount.fs_type} at {mount.mount_point}: a process of its own does the I/O")
    return None


def _locate_by_device(node: Node, path: str, mount: Mount, layers: int) -> Location:
    major, minor = device_of(path)
    device = f"/sys/dev/block/{major}:{minor}"
    name = _name_of(node, device)
    if name is None:
        where = f"{mount.fs_type} at {mount.mount_point}" if mount.fs_type else f"the file system of {path}"
        return Location("unknown", (), f"{where} has no block device of its own")
    if backing := _read(node, f"{device}/loop/backing_file"):
        if not layers:
            return Location("unknown", (), f"{name}: too many loop devices one upon the other")
        below = _locate(node, backing, layers - 1)
        return below._replace(detail=f"{name} over {backing}: {below.detail}")
    # On a file system in memory only a device's node can have led to a block device.
    shown = name if mount.is_in_memory or not mount.fs_type else f"{mount.fs_type} on {name}"
    return _located(_disks_under(node, [name]), shown)


def _locate_btrfs(node: Node, mount: Mount) -> Location:
    """Example: /sys/fs/btrfs/UUID/devices/ holds one link per device of the file system, sda3 and sdb3."""
    name = os.path.basename(os.path.realpath(node.path(mount.source)))
    names = [name]
    for uuid in _list(node, "/sys/fs/btrfs"):
        devices = _list(node, f"/sys/fs/btrfs/{uuid}/devices")
        if name in devices:
            names = devices
    return _located(_disks_under(node, names), f"btrfs on {mount.source}")


def _located(disks: tuple[Disk, ...], detail: str) -> Location:
    if not disks:
        return Location("unknown", (), f"{detail}: no disk found under it in /sys")
    kinds = {disk.kind for disk in disks}
    return Location(kinds.pop() if len(kinds) == 1 else "disks", disks, detail)


def _disks_under(node: Node, names: Iterable[str]) -> tuple[Disk, ...]:
    """The leaves under these block devices, each once, in the order of their names."""
    leaves: dict[str, Disk] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        device = f"/sys/class/block/{name}"
        real = os.path.realpath(node.path(device))
        if not os.path.isdir(real):
            continue
        slaves = _list(node, f"{device}/slaves")
        if os.path.exists(f"{real}/partition"):
            waiting.append(os.path.basename(os.path.dirname(real)))
        elif slaves and not _read(node, f"{device}/dm/uuid").startswith("mpath-"):
            waiting.extend(slaves)
        else:
            # Multipath hands whole requests to its paths, past their schedulers: its own queue decides.
            leaves[name] = Disk(name, _scheduler(node, device), _transport(node, slaves[0] if slaves else name))
    return tuple(leaves[name] for name in sorted(leaves))


def _scheduler(node: Node, device: str) -> str | None:
    """The name in brackets of a line like `none [mq-deadline] kyber bfq`, or the only name."""
    text = _read(node, f"{device}/queue/scheduler")
    chosen = text.partition("[")[2].partition("]")[0] or text
    return chosen if chosen and " " not in chosen else None


def _transport(node: Node, name: str) -> str:
    for start, transport in _NETWORK_NAMES.items():
        if name.startswith(start):
            return transport
    if name.startswith("zd") and name[2:].isdecimal():
        return "zfs"
    device = f"/sys/class/block/{name}"
    parts = os.path.realpath(node.path(device)).split("/")
    # .../host3/session1/target3:0:0/3:0:0:0/block/sdb, and with Fibre Channel rport-3:0-1 in that place
    if any(part.startswith("session") for part in parts):
        return "iscsi"
    if any(part.startswith("rport-") for part in parts):
        return "fc"
    if name.startswith("nvme"):
        # With native multipath `device` is a subsystem that holds links to its controllers.
        controllers = [entry for entry in _list(node, f"{device}/device") if entry.startswith("nvme")]
        for place in (".", *controllers):
            if (transport := _read(node, f"{device}/device/{place}/transport")) in ("tcp", "rdma", "fc"):
                return f"nvme-{transport}"
    return "local"


def _zpool_list(node: Node, pool: str) -> list[str] | None:
    """Lines of `zpool list`, whose vdevs show as full paths with -P; None without an answer in time."""
    answer = answer_of([node.path(_ZPOOL), "list", "-vHPL", "--", pool], _ZPOOL_DEADLINE_S)
    return answer.splitlines() if answer is not None else None


def _name_of(node: Node, device: str) -> str | None:
    """Of the device under /sys/dev/block; None: there is none."""
    real = os.path.realpath(node.path(device))
    return os.path.basename(real) if os.path.isdir(real) else None


def _read(node: Node, path: str) -> str:
    """One short text of /proc or /sys without its newline; "" if it is not there."""
    return node.read(path).decode(errors="replace").strip()


def _list(node: Node, path: str) -> list[str]:
    try:
        return sorted(os.listdir(node.path(path)))
    except OSError:
        return []
