"""One guest's backup: the run state while it runs, and what is reported when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pvehook.contract.text import counted, printable

TurnState = Literal["new", "admitted", "prepared", "armed", "archiving", "over", "refused", "accounted"]
"""How far a guest's turn is; daemon/guest_turn.py says what each means."""

Result = Literal["running", "ok", "failed", "refused", "cancelled", "worker-died", "unknown"]
"""How a guest's backup ended. unknown: its last phases were answered without the daemon, so it may well be there."""


@dataclass(slots=True)
class FreezeSummary:
    """What was decided about a VM's freeze, and what became of it."""

    action: str
    """none, freeze or veto."""
    reasons: list[str]
    has_list: bool = False
    """Some filesystems are to be frozen, and not all."""
    mountpoints: list[str] | None = None
    """Which ones, for a restarted daemon; None where the list is too long to be kept."""
    is_partial: bool = False
    """What is not in the list could be frozen, and is not."""
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
    """filesystem-consistent, partly-consistent (what is in the list), crash-consistent, or left-to-pve; None: not known
    yet, or not applicable."""
    why: str = ""
    frozen_ms: int | None = None
    frozen_at_s: float | None = None
    """When the freeze was sent, in seconds since the epoch; right to a few milliseconds."""
    filesystems_frozen: int | None = None
    filesystems_thawed: int | None = None
    waited_for_pve_ms: int | None = None
    hung: bool = False

    def in_words(self) -> str:
        """How it ended, for people, once that is known."""
        text = f"{consistency_in_words(self.consistency or 'not known', self.mountpoints)}: {self.why}"
        if self.frozen_ms is not None:
            text += f"; frozen for {self.frozen_ms} ms"
        if self.filesystems_frozen is not None and self.filesystems_frozen != self.filesystems_thawed:
            thawed = self.filesystems_thawed
            reported = "how many were thawed was not reported" if thawed is None else f"{thawed} thawed"
            text += f"; {counted(self.filesystems_frozen, 'filesystem')} frozen, {reported}"
        return text


def consistency_in_words(consistency: str, mountpoints: Sequence[str] | None) -> str:
    """`crash-consistent`; of a freeze of a list `partly-consistent: only /data`."""
    if consistency != "partly-consistent":
        return consistency
    return f"{consistency}: only {printable(', '.join(mountpoints), 100) if mountpoints else 'a long list'}"


@dataclass(slots=True)
class GuestRecord:
    """One guest's backup: what vzdump announced and what was done."""

    vmid: int
    mode: str
    vmtype: str | None
    """`qemu`, `lxc`, or None for a guest that vzdump itself does not know."""
    name: str | None
    started_s: float
    started_steady_s: float = 0.0
    """The same on the clock that nobody sets."""
    target: str | None = None
    admitted_by: str = ""
    """Why the window let it through: admission's reason."""
    why_refused: str = ""
    state: TurnState = "new"
    result: Result = "running"
    ended_s: float | None = None
    """Its start plus how long it took, so that a clock that was set in between makes no wrong duration."""
    closed_at_s: float | None = None
    """When the window closed while its backup ran."""
    closed_plan: str = ""
    """What follows from that: `running_guest: ...`."""
    cancel_sent: bool = False
    idle: dict[str, list[int]] = field(default_factory=dict)
    """Command -> [processes, threads seen, threads read back as idle], summed over the processes."""
    not_idle: list[str] = field(default_factory=list)
    """What could not be set, with the kernel's reason."""
    restored: list[str] = field(default_factory=list)
    """Processes of this guest that were found in the idle class and restored."""
    effect: list[str] = field(default_factory=list)
    """Sentences: whether idle priority can have an effect."""
    effect_in_short: str = "not found out in time"
    freeze: FreezeSummary | None = None
    """None: not applicable, or pre-stop was not seen."""
    seen: dict[str, Any] | None = None
    """Where the counting of its stalls began (watch/backup_sampler.py), as JSON, for a restarted daemon."""
