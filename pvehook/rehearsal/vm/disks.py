"""The disks of a simulated VM as QMP shows them: counters and histograms of the requests that somebody lets happen."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from typing import Final

from pvehook.contract.latency import RequestKind
from pvehook.rehearsal.vm.backup_job import TOTAL_BYTES
from pvehook.rehearsal.vm.sockets import DenialError

EMPTY_CD_DRIVE: Final[Mapping[str, object]] = {"device": "drive-ide2", "qdev": "ide2", "stats": {}}
"""An entry of `query-blockstats` that Proxmox's guests have; it has no node, and its counters are left out."""

_PREFIXES: Final[Mapping[RequestKind, str]] = {"read": "rd", "write": "wr", "flush": "flush"}


class SimulatedDisk:
    """One hard disk, called `scsi0` or `virtio0` as Proxmox calls it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.qdev = f"/machine/peripheral/{name}/virtio-backend" if name.startswith("virtio") else name
        self._counts = {
            **{f"{prefix}_operations": 0 for prefix in _PREFIXES.values()},
            **{f"{prefix}_total_time_ns": 0 for prefix in _PREFIXES.values()},
            "rd_bytes": 0, "wr_bytes": 0,
        }
        self._histograms: dict[str, tuple[list[int], list[int]]] = {}
        """Boundaries and bins, by the counters' prefix."""

    @property
    def has_histograms(self) -> bool:
        return bool(self._histograms)

    def serve(self, kind: RequestKind, latency_ms: float, count: int, size_bytes: int) -> None:
        """`count` requests of the guest were completed, each after `latency_ms`."""
        prefix = _PREFIXES[kind]
        latency_ns = round(latency_ms * 1_000_000)
        self._counts[f"{prefix}_operations"] += count
        self._counts[f"{prefix}_total_time_ns"] += count * latency_ns
        if kind != "flush":
            self._counts[f"{prefix}_bytes"] += count * size_bytes
        if prefix in self._histograms:
            boundaries, bins = self._histograms[prefix]
            bins[bisect.bisect_right(boundaries, latency_ns)] += count  # a bin holds its lower end, not its upper

    def set_histograms(self, arguments: Mapping[str, object]) -> None:
        """`block-latency-histogram-set`: without any boundaries all are removed; a kind's own come first."""
        if not arguments.keys() & {"boundaries", *(f"boundaries-{kind}" for kind in _PREFIXES)}:
            self._histograms.clear()
        for kind, prefix in _PREFIXES.items():
            wanted = arguments.get(f"boundaries-{kind}", arguments.get("boundaries"))
            if wanted is None:
                continue
            if not isinstance(wanted, list) or any(low >= high for low, high in itertools.pairwise([0, *wanted])):
                raise DenialError("GenericError", f"Device '{arguments['id']}' set {kind} boundaries fail")
            self._histograms[prefix] = (wanted, [0] * (len(wanted) + 1))

    def as_block(self) -> dict[str, object]:
        """Its entry of `query-block`."""
        image = {"filename": f"/dev/pve/vm-101-{self.name}", "format": "raw", "virtual-size": TOTAL_BYTES}
        inserted = {"node-name": f"#block-{self.name}", "drv": "raw", "ro": False, "image": image}
        names = {"device": f"drive-{self.name}", "qdev": self.qdev}
        return {**names, "io-status": "ok", "removable": False, "inserted": inserted}

    def as_stats(self) -> dict[str, object]:
        """Its entry of `query-blockstats`."""
        histograms = {
            f"{prefix}_latency_histogram": {"boundaries": list(boundaries), "bins": list(bins)}
            for prefix, (boundaries, bins) in self._histograms.items()
        }
        names = {"device": f"drive-{self.name}", "qdev": self.qdev, "node-name": f"#block-{self.name}"}
        return {**names, "stats": {**self._counts, **histograms}}
