"""Where a guest's volume or a dump directory is, by Proxmox's storage configuration. Only local devices are looked at.

Source of paths and names: the plugins in PVE/Storage/ of pve-storage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from pvehook.contract.disks import Location
from pvehook.contract.guest_config import Volume, parse_container, parse_vm
from pvehook.contract.section_config import Section, find_section
from pvehook.contract.storage_config import parse_storages
from pvehook.errors import NodeError
from pvehook.host.block import block_device_at, locate, locate_volume_group, locate_zpool, loop_device_over
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader

T = TypeVar("T")

_NETWORK_TYPES = ("nfs", "cifs", "cephfs", "rbd", "glusterfs", "iscsi", "iscsidirect", "pbs", "zfs", "esxi")
"""`zfs` is ZFS over iSCSI; a local pool is `zfspool`."""

READ_DEADLINE_S = 2.0
LOOK_DEADLINE_S = 8.0
"""zpool alone may take 5 s (host/block.py)."""

STORAGE_CONFIG = "/etc/pve/storage.cfg"


class Backup(NamedTuple):
    """One guest's backup, as far as its disks are asked for."""

    vmid: int
    vmtype: str | None
    mode: str
    storeid: str | None
    dumpdir: str | None


def read_storages(node: Node, reader: TimelyReader) -> list[Section]:
    """The cluster's storages. Raises NodeError: no answer in time."""
    return parse_storages(reader.text(node.path(STORAGE_CONFIG), READ_DEADLINE_S) or "")


def volumes_of(node: Node, reader: TimelyReader, backup: Backup) -> tuple[Volume, ...]:
    """All volumes in the guest's configuration. Raises NodeError: it is not there, or does not answer in time."""
    kind, parse = ("lxc", parse_container) if backup.vmtype == "lxc" else ("qemu-server", parse_vm)
    path = f"/etc/pve/{kind}/{backup.vmid}.conf"
    text = reader.text(node.path(path), READ_DEADLINE_S)
    if text is None:
        raise NodeError(f"{path} is not there")
    return parse(text).volumes


def within_look(reader: TimelyReader, what: str, find: Callable[[], T]) -> T:
    """In the reader's thread: a stat below a storage that hangs must not take the caller with it. Raises NodeError."""
    try:
        return reader.within(LOOK_DEADLINE_S, what, find)
    except (OSError, ValueError) as error:
        raise NodeError(f"{what}: {error}") from error


def locate_volume(node: Node, volid: str, storages: Sequence[Section]) -> Location:
    """The disks under one volume, given as `STORAGE:NAME` or as an absolute path."""
    if volid.startswith("/"):
        return locate(node, volid)
    storage_id, colon, name = volid.partition(":")
    storage = find_section(storages, storage_id)
    if not colon or not name:
        return Location("unknown", (), f"{volid or 'an empty volume id'} is no volume")
    if storage is None:
        return Location("unknown", (), f"storage {storage_id} is not configured")
    where = _locate_in(node, storage, name)
    return where._replace(detail=f"{storage.type} storage {storage.id}: {where.detail}")


def device_of_volume(node: Node, volid: str, storages: Sequence[Section]) -> str | None:
    """The block device that a running guest has its volume by, `dm-7`: a logical volume, a zvol, a mapped RBD image, a
    loop device over a container's image. None: it has none, as a VM's image in a directory or a ZFS file system."""
    if volid.startswith("/"):
        return block_device_at(node, volid)
    storage_id, _, name = volid.partition(":")
    storage = find_section(storages, storage_id)
    if storage is None or not name:
        return None
    options = storage.properties
    image = name.rsplit("/", 1)[-1]
    if storage.type in ("lvm", "lvmthin"):
        return block_device_at(node, f"/dev/{options.get('vgname')}/{image}")
    if storage.type == "zfspool":
        return block_device_at(node, f"/dev/zvol/{options.get('pool')}/{image}")
    if storage.type == "rbd":
        return _mapped_rbd(node, options.get("pool", "rbd"), options.get("namespace"), image)
    images = directory_of(storage, "images", "images")
    return loop_device_over(node, f"{images}/{name}") if images is not None else None


