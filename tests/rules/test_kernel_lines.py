"""What the kernel's own messages are taken for, and which look alike and are not."""

from __future__ import annotations

import pytest

from pvehook.rules.kernel_lines import LOOKED_AT_CHARACTERS, classify
from pvehook.rules.stalls import LOCKUPS

FIRES = {
    "soft-lockup": [
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]",  # 5.10 to 6.12
        "watchdog: BUG: soft lockup - CPU#0 stuck for 52s! [swapper/0:0]",
        "NMI watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [mysqld:1841]",  # RHEL 7
        "BUG: soft lockup - CPU#0 stuck for 67s! [ksoftirqd/0:3]",  # RHEL 6
    ],
    "hard-lockup": [
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 2",  # 5.10 to 6.4
        "watchdog: Watchdog detected hard LOCKUP on cpu 3",  # from 6.5 on
        "watchdog: CPU28: Watchdog detected hard LOCKUP on cpu 28",
    ],
    "rcu-stall": [
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 3-...D } 444555 jiffies s: 49 root: 0x2/.",
        "INFO: rcu_tasks detected stalls on tasks:",
        "INFO: rcu_sched self-detected stall on CPU { 1}  (t=60000 jiffies g=1214 c=1213 q=0)",  # RHEL 7
    ],
    "hung-task": [
        "INFO: task jbd2/sda1-8:291 blocked for more than 120 seconds.",
        "INFO: task kworker/u8:2+flush-8:0:1042 blocked for more than 241 seconds.",
        "INFO: task a name: with 1 blank:7 blocked for more than 120 seconds.",
        "INFO: task dd:456 blocked in I/O wait for more than 122 seconds.",
    ],
    "storage-timeout": [
        "sd 2:0:0:0: [sda] tag#76 ABORT operation started",
        "sd 0:0:9:0: timing out command, waited 180s",
        "scsi 0:3:0:0: tag#164 timing out command, waited 120s",
        "sd 0:0:0:0: [sda] tag#0 FAILED Result: hostbyte=DID_TIME_OUT driverbyte=DRIVER_OK cmd_age=31s",
        "sd 3:0:4:0: attempting task abort!scmd(0x00000000e6e7404d), outstanding for 30424 ms & timeout 30000 ms",
        "ata1.00: exception Emask 0x0 SAct 0x400000 SErr 0x0 action 0x6 frozen",
        "ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen t4",
        "ata1.00: qc timeout (cmd 0xec)",
        "ata4.00: qc timeout after 5000 msecs (cmd 0xa1)",  # from 6.1 on
        "ata4: hard resetting link",
        "ata2: soft resetting link",
        "nvme nvme0: I/O 12 QID 3 timeout, aborting",
        "nvme nvme0: I/O 3 (I/O Cmd) QID 2 timeout, aborting",
        "nvme nvme1: I/O tag 192 (80c0) opcode 0x1 (I/O Cmd) QID 1 timeout, aborting req_op:WRITE(1) size:16384",
        "nvme nvme0: I/O 960 QID 26 timeout, reset controller",
        "nvme nvme0: I/O 978 QID 3 timeout, completion polled",
        "nvme nvme0: controller is down; will reset: CSTS=0x3, PCI_STATUS=0x10",
        "nvme nvme4: queue 1: timeout request 0x6a type 4",
        "blk_update_request: timeout error, dev nvme0n1, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
        "nfs: server 10.100.0.60 not responding, still trying",
        "nfs: server nas.example.org not responding, timed out",
        r"CIFS: VFS: \x5c\x5c192.168.16.21 has not responded in 180 seconds. Reconnecting...",
    ],
    "storage-error": [
        "blk_update_request: I/O error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",  # 5.10
        "I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2",  # from 5.16 on
        "print_req_error: I/O error, dev sda, sector 41088",  # RHEL 8
        "critical medium error, dev sdd, sector 4 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
        "device offline error, dev sdb, sector 8 op 0x1:(WRITE) flags 0x803000 phys_seg 1 prio class 2",
        "WARNING: Pool 'rpool' has encountered an uncorrectable I/O failure and has been suspended.",
    ],
    "long-interrupt": [
        "perf: interrupt took too long (2501 > 2500), lowering kernel.perf_event_max_sample_rate to 79750",
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.412 msecs",
    ],
    "clock-unstable": [
        "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because the skew is too"
        " large:",
        "clocksource: timekeeping watchdog on CPU0: hpet read-back delay of 124000ns, attempt 4, marking unstable",
        "clocksource: timekeeping watchdog on CPU3: wd-tsc-wd excessive read-back delay of 503000ns vs. limit of"
        " 250000ns, wd-wd read-back delay only 1200ns, attempt 3, marking tsc unstable",
        "tsc: Marking TSC unstable due to clocksource watchdog",
    ],
}

