"""One guest's backup as it stays: what it suffered, what was done, with what. Written at `log-end`, read by reports.

records/encoding.py makes JSON of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import GuestView, HostView, HypervisorView, Verdict

POINTS_KEPT = 120
"""Points of a backup's chart; a longer backup has coarser ones."""


class Point(NamedTuple):
    """A piece of the backup's chart."""

    at_s: float
    """Its end, in seconds since the backup's start."""
    lasted_s: float
    p99_ms: float | None
    """Of all the guest's requests in it; None: it made none."""
    operations: int
    stalled_s: float
    backup_bytes: int
    """How much the backup read in it."""


class Baseline(NamedTuple):
    """The same guest before its backup."""

    lasted_s: float
    source: Literal["before", "history", "since-start"]
    """Just before this backup; the `before` of the last backups; or the mean since the VM was started: no p99."""
    read: Latency
    write: Latency
    flush: Latency
    p99_ms: float | None = None
    """Of all its requests together, as in Point; None: not known."""


class SpeedPoint(NamedTuple):
    """What the governor did and saw. Seconds since the backup's start; speed 0 is unlimited."""

    at_s: float
    speed_bytes_per_s: int
    latency_ms: float | None
    target_ms: float


class Chart(NamedTuple):
    """A backup's course."""

    points: tuple[Point, ...] = ()
    speeds: tuple[SpeedPoint, ...] = ()


class GovernorSummary(NamedTuple):
    """What slowing the backup did."""

    mode: str
    slowed_s: float
    """Because the guest suffered. The seconds in which a busy guest's backup starts slowly are not in it."""
    cost_s: float
    """How much longer the backup took for it, estimated."""
    least_bytes_per_s: int | None
    target_ms: float | None
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    speeds: tuple[SpeedPoint, ...]
    beside: tuple[int, ...] = ()
    """Guests beside it that suffered while it was at its own speed, by which it was steered then."""


class PacerSummary(NamedTuple):
    """What pacing the archive's writeback did."""

    mode: str
    state: str
    """`paced`, or why not."""
    paced_bytes: int
    step_bytes: int
    waited_s: float


class FreezeOutcome(NamedTuple):
    """What became of its freeze."""

    action: str
    consistency: str | None
    frozen_ms: int | None
    why: str
    at_s: float | None = None
    """When it began, in seconds since the backup's start; None: not frozen, or not known."""
    mountpoints: tuple[str, ...] | None = None
    """What of a partly-consistent guest was frozen."""


class IdlePriority(NamedTuple):
    """What idle I/O priority reached: threads read back as idle, of those seen, and whether it can have an effect."""

    threads: int
    confirmed: int
    effect: str


class Versions(NamedTuple):
    """The versions during the backup. A regression is reported when it coincides with a change of one of these."""

    pve_manager: str | None
    qemu: str | None
    """Of the running VM, which may be older than the installed one."""
    kernel: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StallRecord:
    """See the top of this file."""

    node: str
    job: str
    """UPID of vzdump's task."""
    vmid: int
    name: str | None
    vmtype: str | None
    mode: str
    result: str
    """As in GuestRecord."""
    started_s: float
    ended_s: float
    backup_bytes: int | None
    """What the block jobs had to read; None: not seen."""
    verdict: Verdict
    guest: Measured[GuestView]
    hypervisor: Measured[HypervisorView]
    host: Measured[HostView]
    baseline: Measured[Baseline]
    points: tuple[Point, ...]
    freeze: FreezeOutcome | None
    idle: IdlePriority
    governor: GovernorSummary | None
    pacer: PacerSummary | None
    admitted_by: str
    """Why the window let it through."""
    versions: Versions
    sampler_cpu_s: float
    """What sampling cost."""
    window_closes_s: float | None = None
    """When the window that let it through closes, in seconds since the epoch; None: something else let it through, the
    window never closes, or it was closed already when a restarted daemon went on."""

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s
