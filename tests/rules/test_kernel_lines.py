"""What the kernel's own messages are taken for, and which look alike and are not."""

from __future__ import annotations

import pytest

from pvehook.rules.kernel_lines import MATCHED_CHARACTERS, classify
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
    "workqueue-lockup": ["BUG: workqueue lockup - pool cpus=3 node=0 flags=0x0 nice=0 stuck for 58s!"],
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
        "sd 6:0:0:0: [sdb] tag#12 FAILED Result: hostbyte=DID_TRANSPORT_DISRUPTED driverbyte=DRIVER_OK cmd_age=31s",
        "sd 6:0:0:0: [sdb] tag#12 FAILED Result: hostbyte=DID_NO_CONNECT driverbyte=DRIVER_OK cmd_age=12s",
        "sd 6:0:0:0: [sdb] tag#12 FAILED Result: hostbyte=DID_TRANSPORT_FAILFAST driverbyte=DRIVER_OK cmd_age=0s",
        "sd 8:0:0:0: [sdc] tag#11 uas_eh_abort_handler 0 uas-tag 12 inflight: CMD OUT",
        "mptscsih: ioc0: attempting task abort! (sc=ffff88003663e280)",
        "sd 1:0:0:0: WARNING: (0x06:0x002C): Command (0x28) timed out, resetting card.",
        "scsi 0:0:0:0: WARNING: (0x06:0x002C) : Command (0x12) timed out, resetting card.",
        "3w-xxxx: scsi0: Command (0xf7618800) timed out, resetting card.",
        "arcmsr9: executing hw bus reset .....",
        "mpt3sas_cm0: sending diag reset !!",
        "mpt2sas0: sending message unit reset !!",
        "megaraid_sas 0000:18:00.0: resetting fusion adapter scsi0.",
        "megaraid_sas: resetting fusion adapter.",
        "sd 0:2:0:0: [sda] tag#31 megasas: RESET cmd=2a retries=0",
        "aacraid: Host bus reset request. SCSI hang ?",
        "aacraid: Host adapter reset request. SCSI hang ?",
        "hpsa 0000:03:00.0: scsi 0:1:0:0: resetting logical  Direct-Access     HP       LOGICAL VOLUME   RAID-5",
        "smartpqi 0000:5c:00.0: resetting scsi 0:1:0:0",
        "qla2xxx [0000:af:00.0]-801c:23: Abort command issued nexus=23:0:0 -- 0 2003.",
        "lpfc 0000:05:00.0: 0:(0):0749 SCSI Layer I/O Abort Request Status x2002 ID 0 LUN 1",
        "sas: Enter sas_scsi_recover_host busy: 1 failed: 1",
        " connection1:0: detected conn error (1022)",
        "connection13:0: detected conn error (1022)",
        "libceph: mon2 (1)10.72.36.245:40083 session lost, hunting for new mon",
        "libceph: osd3 down",
        "libceph (0b2ab4f2-3bd5-4f6e-8c2d-6fd9c2c1f2a1 4123): osd3 down",
        "ceph: mds0 hung",
        "ceph: [0b2ab4f2-3bd5-4f6e-8c2d-6fd9c2c1f2a1 4123]: mds0 hung",
        "drbd r0 node2: PingAck did not arrive in time.",  # DRBD 9
        "block drbd0: PingAck did not arrive in time.",
        "drbd r0/0 drbd1 node2: Remote failed to finish a request within 42096ms > ko-count (7) * timeout (60 * 0.1s)",
        "block drbd0: Local backing device failed to meet the disk-timeout",
        "drbd r0: [drbd_w_r0/712] sock_sendmsg time expired, ko = 6",
        r"CIFS: VFS: \x5c\x5c192.168.16.21 has not responded in 180 seconds. Reconnecting...",
    ],
    "storage-error": [
        "blk_update_request: I/O error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",  # 5.10
        "I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2",  # from 5.16 on
        "print_req_error: I/O error, dev sda, sector 41088",  # RHEL 8
        "critical medium error, dev sdd, sector 4 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
        "device offline error, dev sdb, sector 8 op 0x1:(WRITE) flags 0x803000 phys_seg 1 prio class 2",
        "mpt3sas_cm0: fault_state(0x2666)!",
        "mpt3sas_cm0: SAS host is non-operational !!!!",
        "megaraid_sas 0000:18:00.0: FW in FAULT state Fault code:0xfff0000 subcode:0xff00 func:megasas_wait",
        "megaraid_sas 0000:03:00.0: Found FW in FAULT state, will reset adapter scsi0.",
        "hpsa 0000:03:00.0: Controller lockup detected: 0x00130000 after 30",
        "smartpqi 0000:5c:00.0: controller is offline: status code 0x6100c",
        "nvme nvme0: Disabling device after reset failure: -19",
        " session3: session recovery timed out after 120 secs",
        "device-mapper: multipath: Failing path 8:16.",
        "device-mapper: multipath: 254:0: Failing path 8:16.",
        "device-mapper: multipath: queue_if_no_path timeout on 253:3, failing queued IO",
        "device-mapper: thin: 253:4: switching pool to out-of-data-space (queue IO) mode",
        "device-mapper: thin: 253:4: switching pool to read-only mode",
        "md/raid1:md0: Disk failure on sdb1, disabling device.",
        "md/raid:md127: Disk failure on sdd, disabling device.",
        "rbd: rbd0: encountered watch error: -107",
        "block drbd1: local WRITE IO error sector 29362432+8 on dm-7",
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
    # The other lines of an event that is counted once.
    "sd 0:0:3:0: attempting target reset! scmd(0x00000000d7a9d8b5)",
    " connection1:0: ping timeout of 5 secs expired, recv timeout 5, last rx 4300399244, last ping 4300404736",
    "arcmsr: executing bus reset eh.....num_resets = 0, num_aborts = 1",
    "mpt3sas_cm0: diag reset: SUCCESS",
    "aacraid: Host adapter abort request.",
    "qla2xxx [0000:af:00.0]-188c:23: Entered qla24xx_abort_command.",
    # What these write when all is well.
    "sd 6:0:0:0: [sdb] tag#12 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_OK cmd_age=0s",
    "sas: Enter sas_scsi_recover_host busy: 0 failed: 0",
    "libceph: osd3 (1)10.0.0.3:6801 socket closed (con state OPEN)",
    "libceph: osd3 up",
    "libceph: mon0 (1)10.0.0.1:6789 session established",
    "drbd r0 node2: Handshake to peer 1 successful: Agreed network protocol version 121",
    "device-mapper: multipath: 254:0: Reinstating path 8:16.",
    "device-mapper: thin: 253:4: switching pool to write mode",
    "device-mapper: thin: 253:4: reached low water mark for data device: sending event.",
    "md/raid1:md0: active with 2 out of 2 mirrors",
    "sched: RT throttling activated",
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


FIELD = """\
sd 1:0:0:0: WARNING: (0x06:0x002C): Command (0x28) timed out, resetting card.
arcmsr9: executing hw bus reset .....
mpt3sas_cm0: fault_state(0x2666)!
sd 0:0:3:0: attempting task abort!scmd(0x00000000d7a9d8b5), outstanding for 30348 ms & timeout 30000 ms
INFO: task startplasma-way:1473 blocked in I/O wait for more than 122 seconds.
INFO: task cat:115 is blocked on a mutex likely owned by task cat:114.
BUG: workqueue lockup - pool cpus=3 node=0 flags=0x0 nice=0 stuck for 58s!
nvme nvme0: I/O tag 325 (a145) opcode 0x2 (I/O Cmd) QID 4 timeout, aborting req_op:READ(0) size:131072
sd 6:0:0:0: [sdb] tag#12 FAILED Result: hostbyte=DID_TRANSPORT_DISRUPTED driverbyte=DRIVER_OK cmd_age=31s
rcu: INFO: rcu_preempt self-detected stall on CPU { 5}  (t=60004 jiffies g=1 c=2 q=3)
rcu: INFO: rcu_sched detected stalls on CPUs/tasks: { 4} (detected by 1, t=60002 jiffies)
rcu: rcu_preempt kthread starved for 21012 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=3
sched: RT throttling activated
watchdog: Watchdog detected hard LOCKUP on cpu 18
"""


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FIRES.items() for text in texts])
def test_the_kernels_own_messages(kind: str, text: str) -> None:
    assert classify(text) == kind


