"""vzdump's task logs as Proxmox VE 8 and 9 print them (the format strings of the sources that contract/task_log.py
names), and its list of tasks."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.archive_name import parse_archive_name
from pvehook.contract.task_log import LoggedGuest, TaskLog, parse_task_list, parse_task_log

UPID = "UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump::root@pam:"

PVE_8 = """\
INFO: starting new backup job: vzdump 101 102 110 --storage local --mode snapshot --compress zstd
INFO: Starting Backup of VM 101 (qemu)
INFO: Backup started at 2026-11-28 02:00:05
INFO: status = running
INFO: VM Name: db
INFO: include disk 'scsi0' 'local-lvm:vm-101-disk-0' 32G
INFO: backup mode: snapshot
INFO: ionice priority: 7
INFO: skip unused drive 'local-lvm:vm-101-disk-1' (not included into backup)
INFO: creating vzdump archive '/var/lib/vz/dump/vzdump-qemu-101-2026_11_28-02_00_05.vma.zst'
INFO: issuing guest-agent 'fs-freeze' command
INFO: issuing guest-agent 'fs-thaw' command
INFO: started backup task '0c7eb1b0-7a8b-4f4b-9d10-4f6a8f1ac9d0'
INFO: resuming VM again
INFO:   1% (333.2 MiB of 32.0 GiB) in 3s, read: 111.1 MiB/s, write: 98.1 MiB/s
INFO: 100% (32.0 GiB of 32.0 GiB) in 5m 12s, read: 105.0 MiB/s, write: 40.0 MiB/s
INFO: backup is sparse: 12.21 GiB (38%) total zero data
INFO: transferred 32.00 GiB in 312 seconds (105.0 MiB/s)
INFO: archive file size: 9.87GB
INFO: prune older backups with retention: keep-last=3
INFO: pruned 0 backup(s)
INFO: Finished Backup of VM 101 (00:05:13)
INFO: Backup finished at 2026-11-28 02:05:18
INFO: pvehook: VM 101 (db): not stalled, slowed for 0 s
INFO: Starting Backup of VM 102 (qemu)
INFO: Backup started at 2026-11-28 02:05:18
INFO: status = stopped
INFO: backup mode: stop
INFO: ionice priority: 7
INFO: VM Name: web
INFO: creating vzdump archive '/var/lib/vz/dump/vzdump-qemu-102-2026_11_28-02_05_18.vma.zst'
ERROR: VM 102 qmp command 'backup' failed - backup register image failed: command error: no space
INFO: aborting backup job
ERROR: Backup of VM 102 failed - VM 102 qmp command 'backup' failed - no space left
ERROR: on device
INFO: Failed at 2026-11-28 02:05:31
INFO: Starting Backup of VM 110 (lxc)
INFO: Backup started at 2026-11-28 02:05:31
INFO: status = running
INFO: CT Name: mail
INFO: including mount point rootfs ('/') in backup
INFO: mode failure - some volumes do not support snapshots
INFO: trying 'suspend' mode instead
INFO: backup mode: suspend
INFO: ionice priority: 7
INFO: CT Name: mail
INFO: starting first sync /proc/4711/root/ to /var/lib/vz/dump/vzdump-lxc-110-2026_11_28-02_05_31.tmp
INFO: creating vzdump archive '/var/lib/vz/dump/vzdump-lxc-110-2026_11_28-02_05_31.tar.zst'
INFO: Total bytes written: 1288490240 (1.2GiB, 34MiB/s)
INFO: archive file size: 512MB
INFO: Finished Backup of VM 110 (01:00:09)
INFO: Backup finished at 2026-11-28 03:05:40
INFO: Backup job finished with errors

