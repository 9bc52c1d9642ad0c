"""One guest's backup, as it is kept while it runs and told when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class GuestRecord:
    """One guest's backup: what vzdump told us and what was done."""

    vmid: int
    mode: str
    vmtype: str | None
    """`qemu`, `lxc`, or None for a guest that vzdump itself does not know."""
    name: str | None
    started_s: float
    target: str | None = None
    admitted_by: str = ""
    """Why the window let it through: admission's reason."""
    result: str = "running"
    """running, ok, failed, refused, cancelled, or worker-died."""
    ended_s: float | None = None
    shut_at_s: float | None = None
    """When the window shut on it while it ran."""
    shut_plan: str = ""
    """What follows from that: `running_guest: ...`."""
    cancel_sent: bool = False
    idle: dict[str, list[int]] = field(default_factory=dict)
    """Command -> [processes, threads seen, threads read back as idle], summed over the processes."""
    not_idle: list[str] = field(default_factory=list)
    """What could not be set, with the kernel's reason."""
    restored: list[str] = field(default_factory=list)
    """Processes of this guest that were found at idle and put back to normal."""
    effect: list[str] = field(default_factory=list)
    """Sentences: whether idle priority can have an effect."""
    effect_in_short: str = "unknown"