DOES_NOT_FIRE = [
    "",
    "EXT4-fs (vda): mounted filesystem 00000000-0000-0000-0000-000000000000 r/w without journal. Quota mode: none.",
    # What follows a report, or prepares for one.
    "rcu: \t1-....: (5249 ticks this GP) idle=51e4/1/0x4000000000000000 softirq=309/309 fqs=2563",
    "rcu: rcu_sched kthread starved for 15002 jiffies! g6273 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=1",
    "rcu: \tUnless rcu_sched kthread gets sufficient CPU time, OOM is now expected behavior.",
    "Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings",
    "INFO: task kworker/0:1:7 is blocked on a mutex likely owned by task dd:456.",
    "sd 2:0:0:0: ABORT operation timed-out.",
    "sd 2:0:0:0: [sda] Attached SCSI disk",
    "sd 2:0:0:0: Power-on or device reset occurred",  # also whenever a disk is plugged in
    "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)",
    "nvme nvme0: Abort status: 0x0",
    "nvme nvme0: Shutdown timeout set to 10 seconds",
    "Buffer I/O error on dev sda1, logical block 0, lost async page write",
    "operation not supported error, dev loop0, sector 0 op 0x9:(WRITE_ZEROES) flags 0x0 phys_seg 0 prio class 0",
    "critical target error, dev sda, sector 2048 op 0x3:(DISCARD) flags 0x800 phys_seg 1 prio class 0",
    "nfs: server 10.100.0.60 OK",
    "perf: interrupt handler registered",
    "clocksource: timekeeping watchdog on CPU0: kvm-clock retried 2 times before success",
    "clocksource: Switched to clocksource kvm-clock",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "watchdog: Delayed init of the lockup detector failed: -19",
    # Quoting, and processes that are called like a fault.
    "systemd[1]: pvehook saw: watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]",
    "traps: I/O error, dev[412] general protection fault ip:7f3 sp:7ff error:0",
    "INFO: task blocked for more than 120 seconds. Not really.",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FIRES.items() for text in texts])
def test_the_kernels_own_messages(kind: str, text: str) -> None:
    assert classify(text) == kind


@pytest.mark.parametrize("text", DOES_NOT_FIRE)
def test_what_only_looks_like_one(text: str) -> None:
    assert classify(text) is None


def test_what_counts_as_a_lockup_is_known_here() -> None:
    assert set(FIRES) >= LOCKUPS


@pytest.mark.parametrize(
    "piece",
    ["INFO: task ", "INFO: task :1", "nvme nvme0: I/O ", "QID 1 ", ", marking ", "nfs: server ", "1", " ", "\0"],
)
def test_a_guests_endless_line_is_no_message(piece: str) -> None:
    """It ends; a pattern that tries all ways to split such a line would take longer than this universe."""
    assert classify(piece * 200_000) is None
    assert classify("INFO: task " + piece * 200_000) is None


def test_only_the_start_is_looked_at() -> None:
    message = "INFO: task {}:7 blocked for more than 120 seconds."
    assert classify(message.format("x" * 100)) == "hung-task"
    assert classify(message.format("x" * LOOKED_AT_CHARACTERS)) is None