@pytest.mark.parametrize("text", DOES_NOT_FIRE)
def test_what_only_looks_like_one(text: str) -> None:
    assert classify(text) is None


def test_the_lines_of_the_field() -> None:
    """As somebody met them; what follows a report counts for nothing, like the thread that RCU starved."""
    kinds = [classify(line) for line in FIELD.splitlines()]
    assert kinds == [
        *("storage-timeout", "storage-timeout", "storage-error", "storage-timeout", "hung-task", None),
        *("workqueue-lockup", "storage-timeout", "storage-timeout", "rcu-stall", "rcu-stall", None, None),
        "hard-lockup",
    ]


def test_what_counts_as_a_lockup_is_known_here() -> None:
    assert set(FIRES) >= LOCKUPS


@pytest.mark.parametrize(
    "piece",
    ["INFO: task ", "INFO: task :1", "nvme nvme0: I/O ", "QID 1 ", ", marking ", "drbd [", "ceph: [", "1", " ", "\0"],
)
def test_a_guests_endless_line_is_no_message(piece: str) -> None:
    """It ends; a pattern that tries all ways to split such a line would take longer than this universe."""
    assert classify(piece * 200_000) is None
    assert classify("INFO: task " + piece * 200_000) is None


def test_only_the_start_is_matched() -> None:
    message = "INFO: task {}:7 blocked for more than 120 seconds."
    assert classify(message.format("x" * 100)) == "hung-task"
    assert classify(message.format("x" * MATCHED_CHARACTERS)) is None
