"""How a VM's disks are attached, by its options (contract/guest_config.py).

    scsihw: virtio-scsi-single
    scsi0: local-lvm:vm-101-disk-0,aio=native,cache=writeback,iothread=1,size=32G

Source: `%drive_options` and `print_drivedevice_full` of qemu-server. What is not set is Proxmox's default: no cache
(`cache=none`), io_uring except where it is known to hang (`storage_allows_io_uring_default`), no I/O thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pvehook.contract.guest_config import boolean, property_string
from pvehook.contract.section_config import Section

SINGLE: Final = "virtio-scsi-single"
_CONTROLLER_DEFAULT: Final = "lsi"
_DISK: Final = re.compile(r"((?:scsi|virtio|ide|sata))\d+")


class VmDisk(NamedTuple):
    """One disk of a VM; CD drives, EFI and TPM disks are none."""

    key: str
    """`scsi0`."""
    text: str
    """The option as it is: a volume and its settings."""
    volume: str
    bus: str
    """`scsi`, `virtio`, `ide` or `sata`."""
    controller: str
    """`scsihw`, which a disk on another bus does not have."""
    has_io_thread: bool
    """It is set, and the controller gives it one."""
    cache: str | None
    aio: str | None

    @property
    def storage_id(self) -> str:
        """Empty for an absolute path."""
        return "" if self.volume.startswith("/") else self.volume.partition(":")[0]

    def changed(self, **settings: str | None) -> str:
        """The option with these settings; None takes one away."""
        parts = [part for part in self.text.split(",") if part.strip().partition("=")[0] not in settings]
        return ",".join([*parts, *(f"{key}={value}" for key, value in settings.items() if value is not None)])


def vm_disks(options: Mapping[str, str]) -> tuple[VmDisk, ...]:
    """In the order of the configuration."""
    controller = options.get("scsihw", _CONTROLLER_DEFAULT)
    found = []
    for key, text in options.items():
        match = _DISK.fullmatch(key)
        if match is None:
            continue
        volume, settings = property_string(text, default_key="file", alias="volume")
        if settings.get("media") == "cdrom" or volume in ("cdrom", "none", ""):
            continue
        bus = match[1]
        can = bus == "virtio" or (bus == "scsi" and controller == SINGLE)
        threaded = can and boolean(settings.get("iothread")) is True
        found.append(VmDisk(key, text, volume, bus, controller, threaded, settings.get("cache"), settings.get("aio")))
    return tuple(found)


def why_no_io_uring(storage: Section | None, cache: str | None) -> str | None:
    """Why Proxmox does not use io_uring by default on this storage; None: it does."""
    if storage is None:
        return None
    if storage.type == "rbd" and boolean(storage.properties.get("krbd")) and cache not in (None, "none", "directsync"):
        return "it hangs on krbd with a cache"
    return {"lvm": "it hangs on LVM", "cifs": "it causes problems on CIFS"}.get(storage.type)