TASK ERROR: job errors
"""

PVE_9_WITH_WARNINGS = """\
INFO: starting new backup job: vzdump 105 --storage pbs --mode snapshot --notes-template '{{guestname}}'
INFO: Starting Backup of VM 105 (qemu)
INFO: Backup started at 2026-11-28 22:00:01
INFO: status = running
INFO: VM Name: win11
INFO: include disk 'efidisk0' 'local-zfs:vm-105-disk-0' 1M
INFO: backup mode: snapshot
INFO: ionice priority: 7
WARN: EFI disk without 'ms-cert=2023k' option, suggesting that not all UEFI 2023
certificates from Microsoft are enrolled yet.
INFO: creating Proxmox Backup Server archive 'vm/105/2026-11-28T21:00:01Z'
INFO: drive-scsi0: attaching fleecing image local-zfs:vm-105-fleece-0 to QEMU
INFO: scsi0: dirty-bitmap status: OK (1.2 GiB of 64.0 GiB dirty)
INFO: using fast incremental mode (dirty-bitmap), 1.2 GiB dirty of 64.0 GiB total
INFO: backup was done incrementally, reused 62.90 GiB (98%)
INFO: transferred 1.20 GiB in <1 seconds
INFO: adding notes to backup
INFO: Finished Backup of VM 105 (00:00:01)
INFO: Backup finished at 2026-11-28 22:00:02
INFO: Backup job finished successfully
TASK WARNINGS: 1
"""


def wall(text: str) -> datetime:
    """A time without a zone."""
    return datetime.fromisoformat(text)


def only(log: TaskLog) -> LoggedGuest:
    (guest,) = log.guests
    return guest


def test_a_log_of_three_guests() -> None:
    log = parse_task_log(PVE_8.encode())
    assert (log.result, log.error, log.without_turn) == ("ok", "", ())
    db, web, mail = log.guests
    assert db == LoggedGuest(
        101,
        "qemu",
        "db",
        "snapshot",
        wall("2026-11-28 02:00:05"),
        wall("2026-11-28 02:05:18"),
        313,
        "ok",
        "",
        32.0 * 2**30,
    )
    assert (web.result, web.mode, web.ended) == ("failed", "stop", wall("2026-11-28 02:05:31"))
    assert web.error == "VM 102 qmp command 'backup' failed - no space left; on device"
    assert web.read_bytes is None
    assert (mail.vmid, mail.vmtype, mail.name, mail.mode, mail.result) == (110, "lxc", "mail", "suspend", "ok")
    assert (mail.took_s, mail.read_bytes) == (3609, 1288490240.0)


def test_a_guest_that_was_backed_up_with_warnings_is_backed_up() -> None:
    guest = only(parse_task_log(PVE_9_WITH_WARNINGS.encode()))
    assert (guest.result, guest.error, guest.read_bytes) == ("ok", "", 1.2 * 2**30)


def test_a_guest_whose_log_was_cut_off_is_unknown() -> None:
    for cut in ("INFO: Finished Backup of VM 101", "INFO: status = running", "INFO: backup mode"):
        log = parse_task_log(PVE_8[: PVE_8.index(cut)].encode())
        guest = only(log)
        assert (guest.result, guest.began, guest.ended) == ("unknown", wall("2026-11-28 02:00:05"), None)
        assert log.result == "unknown"
        assert log.without_turn == ()  # whether the run is over is not known


def test_a_run_that_was_stopped_by_hand_cancels_its_guest_and_those_that_were_still_to_come() -> None:
    log = parse_task_log(
        b"INFO: starting new backup job: vzdump 101 102 103 104 --mode snapshot\n"
        b"INFO: skip external VMs: 103, 109\n"
        b"INFO: Starting Backup of VM 101 (qemu)\n"
        b"INFO: Backup started at 2026-11-28 02:00:05\n"
        b"INFO: transferred 1.00 GiB in 12 seconds (85.3 MiB/s)\n"
        b"ERROR: interrupted by signal\n"
        b"INFO: aborting backup job\n"
        b"ERROR: Backup of VM 101 failed - interrupted by signal\n"
        b"INFO: Failed at 2026-11-28 02:00:21\n"
        b"ERROR: Backup job failed - interrupted by signal\n"
        b"TASK ERROR: interrupted by signal\n"
    )
    guest = only(log)
    assert (guest.result, guest.error, guest.read_bytes) == ("cancelled", "interrupted by signal", None)
    assert (log.result, log.error, log.without_turn) == ("cancelled", "interrupted by signal", (102, 104))


def test_a_guest_that_is_not_there_fails_before_its_backup_begins() -> None:
    guest = only(
        parse_task_log(
            b"INFO: starting new backup job: vzdump 102\n"
            b"ERROR: Backup of VM 102 failed - unable to find VM '102'\n"
            b"INFO: Failed at 2026-11-28 02:00:05\n"
            b"INFO: Backup job finished with errors\n"
            b"TASK ERROR: job errors\n"
        )
    )
    assert (guest.vmid, guest.result, guest.error) == (102, "failed", "unable to find VM '102'")
    assert (guest.began, guest.ended) == (None, wall("2026-11-28 02:00:05"))


REFUSED = "it is 05:19:00 UTC and the backup window is closed (outside 02:00-05:00)"
TO_ALLOW = 'it opens next: Tue 2026-11-24 02:00 UTC; to allow it now: pvehook allow --for 2h --reason "..."'


def test_our_own_refusal_is_no_failure() -> None:
    command = "command '/usr/local/lib/pvehook/hooks/vzdump-hook backup-start snapshot 103' failed: exit code 1"
    guest = only(
        parse_task_log(
            "INFO: Starting Backup of VM 103 (qemu)\n"
            "INFO: Backup started at 2026-11-23 05:19:00\n"
            f"INFO: pvehook: guest 103 is refused: {REFUSED}; {TO_ALLOW}\n"
            f"ERROR: Backup of VM 103 failed - {command}\n"
            "INFO: Failed at 2026-11-23 05:19:00\n"
            "TASK ERROR: job errors\n".encode()
        )
    )
    assert (guest.result, guest.error) == ("refused", REFUSED)


def test_a_run_that_was_refused_as_a_whole_names_its_guests() -> None:
    command = "command '/usr/local/lib/pvehook/hooks/vzdump-hook job-start' failed: exit code 1"
    log = parse_task_log(
        "INFO: starting new backup job: vzdump 101 102 --mode snapshot\n"
        f"INFO: pvehook: this run is refused: {REFUSED}; {TO_ALLOW}\n"
        f"ERROR: Backup job failed - {command}\n"
        f"TASK ERROR: {command}\n".encode()
    )
    assert (log.guests, log.without_turn, log.result, log.error) == ((), (101, 102), "refused", REFUSED)


@pytest.mark.parametrize("time", ["2026-13-28 02:00:05", "2026-02-30 02:00:05", "0000-01-01 00:00:00", "2026-11-28"])
def test_a_time_that_is_none_is_left_out(time: str) -> None:
    text = f"INFO: Starting Backup of VM 101 (qemu)\nINFO: Backup started at {time}\n"
    assert only(parse_task_log(text.encode())).began is None


def test_odd_bytes_and_long_lines_stay_harmless() -> None:
    text = (
        b"INFO: Starting Backup of VM 101 (qemu)\nINFO: VM Name: a\xff\x1b[2J\xe2\x80\xae" + b"b" * 90_000 + b"\n"
        b"\0\0\0\nINFO: Finished Backup of VM 102 (00:00:01)\nERROR: Backup of VM 101 failed - \x1b[31m" + b"x" * 9999
    )
    guest = only(parse_task_log(text))
    assert guest.result == "failed"  # and not by another guest's line
    assert guest.name is not None
    assert guest.name.isprintable()
    assert len(guest.name) <= 64
    assert guest.error.startswith("\\x1b[31mx")
    assert len(guest.error) <= 300


LINES = st.sampled_from([line.encode() for line in (PVE_8 + PVE_9_WITH_WARNINGS).split("\n")])


@given(st.lists(st.one_of(LINES, st.binary(max_size=60), LINES.map(lambda line: line[:-3])), max_size=80))
def test_whatever_a_log_says_its_guests_are_told_in_order_and_with_one_result_each(lines: list[bytes]) -> None:
    log = parse_task_log(b"\n".join(lines))
    for guest in log.guests:
        assert (guest.error != "") <= (guest.result != "ok")
        assert (guest.took_s is not None) == (guest.result == "ok")
    started = [line for line in lines if line.startswith(b"INFO: Starting Backup of VM 1") and line.endswith(b")")]
    assert len(log.guests) >= len(started)


def test_the_list_of_tasks_and_the_one_of_running_ones() -> None:
    index = f"{UPID} 6921C2F0 OK\n{UPID} 6921C2F1 WARNINGS: 1\nnonsense\n{UPID} 6921C2F2 job errors\n"
    assert [(task.upid.text, task.ended_s) for task in parse_task_list(index)] == [
        (UPID, 0x6921C2F0),
        (UPID, 0x6921C2F1),
        (UPID, 0x6921C2F2),
    ]
    active = f"{UPID} 0\n{UPID} 1 6921C2F0 OK\n{UPID} 1 6921C2F0\n{UPID}"
    ended = [task.ended_s for task in parse_task_list(active)]
    assert ended == [None, 0x6921C2F0, 0x6921C2F0, None]
    upid = parse_task_list(index)[0].upid
    assert (upid.node, upid.pid, upid.start_ticks, upid.started_s, upid.type) == (
        "pve1",
        0x3A6C1,
        0xC0FFEE,
        0x6921B2F0,
        "vzdump",
    )


def test_only_finished_archives_with_proxmoxs_own_names_count() -> None:
    archive = parse_archive_name("vzdump-qemu-101-2026_11_28-02_00_00.vma.zst")
    assert archive == ("qemu", 101, wall("2026-11-28 02:00:00"))
    container = parse_archive_name("vzdump-lxc-110-2026_11_28-02_00_00.tar")
    assert container is not None
    assert container.vmtype == "lxc"
    for name in (
        "vzdump-qemu-101-2026_11_28-02_00_00.dat",
        "vzdump-qemu-101-2026_11_28-02_00_00.vma.zst.notes",
        "vzdump-qemu-101-2026_11_28-02_00_00.log",
        "vzdump-qemu-101-2026_02_30-02_00_00.vma",
        "vzdump-qemu-101-before-the-upgrade.vma.zst",
        "vzdump-qemu-99-2026_11_28-02_00_00.vma",
    ):
        assert parse_archive_name(name) is None
