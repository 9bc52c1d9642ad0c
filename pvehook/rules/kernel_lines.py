"""What a line of a kernel's log says about stalls; the node's kernel and a guest's write alike.

    watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]          soft-lockup
    rcu: INFO: rcu_sched self-detected stall on CPU                             rcu-stall
    INFO: task jbd2/sda1-8:291 blocked for more than 120 seconds.               hung-task
    sd 2:0:0:0: [sda] tag#76 ABORT operation started                            storage-timeout

One event of a kernel is many lines. Those count here that say what happened, not the CPUs, stacks, registers and
repaired commands that follow, so that a number of lines says something.

Each pattern is held to the start of the line: texts quote each other, and a process may be called like a fault.
Sources: the messages of Linux 5.10 to 6.12 in kernel/{watchdog*,hung_task,rcu/*,events/core,time/clocksource}.c,
block/blk-*.c, drivers/{scsi,message,ata,nvme}, net/sunrpc, fs/{cifs,smb}; of ZFS in module/zfs/zio.c. Some of older
kernels beside them, because guests are older than their nodes.
"""

from __future__ import annotations

import re
from typing import Final, Literal

Kind = Literal[
    "soft-lockup",
    "hard-lockup",
    "rcu-stall",
    "hung-task",
    "storage-timeout",
    "storage-error",
    "long-interrupt",
    "clock-unstable",
]

LOOKED_AT_CHARACTERS: Final = 512
"""A guest may write any length; what tells the kind stands before this in every message of the kernel."""

_SCSI = r"(?:sd|sr|scsi) \d+:\d+:\d+:\d+: (?:\[\w+\] )?(?:tag#\d+ )?"
_NVME = r"nvme nvme\d+: "
_CLOCKSOURCE = r"clocksource: timekeeping watchdog on CPU\d+: "

_MESSAGES: Final[dict[Kind, tuple[str, ...]]] = {
    "soft-lockup": (r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#",),
    "hard-lockup": (r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu ",),
    "rcu-stall": (
        r"(?:rcu: )?INFO: \w+ self-detected stall on CPU",
        r"(?:rcu: )?INFO: \w+ detected (?:expedited )?stalls on (?:CPUs/)?tasks:",
    ),
    "hung-task": (r"INFO: task .*:\d+ blocked (?:in I/O wait )?for more than \d+ seconds",),
    "storage-timeout": (
        # A guest's LSI controller (Proxmox's default for old guests), a node's HBA.
        _SCSI + r"(?:timing out command, waited |ABORT operation started|attempting task abort!)",
        _SCSI + r"FAILED Result: hostbyte=DID_TIME_OUT ",
        r"ata\d+(?:\.\d+)?: (?:exception .* frozen\b|qc timeout )",
        r"ata\d+: (?:hard|soft) resetting link",
        _NVME + r"I/O .*QID \d+ timeout\b",
        _NVME + r"(?:queue \d+: timeout request |controller is down; will reset)",
        r"(?:blk_update_request: )?timeout error, dev ",
        # Where a node's archives go.
        r"nfs: server \S+ not responding, ",
        r"CIFS:? VFS: .* has not responded in \d+ seconds",
    ),
    "storage-error": (
        # Not "operation not supported" and "critical target": those answer a discard that a disk does not know.
        r"(?:blk_update_request: |print_req_error: )?"
        r"(?:I/O|critical medium|recoverable transport|device offline) error, dev ",
        r"WARNING: Pool '.*' has encountered an uncorrectable I/O failure and has been suspended",
    ),
    "long-interrupt": (
        r"perf: interrupt took too long ",
        r"INFO: NMI handler \(\w+\) took too long to run: ",
    ),
    "clock-unstable": (
        _CLOCKSOURCE + r"Marking clocksource '.*' as unstable",
        _CLOCKSOURCE + r".*, marking (?:\S+ )?unstable",
        r"tsc: Marking TSC unstable due to ",
    ),
}

# At most one `.*` in each alternative, so no text makes them slow.
_PATTERNS: Final = tuple((kind, re.compile("|".join(messages))) for kind, messages in _MESSAGES.items())


def classify(text: str) -> Kind | None:
    """What the line (`KernelLine.text`) is about; None for all others, which are most."""
    start = text[:LOOKED_AT_CHARACTERS]
    return next((kind for kind, pattern in _PATTERNS if pattern.match(start)), None)