def locate_storage(node: Node, storage_id: str, storages: Sequence[Section]) -> Location:
    """The disks under a whole storage: for a volume that is still to be made there."""
    storage = find_section(storages, storage_id)
    if storage is not None and storage.type in ("lvm", "lvmthin") and "vgname" in storage.properties:
        return locate_volume_group(node, storage.properties["vgname"])
    return locate_volume(node, f"{storage_id}:new", storages)


def locate_dump(node: Node, dumpdir: str | None, storeid: str | None, storages: Sequence[Section]) -> Location:
    """The disks under the dump directory. A PBS has no `dumpdir`, a job with --dumpdir has no `storeid`."""
    storage = find_section(storages, storeid) if storeid else None
    if storage and storage.type in _NETWORK_TYPES:
        return Location("network", (), f"{storage.type} storage {storage.id}")
    path = dumpdir or (directory_of(storage, "backup", "dump") if storage else None)
    if path is None:
        return Location("unknown", (), f"storage {storeid or '(none)'} tells no dump directory")
    if not path.startswith("/"):
        return Location("unknown", (), f"{path} is relative to the directory in which vzdump was started")
    # vzdump makes the directory when it is missing, on the file system of the one above.
    return locate(node, path, if_missing=os.path.dirname(path.rstrip("/")))


def _locate_in(node: Node, storage: Section, name: str) -> Location:
    options = storage.properties
    if storage.type in _NETWORK_TYPES:
        return Location("network", (), "reached over the network")
    if storage.type in ("dir", "btrfs") and "path" in options:
        # `101/vm-101-disk-0.qcow2`; a linked clone names its base first: `100/base.qcow2/101/vm.qcow2`.
        images = directory_of(storage, "images", "images") or options["path"]
        vmid = name.split("/")[-2] if "/" in name else ""
        return locate(node, f"{images}/{vmid}", if_missing=images)
    if storage.type in ("lvm", "lvmthin") and "vgname" in options:
        group = options["vgname"]
        volume = f"/dev/{group}/{name.rsplit('/', 1)[-1]}"
        where = locate(node, volume)
        return where if where.kind != "unknown" else locate_volume_group(node, group)
    if storage.type == "zfspool" and "pool" in options:
        return locate_zpool(node, options["pool"].split("/")[0])
    return Location("unknown", (), "pvehook does not know where this type keeps its volumes")


def _mapped_rbd(node: Node, pool: str, namespace: str | None, image: str) -> str | None:
    """Proxmox's own udev rule names /dev/rbd-pve/CLUSTER/POOL/[NAMESPACE/]IMAGE, Ceph's /dev/rbd/POOL/... . Source:
    `get_rbd_dev_path` in PVE/Storage/RBDPlugin.pm."""
    below = "/".join((pool, namespace, image) if namespace else (pool, image))
    try:
        clusters = [f"/dev/rbd-pve/{cluster}" for cluster in sorted(os.listdir(node.path("/dev/rbd-pve")))]
    except OSError:
        clusters = []
    devices = (block_device_at(node, f"{directory}/{below}") for directory in (*clusters, "/dev/rbd"))
    return next((device for device in devices if device is not None), None)


def directory_of(storage: Section, content: str, default: str) -> str | None:
    """Where a directory storage keeps one kind of content; `content-dirs images=vm,backup=b` renames them."""
    path = storage.properties.get("path")
    if path is None:
        return None
    pairs = [pair.partition("=") for pair in storage.properties.get("content-dirs", "").split(",")]
    renamed = {key.strip(): directory.strip() for key, _, directory in pairs}
    return os.path.join(path, renamed.get(content, default))
