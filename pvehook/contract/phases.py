"""The phases in which vzdump calls its hook script.

Source: PVE/VZDump.pm of pve-manager 9.2 (`run_hook_script`), observed order in facts/vzdump.md.
"""

from __future__ import annotations

JOB_PHASES = ("job-init", "job-start", "job-end", "job-abort")
"""Called as `SCRIPT PHASE`."""

GUEST_PHASES = ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "backup-abort", "log-end")
"""Called as `SCRIPT PHASE MODE VMID`."""

PHASES = JOB_PHASES + GUEST_PHASES

REFUSABLE_PHASES = ("job-init", "job-start", "backup-start")
"""Where a closed window may refuse. A non-zero exit anywhere else does more harm than good: in `pre-restart` and
`post-restart` after the archive, PVE then leaves a guest down or suspended."""

LAST_JOB_PHASES = ("job-end", "job-abort")
