"""Whether a backup stands still: nothing is copied, although there is something left to copy.

What QEMU waits for then is its target, or a disk that it reads. With a target that hangs, and without fleecing, 2.5 s
later no request of the guest is answered any more, for as long as it hangs (measured, facts/qemu.md).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pvehook.contract.block_job import BlockJob

STANDS_STILL_S: Final = 60.0
"""For so long without a byte. The slowest speed that the governor sets moves a job every second; a target that only
answers late is back by then. A guest's kernel reports a task that hangs after 120 s."""


def still_since(before_s: float | None, at_s: float, jobs: Collection[BlockJob], copied_bytes: int) -> float | None:
    """Since when, on the clock of `at_s`, nothing has been copied. None: there is nothing to copy, or no job."""
    if not any(job.offset_bytes < job.length_bytes for job in jobs):
        return None
    return at_s if copied_bytes or before_s is None else before_s
