"""One guest's backup, as it is kept while it runs and told when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class FreezeSummary:
    """What was decided about a VM's freeze, and what became of it."""

    action: str
    """none, freeze or veto."""
    reasons: list[str]
    mountpoints: list[str] | None
    """What is to be frozen; None: all, or nothing."""
    alert: str | None = None
    was_thawed: bool = False
    """The agent said so before the backup: whatever is frozen later was frozen by this run."""
    is_windows: bool = False
    """VSS lets go of a frozen Windows earlier than other systems do."""
    in_archive: bool = False
    """post-restart has passed: PVE may freeze from here on."""
    pre_flush: str | None = None
    pre_flush_ms: int | None = None
    consistency: str | None = None
    """filesystem-consistent, crash-consistent, or left-to-pve; None: not known yet, or no question."""
    why: str = ""
    frozen_ms: int | None = None
    frozen_at_s: float | None = None
    """When the freeze was sent, in seconds since the epoch; right to a few milliseconds."""
    filesystems_frozen: int | None = None
    filesystems_thawed: int | None = None
    waited_for_pve_ms: int | None = None
    hung: bool = False

    def in_words(self) -> str:
        """How it ended, for people."""
        if self.consistency is None:
            return f"freeze: {self.action}"
        text = f"{self.consistency}: {self.why}"
        if self.frozen_ms is not None:
            text += f"; frozen for {self.frozen_ms} ms"
        if self.filesystems_frozen is not None and self.filesystems_frozen != self.filesystems_thawed:
            text += f"; {self.filesystems_frozen} filesystems frozen, {self.filesystems_thawed} thawed"
        return text


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
    """running, ok, failed, refused, cancelled, worker-died, or unknown (its last phases were answered without us)."""
    ended_s: float | None = None
    closed_at_s: float | None = None
    """When the window closed on it while it ran."""
    closed_plan: str = ""
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
    effect_in_short: str = "not looked up in time"
    freeze: FreezeSummary | None = None
    """None: freezing was no question, or pre-stop was not seen."""
    seen: dict[str, Any] | None = None
    """Where the counting of its stalls began (job/guest_night.py), as JSON: a restarted daemon goes on from there."""
