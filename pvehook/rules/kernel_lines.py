"""What a line of a kernel's log means for stalls; the node's kernel and a guest's write the same messages.

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
from typing import Final

MATCHED_CHARACTERS: Final = 512
"""A guest may write a line of any length; every message of the kernel shows its kind before this."""

_SCSI = r"(?:sd|sr|scsi) \d+:\d+:\d+:\d+: (?:\[\w+\] )?(?:tag#\d+ )?"
_NVME = r"nvme nvme\d+: "
_PCI = r"\w{4}:\w\w:\w\w\.\w: "
_DRBD = r"(?:block )?drbd[^:]*: "
_CEPH = r"(?:libceph(?: \([^)]*\))?|ceph: \[[^]]*\]|ceph): "
_CLOCKSOURCE = r"clocksource: timekeeping watchdog on CPU\d+: "

_MESSAGES: Final[dict[str, tuple[str, ...]]] = {
    "soft-lockup": (r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#",),
    "hard-lockup": (r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu ",),
    "rcu-stall": (
        r"(?:rcu: )?INFO: \w+ self-detected stall on CPU",
        r"(?:rcu: )?INFO: \w+ detected (?:expedited )?stalls on (?:CPUs/)?tasks:",
    ),
    "workqueue-lockup": (r"BUG: workqueue lockup - pool ",),
    "hung-task": (r"INFO: task .*:\d+ blocked (?:in I/O wait )?for more than \d+ seconds",),
    "storage-timeout": (
        # A guest's LSI controller (Proxmox's default for old guests), a node's HBA.
        _SCSI + r"(?:timing out command, waited |ABORT operation started|attempting task abort!|uas_eh_abort_handler )",
        # The host bytes that mean: no answer came back, or the way to the disk is gone.
        _SCSI + r"FAILED Result: hostbyte=DID_(?:TIME_OUT|NO_CONNECT|RESET|TRANSPORT_\w+) ",
        r"mptscsih: ioc\d+: attempting task abort!",
        # RAID controllers and HBAs that are reset because they do not answer: 3ware, Areca, LSI and Broadcom, Adaptec,
        # HP and Microsemi, QLogic, Emulex.
        r"(?:sd|scsi) \d+:\d+:\d+:\d+: WARNING: \(0x\w+:0x\w+\) ?: Command \(0x\w+\) timed out, resetting card",
        r"3w-\w+: scsi\d+: .*Command \(\w+\) timed out, resetting card",
        r"arcmsr\d+: executing hw bus reset ",
        r"mpt[23]sas(?:_cm)?\d+: sending (?:diag|message unit) reset ",
        r"megaraid_sas:? (?:" + _PCI + r")?resetting fusion adapter",
        _SCSI + r"megasas: RESET cmd=",
        r"aacraid: Host (?:adapter|bus) reset request\.",
        r"(?:hpsa|smartpqi) " + _PCI + r"(?:scsi \d+:\d+:\d+:\d+: resetting (?:logical|physical) |resetting scsi )",
        r"qla2xxx \[\S+\]-\w+:\d+: Abort command issued nexus=",
        r"lpfc " + _PCI + r"\d+:\(\d+\):0749 SCSI Layer I/O Abort Request ",
        r"sas: Enter sas_scsi_recover_host busy: \d+ failed: [1-9]",
        r"ata\d+(?:\.\d+)?: (?:exception .* frozen\b|qc timeout )",
        r"ata\d+: (?:hard|soft) resetting link",
        _NVME + r"I/O .*QID \d+ timeout\b",
        _NVME + r"(?:queue \d+: timeout request |controller is down; will reset)",
        r"(?:blk_update_request: )?timeout error, dev ",
        # iSCSI: requests wait from here on for a new connection. The kernel writes a blank before these.
        r" ?connection\d+:\d+: detected conn error ",
        # Ceph by way of the kernel: containers on RBD, krbd, CephFS; QEMU's own RBD writes no kernel lines. A closed
        # socket is no event: the kernel closes idle ones.
        _CEPH + r"mon\d+ .*session lost, hunting for new mon",
        _CEPH + r"(?:osd\d+ down|tid \d+ on osd\d+ timeout|mds\d+ hung)",
        _DRBD + r"(?:PingAck did not arrive in time|\[.*\] sock_sendmsg time expired)",
        _DRBD + r"(?:Remote failed to finish a request within|Local backing device failed to meet the disk-timeout)",
        # Where a node's archives go.
        r"nfs: server \S+ not responding, ",
        r"CIFS:? VFS: .* has not responded in \d+ seconds",
    ),
    "storage-error": (
        # Not "operation not supported" and "critical target": those answer a discard that a disk does not know.
        r"(?:blk_update_request: |print_req_error: )?"
        r"(?:I/O|critical medium|recoverable transport|device offline) error, dev ",
        r"mpt[23]sas(?:_cm)?\d+: (?:fault_state\(|SAS host is non-operational)",
        r"(?:megaraid_sas " + _PCI + r"|megasas: )(?:Found )?FW in FAULT state",
        r"(?:hpsa|smartpqi) " + _PCI + r"(?:[Cc]ontroller lockup detected: |controller (?:is )?offline)",
        _NVME
        + r"(?:Device not ready; aborting reset|Disabling device after reset failure|Removing after probe failure)",
        r" ?session\d+: session recovery timed out after \d+ secs",
        r"device-mapper: multipath: (?:\d+:\d+: )?Failing path ",
        r"device-mapper: multipath: queue_if_no_path timeout on ",
        # A thin pool that is full queues writes for a minute, then fails them.
        r"device-mapper: thin: \d+:\d+: switching pool to (?:out-of-data-space|read-only|fail)",
        r"md/raid\w*:md\w+: Disk failure on ",
        r"rbd: rbd\d+: encountered watch error: ",
        _DRBD + r"local (?:READ|WRITE) IO error sector ",
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

# At most one unbounded repetition followed by others in each alternative, so no text makes them slow.
_PATTERNS: Final = tuple((kind, re.compile("|".join(messages))) for kind, messages in _MESSAGES.items())


def classify(text: str) -> str | None:
    """The kind of event that the line (`KernelLine.text`) reports; None for all others, which are most."""
    start = text[:MATCHED_CHARACTERS]
    return next((kind for kind, pattern in _PATTERNS if pattern.match(start)), None)
