"""Every event of the journal: its priorities and its meaning in one line each.

`docs/events.md` is made of this table (scripts/generate_docs.py), and a test holds it against the calls in the code:
no event without a line here, no line without an event.
"""

from __future__ import annotations

from typing import Final

EVENTS: Final = {
    # The run
    "job-ended": ("info", "The run is over; how many guests were backed up, refused, failed."),
    "job-aborted": ("warning", "vzdump aborted the run."),
    "worker-died": ("warning", "vzdump's worker ended during a run, without the run's last phase."),
    "worker-ended": ("info", "vzdump's worker ended before its run began: it waited for the node's lock."),
    "forecast-made": ("info", "When the run is expected to end, and whether its guests fit into the window."),
    "forecast-not-made": ("info warning", "When the run ends is not known. A warning if a file did not answer."),
    # The window
    "window-admitted": ("info", "A run or a guest may be backed up, and why."),
    "window-refused": (
        "warning",
        "A run or a guest is refused because the window is closed, or a guest gives way to others "
        "(`window.when_short: rotate`).",
    ),
    "refusal-ignored": (
        "critical",
        "A run or guest goes on although it was refused: a script around the hook lost its exit code. "
        "Says whether it is cancelled (`window.enforce`).",
    ),
    "window-closed-on-guest": ("warning", "The window closed while this guest was in backup."),
    "backup-cancelled": ("warning", "`running_guest: cancel`: pvehook had QEMU cancel the backup."),
    "backup-cancel-failed": ("error", "`running_guest: cancel`: the backup could not be cancelled."),
    "allowances-not-read": ("error", "The exceptions from the window could not be read in time: none of them counts."),
    "allowance-made": ("warning", "`pvehook allow` made an exception; who, why, until when."),
    "allowance-revoked": ("warning", "`pvehook allow --revoke` ended an exception early."),
    # A guest
    "guest-facts": ("debug", "A VM was started, and its agent told what it is: system, kernel, huge pages."),
    "guest-facts-not-kept": ("warning", "What a VM that was started told of itself could not be written down."),
    "guest-state": ("debug", "A guest's turn went on to its next state, and on which event."),
    "guest-done": (
        "info warning",
        "A guest's summary, after its last phase. A warning if its backup failed or the guest stalled.",
    ),
    "guest-suffered": (
        "info warning",
        "What a guest suffered beside the backups of others in one run, beside whose, and whether they were slowed for "
        "it. A warning if it stalled.",
    ),
    "guest-overdue": (
        "critical",
        "A guest has missed as many turns of a job as `window.overdue_after` says: the cause, and ways out. At most "
        "once a day for each guest, at a run's end, until its next good backup.",
    ),
    "schedule-not-understood": (
        "warning",
        "The schedule of a job is not understood, so the turns that it promises are not counted.",
    ),
    "overdue-not-known": ("error", "The jobs or the history could not be read in time: who is overdue is not known."),
    "io-priority-set": ("info", "A process of the backup has the idle I/O class."),
    "io-priority-restored": (
        "info error",
        "A VM that vzdump started has normal I/O priority again. An error if the kernel refused it.",
    ),
    # Its freeze
    "freeze-verdict": (
        "info warning",
        "Whether this VM will be frozen, with every reason. A warning for a veto that no setting asked for.",
    ),
    "freeze-done": (
        "info warning",
        "The freeze is over, or did not happen; how long the guest was frozen. A warning if an intended freeze failed.",
    ),
    "freeze-alert": ("critical", "The guest is frozen, and not by pvehook: this needs attention."),
    "freeze-not-armed": ("warning", "The agent's socket could not be held; Proxmox decides about the freeze."),
    "freeze-not-thawed": ("critical", "The backup is over, and the guest has not confirmed its thaw yet."),
    "freeze-left-by-pve": ("warning", "vzdump was killed and left a guest frozen; pvehook thawed it."),
    "freeze-unknown": ("critical", "vzdump was killed, and the agent does not say whether the guest is frozen."),
    "freeze-left-over": ("warning", "A daemon that died left a guest frozen; the next daemon thawed it."),
    # Its speed
    "governor-speed": ("info", "The backup was slowed, made faster or released."),
    "governor-done": ("info", "The governor's summary for a guest that suffered."),
    "governor-stopped": ("warning", "The governor withdrew from this backup."),
    "governor-not-restored": ("error", "The backup's original speed could not be restored."),
    "governor-left-over": (
        "warning error",
        "A daemon that died left a backup slowed; its original speed was restored. An error if that failed.",
    ),
    "pacer-done": ("info", "The writeback of a guest's archive was paced, or why not."),
    "backup-stands-still": (
        "error",
        "The backup of a VM has copied nothing for 60 s: its target does not answer, or a disk that is read.",
    ),
    # Records
    "history-moved": ("warning", "The history was damaged; it was moved aside and a new one begun."),
    "history-not-kept": ("error", "A backup could not be added to the history."),
    "past-runs-read": ("debug", "Proxmox's logs of vzdump's past runs were read; how many turns they tell of."),
    "past-runs-not-read": ("warning", "Proxmox's logs or archives of past runs could not be read."),
    "textfile-not-written": ("error", "The file for Prometheus could not be written."),
    "record-not-written": ("error", "The run's state could not be written; a restarted daemon will not know it."),
    # Notifications
    "notification-sent": ("info", "Proxmox's notification system has taken a notice of something that went wrong."),
    "notification-not-sent": ("warning", "It could not be given to Proxmox's notification system, and why."),
    # pvehook itself
    "daemon-started": ("debug", "The daemon answers hook calls."),
    "daemon-left": ("debug", "The daemon ended: there is nothing left to watch."),
    "job-picked-up": ("info", "A restarted daemon goes on with a run that it found."),
    "configuration-problem": ("error", "The configuration has an error; which configuration is in force."),
    "phase-unknown": ("info", "vzdump announced a phase that pvehook does not know."),
    "call-lost": ("info", "A hook ended before it got its answer."),
    "call-refused": ("warning", "A hook call was malformed, and was not answered."),
    "calls-lost": ("critical", "All calls hang for good: the daemon ends, the next call starts another."),
    "too-many-calls": ("error", "Too many hook calls at once; this one was not answered."),
    "watch-limited": ("warning", "More guests run on the node than are watched beside backups; the others are not."),
    "fault": ("error", "A fault of pvehook's own; the backup goes on."),
}
"""Name: the priorities with which it can be logged, the usual one first; what it means."""
