"""What QEMU counts of a VM's disk requests, and the histograms of how long they took.

    [{"device": "drive-scsi0", "qdev": "scsi0", "node-name": "#block357",
      "stats": {"rd_operations": 7, "rd_bytes": 10240, "rd_total_time_ns": 6490537, ...,
                "rd_latency_histogram": {"boundaries": [1000000, 10000000], "bins": [6, 1, 0]}, ...},
      "parent": {...}}, ...]

`query-blockstats` of QEMU (qapi/block-core.json); a histogram stands there only while it is armed. A disk is known by
its `qdev`: `device` is empty with `-blockdev`, node names change during a backup (facts/qemu.md). What has no `qdev` is
no disk of the guest's. `query-block`, which knows CD drives, is not used: it opens the image files, and one on a
network storage that hangs would hold up the VM.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from pvehook.contract.latency import (
    REQUEST_KINDS,
    DiskCounters,
    Histogram,
    RequestCounters,
    RequestKind,
    our_boundaries_ns,
)
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, Refused
from pvehook.guest.qmp import DISKS_REPLY_LIMIT_BYTES, QmpConnection
from pvehook.guest.validate import integer, items, mapping, numbers, text

DISKS_LIMIT: Final = 256

_QDEV: Final = re.compile(r"(?:/machine/peripheral/)?(?P<name>[^/]+)(?:/virtio-backend)?")
"""A device with an id, as Proxmox gives one to every disk. A firmware's flash and a board's own drives have none."""
_CD_TYPES: Final = ("ide-cd", "scsi-cd")
_OURS: Final = our_boundaries_ns()
_OURS_AS_SENT: Final = list(_OURS)
_PREFIXES: Final[Mapping[RequestKind, str]] = {"read": "rd", "write": "wr", "flush": "flush"}


class Arming(NamedTuple):
    """What became of the histograms of a VM's disks. Each disk, by its qdev, is in one of the three."""

    armed: tuple[str, ...]
    """They count with our boundaries now, or did already: then a pvehook that died had armed them."""
    theirs: tuple[str, ...]
    """An administrator has armed one with boundaries of his own: left alone."""
    refused: tuple[tuple[str, str], ...]
    """QEMU would not, and what it said."""


def read_disks(qmp: QmpConnection, deadline: Deadline, known: Collection[str] = ()) -> tuple[DiskCounters, ...]:
    """The counters of the VM's hard disks, in QEMU's order. CD drives and drives without a medium are left out. `known`
    are qdevs of an earlier reading: whether they are CD drives is not queried again."""
    source = qmp.source("query-blockstats")
    answer = qmp.execute("query-blockstats", deadline=deadline, limit_bytes=DISKS_REPLY_LIMIT_BYTES)
    reply = items(answer, source=source)
    if len(reply) > DISKS_LIMIT:
        raise BadReply(f"{source}: {len(reply)} drives, more than {DISKS_LIMIT}")
    disks = (_disk(entry, source=source) for entry in reply)
    return tuple(disk for disk in disks if disk and (disk.qdev in known or not _is_cd(qmp, disk, deadline)))


def arm_histograms(qmp: QmpConnection, disks: Iterable[DiskCounters], deadline: Deadline) -> Arming:
    """Lets QEMU count, with our boundaries, how long the requests to each disk take. `disks` is a reading just made."""
    armed: list[str] = []
    theirs: list[str] = []
    refused: list[tuple[str, str]] = []
    for disk in disks:
        boundaries = _boundaries(disk)
        if boundaries - {None, _OURS}:
            theirs.append(disk.qdev)
            continue
        try:
            if None in boundaries:
                _set_histograms(qmp, disk.qdev, _OURS, deadline)
            armed.append(disk.qdev)
        except Refused as refusal:
            refused.append((disk.qdev, str(refusal)))
    return Arming(tuple(armed), tuple(theirs), tuple(refused))


def disarm_histograms(qmp: QmpConnection, qdevs: Collection[str], deadline: Deadline) -> tuple[str, ...]:
    """Removes the histograms of those `qdevs` that still have our boundaries and no others; returns these."""
    ours = tuple(
        disk.qdev
        for disk in read_disks(qmp, deadline, qdevs)
        if disk.qdev in qdevs and _boundaries(disk) == {_OURS}
    )
    for qdev in ours:
        _set_histograms(qmp, qdev, None, deadline)
    return ours


def _boundaries(disk: DiskCounters) -> set[tuple[int, ...] | None]:
    """None: of one that is not armed."""
    histograms = (disk.read.histogram, disk.write.histogram, disk.flush.histogram)
    return {histogram and histogram.boundaries_ns for histogram in histograms}


def _set_histograms(qmp: QmpConnection, qdev: str, boundaries_ns: tuple[int, ...] | None, deadline: Deadline) -> None:
    arguments: dict[str, object] = {"id": qdev}
    if boundaries_ns is not None:  # without any, QEMU removes all of the device's histograms
        arguments["boundaries"] = list(boundaries_ns)
    qmp.execute("block-latency-histogram-set", arguments, deadline=deadline)


def _is_cd(qmp: QmpConnection, disk: DiskCounters, deadline: Deadline) -> bool:
    if "/" in disk.qdev:
        return False  # virtio-blk, and it has no CD drives
    wanted = {"path": f"/machine/peripheral/{disk.qdev}", "property": "type"}
    return qmp.execute("qom-get", wanted, deadline=deadline) in _CD_TYPES


def _disk(entry: Mapping[str, object], *, source: str) -> DiskCounters | None:
    """None for what is no disk of the guest's, and for a drive without a medium."""
    if "qdev" not in entry or "node-name" not in entry:
        return None
    qdev = text(entry, "qdev", source=source)
    device = _QDEV.fullmatch(qdev)
    if device is None:
        return None
    stats = mapping(entry.get("stats"), source=f"{source}: `stats`")
    counters = {kind: _requests(stats, _PREFIXES[kind], source=source) for kind in REQUEST_KINDS}
    return DiskCounters(qdev=qdev, name=printable(device["name"], 40), **counters)


def _requests(stats: Mapping[str, object], prefix: str, *, source: str) -> RequestCounters:
    histogram = f"{prefix}_latency_histogram"
    return RequestCounters(
        operations=integer(stats, f"{prefix}_operations", source=source),
        bytes=0 if prefix == "flush" else integer(stats, f"{prefix}_bytes", source=source),
        total_time_ns=integer(stats, f"{prefix}_total_time_ns", source=source),
        histogram=_histogram(stats.get(histogram), source=f"{source}: `{histogram}`"),
    )


def _histogram(value: object, *, source: str) -> Histogram | None:
    """None for one that is not armed, and for one without boundaries, which counts nothing."""
    if value is None:
        return None
    fields = mapping(value, source=source)
    boundaries_ns = _OURS  # one tuple for all readings: those of hundreds of guests are kept
    if fields.get("boundaries") != _OURS_AS_SENT:
        boundaries_ns = numbers(fields.get("boundaries"), source=f"{source}: `boundaries`")
    counts = numbers(fields.get("bins"), source=f"{source}: `bins`")
    if len(counts) != len(boundaries_ns) + 1:
        raise BadReply(f"{source}: {len(boundaries_ns)} boundaries and {len(counts)} bins")
    pairs = zip((0, *boundaries_ns), boundaries_ns, strict=False)
    if boundaries_ns is not _OURS and any(lower >= upper for lower, upper in pairs):
        raise BadReply(f"{source}: the boundaries do not ascend")
    return Histogram(boundaries_ns, counts) if boundaries_ns else None
