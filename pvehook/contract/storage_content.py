"""What Proxmox lists of a storage's backups.

    {"volid": "pbs:backup/vm/101/2026-11-28T01:00:00Z", "content": "backup", "vmid": 101, "ctime": 1764291600, ...}

Source: `index` in PVE/API2/Storage/Content.pm of pve-storage. `ctime` is when the backup began.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_KIND: Final = re.compile(r"(?:vzdump-|backup/)(qemu|lxc|vm|ct)[-/]")
_KINDS: Final = {"qemu": "qemu", "vm": "qemu", "lxc": "lxc", "ct": "lxc"}


class StoredBackup(NamedTuple):
    vmid: int
    began_s: float
    """Since the epoch."""
    vmtype: str | None


def parse_content(listed: object) -> list[StoredBackup]:
    """The backups in the list; what is none of a guest, or lacks its time, is left out. Raises ValueError: no list."""
    if not isinstance(listed, list):
        raise ValueError("it is no list")
    return [backup for each in listed if isinstance(each, dict) and (backup := _parse(each)) is not None]


def _parse(entry: dict[object, object]) -> StoredBackup | None:
    numbers = []
    for key in ("vmid", "ctime"):
        text = str(entry.get(key))  # Perl writes a number as a text where it was used as one
        if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
            return None
        numbers.append(int(text))
    kind = _KIND.search(str(entry.get("volid", "")))
    return StoredBackup(numbers[0], float(numbers[1]), _KINDS[kind[1]] if kind else None)
