"""How the kernel treats one disk's requests, from /sys/block/NAME (Linux Documentation/ABI/stable/sysfs-block).

Reading may wait for the disk's queue, which a disk that hangs can hold: not where nothing may hang.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NamedTuple

from pvehook.contract.text import printable
from pvehook.host.node import Node

_TEXT_CHARACTERS: Final = 64


class DiskQueue(NamedTuple):
    name: str
    scheduler: str | None
    """None: not known."""
    schedulers: tuple[str, ...]
    """Those that can be chosen; none for a device that only passes requests on."""
    is_rotational: bool | None
    """As the kernel takes it; for a RAID volume what the controller says. None: not known."""
    throttling_us: int | None
    """Writeback throttling aims at this latency; 0: it is off, or was never set up. None: the device has none."""
    is_throttling_set_up: bool
    write_cache: str | None
    """`write back` or `write through`, as the kernel takes it: whether it sends flushes."""
    model: str
    """Vendor and model of a SCSI disk: `DELL PERC H730 Mini`."""
    driver: str
    """Of its SCSI host: `megaraid_sas`; "" for others."""
    wwid: str
    """A name of a SCSI or NVMe disk that lasts: `naa.6848f690e...`; "" if it has none of a kind that is known to."""


def read_queue(node: Node, name: str) -> DiskQueue:
    """What it does not say is None or empty."""
    queue = f"/sys/block/{name}/queue"
    offered = _text(node, f"{queue}/scheduler").split()
    chosen = next((each.strip("[]") for each in offered if each.startswith("[")), None)
    if chosen is None and len(offered) == 1:
        chosen = offered[0]
    rotational = _text(node, f"{queue}/rotational")
    device = f"/sys/block/{name}/device"
    vendor, model = (printable(_text(node, f"{device}/{each}"), _TEXT_CHARACTERS) for each in ("vendor", "model"))
    return DiskQueue(
        name,
        chosen,
        tuple(each.strip("[]") for each in offered),
        {"0": False, "1": True}.get(rotational),
        *_throttling(node, f"{queue}/wbt_lat_usec"),
        _text(node, f"{queue}/write_cache") or None,
        f"{vendor} {model}".strip(),
        _driver(node, name),
        _wwid(node, name),
    )


def _throttling(node: Node, path: str) -> tuple[int | None, bool]:
    try:
        return int(read_attribute(node, path)), True
    except OSError as error:
        # queue_wb_lat_show in block/blk-sysfs.c: EINVAL where it was not set up when the disk came.
        return 0 if error.errno == errno.EINVAL else None, False
    except ValueError:
        return None, False


def read_attribute(node: Node, path: str) -> bytes:
    """Raises OSError, of which the kernel makes an answer."""
    with open(node.path(path), "rb") as file:
        return file.read()


def _driver(node: Node, name: str) -> str:
    """/sys/block/sda is a link to .../host0/target0:2:0/0:2:0:0/block/sda."""
    parts = os.path.realpath(node.path(f"/sys/block/{name}")).split("/")
    host = next((part for part in reversed(parts) if re.fullmatch(r"host\d+", part)), None)
    return printable(_text(node, f"/sys/class/scsi_host/{host}/proc_name"), _TEXT_CHARACTERS) if host else ""


def _wwid(node: Node, name: str) -> str:
    for path in (f"/sys/block/{name}/wwid", f"/sys/block/{name}/device/wwid"):
        text = _text(node, path)
        if re.fullmatch(r"(naa|eui|uuid)\.[0-9A-Za-z.-]{8,64}", text):
            return text
    return ""


def _text(node: Node, path: str) -> str:
    return node.read(path).decode(errors="replace").strip()
