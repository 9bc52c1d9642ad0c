"""The name of a backup that vzdump left in a dump directory.

    vzdump-qemu-101-2026_11_28-02_00_00.vma.zst      when its backup began, in the node's local time

Source: `archive_info` in PVE/Storage.pm and the formats in PVE/Storage/Plugin.pm of pve-storage. While it is written it
is called `.dat`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, NamedTuple

_NAME: Final = re.compile(
    r"vzdump-(qemu|lxc)-([1-9]\d{2,8})-(\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d)"
    r"\.(?:tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2))?)",
    re.ASCII,
)


class ArchiveName(NamedTuple):
    vmtype: str
    vmid: int
    began: datetime
    """The node's wall clock, without a zone."""


def parse_archive_name(name: str) -> ArchiveName | None:
    """None: it is no finished backup with a name of Proxmox's own."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return ArchiveName(match[1], int(match[2]), datetime.strptime(match[3], "%Y_%m_%d-%H_%M_%S"))  # noqa: DTZ007
    except ValueError:  # there is no such day
        return None
