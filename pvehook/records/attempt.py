"""One guest's turn in one vzdump run, whatever became of it: also refused, failed and cancelled ones."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

AttemptResult = Literal["ok", "failed", "refused", "cancelled", "worker-died", "unknown"]
"""Of a guest with `ok` there is a good backup; unknown: its end was not seen, so there may be one."""

Trigger = Literal["schedule", "missed", "hand", "unknown"]
"""Who started the run: its schedule; Proxmox at boot, for one that was missed while the node was off (repeat-missed);
a person."""

RESULTS: Final[tuple[str, ...]] = get_args(AttemptResult)
TRIGGERS: Final[tuple[str, ...]] = get_args(Trigger)


class Attempt(NamedTuple):
    """Times are seconds since the epoch."""

    vmid: int
    started_s: float
    """When its turn came; of a run that was refused as a whole, when that was."""
    ended_s: float
    node: str
    job: str
    """UPID of vzdump's task."""
    job_id: str | None
    """In jobs.cfg; None: started by hand, by cron, or not known."""
    trigger: Trigger
    name: str | None
    vmtype: str | None
    mode: str | None
    result: AttemptResult
    reason: str
    """Why there is no good backup, for people, in one line; empty for `ok`."""
    copied_bytes: float | None = None
    """What its backup read; None: not seen."""
    cost_s: float | None = None
    """How much longer it took because it was slowed, estimated; None: not seen."""
    expected_s: float | None = None
    """How long it was expected to take when its run began; None: there was no forecast."""
    expected_least_s: float | None = None
    expected_most_s: float | None = None
    """Between these nine of ten are."""
    expected_end_s: float | None = None
    """When it was expected to end, by the forecast of its run."""

    @property
    def duration_s(self) -> float:
        """How long its backup took."""
        return max(self.ended_s - self.started_s, 0.0)
