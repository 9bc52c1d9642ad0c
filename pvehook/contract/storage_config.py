"""Proxmox's storages: /etc/pve/storage.cfg, and what Proxmox adds to it.

Source: `parse_config` in PVE/Storage/Plugin.pm and the plugins beside it. The storage `local` is always there: a
directory under /var/lib/vz on every node, whatever the file says of its type or path.
"""

from __future__ import annotations

from collections.abc import Sequence

from pvehook.contract.guest_config import boolean, split_list
from pvehook.contract.section_config import Section, find_section, parse_sections

LOCAL_PATH = "/var/lib/vz"
_LOCAL = {"path": LOCAL_PATH, "content": "backup,images,iso,rootdir,snippets,vztmpl"}

_DEFAULT_CONTENT = {
    **dict.fromkeys(("dir", "btrfs", "lvm", "lvmthin", "zfspool"), "images,rootdir"),
    **dict.fromkeys(("nfs", "cifs", "glusterfs", "rbd", "zfs", "iscsi", "iscsidirect"), "images"),
    **dict.fromkeys(("pbs", "cephfs"), "backup"),
}
"""What a storage is for when it does not say, as far as backups are concerned."""


def parse_storages(text: str) -> list[Section]:
    """All storages as Proxmox takes them."""
    storages = parse_sections(text)
    local = find_section(storages, "local")
    others = [storage for storage in storages if storage.id != "local"]
    if local is None or local.type != "dir" or local.properties.get("path", LOCAL_PATH) != LOCAL_PATH:
        return [Section("dir", "local", _LOCAL), *others]
    options = {**local.properties, "path": LOCAL_PATH}
    options.pop("nodes", None)
    return [Section("dir", "local", options), *others]


def why_no_backup(storages: list[Section], storage_id: str, node_name: str) -> str | None:
    """Why Proxmox fails a backup to this storage; None: nothing in its configuration speaks against it."""
    if why := why_not_usable(storages, storage_id, node_name):
        return why
    storage = find_section(storages, storage_id)
    content = content_of(storage) if storage is not None else ""
    if "backup" not in split_list(content):
        return f"storage '{storage_id}' does not hold backups (content {content})"
    return None


def why_not_usable(storages: Sequence[Section], storage_id: str, node_name: str) -> str | None:
    """Why Proxmox uses this storage for nothing on this node; None: nothing in its configuration speaks against it."""
    storage = find_section(storages, storage_id)
    if storage is None:
        return f"storage '{storage_id}' does not exist"
    options = storage.properties
    if boolean(options.get("disable")):
        return f"storage '{storage_id}' is disabled"
    if node_name not in split_list(options.get("nodes", node_name)):
        return f"storage '{storage_id}' is not available on node '{node_name}'"
    return None


def content_of(storage: Section) -> str:
    """What it is for, as far as backups are concerned: `images,rootdir`."""
    return storage.properties.get("content", _DEFAULT_CONTENT.get(storage.type, "backup"))


def can_snapshot_container(storage: Section | None, volume: str) -> bool | None:
    """Whether a container's volume can be snapshotted where it is; None: not known. A directory or a network file
    system keeps a container's volume as a raw image, which has no snapshots."""
    if storage is None:
        return None
    if storage.type in ("lvmthin", "zfspool", "rbd"):
        return True
    if storage.type == "btrfs":
        return ".qcow2" not in volume
    return False if storage.type in ("dir", "nfs", "cifs", "cephfs", "glusterfs", "lvm") else None
