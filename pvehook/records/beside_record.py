"""What one guest suffered beside the backups of others in one run, as it stays. Written when the run ends.

A guest's own backup has a StallRecord. This is the other part of its night; a guest that was in no job has it too.
records/encoding.py makes JSON of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.rules.patients import Exposure
from pvehook.rules.stalls import Severity

LOADS_KEPT = 20
"""The worst of them; what is left out is in the totals."""
MARKS_KEPT = 120


class BesideBackup(NamedTuple):
    """Its part beside one guest's backup."""

    vmid: int
    """Whose backup."""
    vmtype: str | None
    exposure: Exposure
    watched_s: float
    stalled_s: float
    """In which a disk request that took over 1 s was in flight, a lower bound; of a container: in which all of it
    waited for a disk."""
    slowed_s: float
    """The same for 100 ms; of a container: in which some of it waited."""
    slowed_backup_s: float = 0.0
    """For so long that backup was slowed for this guest."""


class Mark(NamedTuple):
    """A piece of time in which it suffered, for the night's picture."""

    at_s: float
    """Its end, in seconds since the record's start."""
    lasted_s: float
    stalled_s: float
    slowed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideRecord:
    """See the top of this file."""

    node: str
    job: str
    """UPID of vzdump's task."""
    vmid: int
    name: str | None
    vmtype: str
    """`qemu` or `lxc`."""
    started_s: float
    """When it was first watched in this run, in seconds since the epoch."""
    ended_s: float
    watched_s: float
    """Beside backups of others; its own backup and the time between backups are not in it."""
    severity: Severity
    stalled_s: Measured[float]
    slowed_s: Measured[float]
    p99_ms: Measured[float]
    """Of its requests beside the backups of others."""
    baseline_p99_ms: Measured[float]
    seen_by: Literal["requests", "block-devices", "pressure"]
    """How it was watched: QEMU's counters of its requests; counters of its block devices; a container's pressure."""
    unknown: tuple[str, ...]
    """Why it is not known what it shares, where that is so."""
    beside: tuple[BesideBackup, ...]
    """The worst first, those without any suffering left out."""
    marks: tuple[Mark, ...]
