"""What is made of Proxmox's logs and archives, in a tree that looks like a node."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pvehook.contract.task_log import parse_task_log
from pvehook.contract.upid import Upid, parse_upid
from pvehook.host.clock import RehearsalClock
from pvehook.host.node import Node
from pvehook.host.timely_files import Readers
from pvehook.night.past_runs import PastRuns, attempts_of
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import attempts_between
from pvehook.records.context import Context
from pvehook.records.history import reading
from pvehook.records.history_schema import SCHEMA
from pvehook.records.history_writing import append_attempts
from pvehook.records.journal import journal_log
from pvehook.rehearsal.journal_receiver import JournalReceiver

BERLIN = ZoneInfo("Europe/Berlin")
NOW_S = datetime(2026, 11, 29, 9, tzinfo=BERLIN).timestamp()


def upid_of(started_s: float, vmid: str = "", pid: int = 0x3A6C1) -> Upid:
    upid = parse_upid(f"UPID:pve1:{pid:08X}:00C0FFEE:{int(started_s):08X}:vzdump:{vmid}:root@pam:")
    assert upid is not None
    return upid


def log_of(*guests: tuple[int, str, str, str], end: str = "TASK OK") -> str:
    """Each guest: its number, when it began, when it ended, and its error, if any."""
    lines = [f"INFO: starting new backup job: vzdump {' '.join(str(vmid) for vmid, *_ in guests)} --mode snapshot"]
    for vmid, began, ended, error in guests:
        took = datetime.fromisoformat(f"{ended}Z") - datetime.fromisoformat(f"{began}Z")
        lines += [f"INFO: Starting Backup of VM {vmid} (qemu)", f"INFO: Backup started at {began}"]
        lines += [f"INFO: VM Name: vm{vmid}", "INFO: backup mode: snapshot"]
        if error:
            lines += [f"ERROR: Backup of VM {vmid} failed - {error}", f"INFO: Failed at {ended}"]
        else:
            lines += ["INFO: transferred 32.00 GiB in 312 seconds (105.0 MiB/s)"]
            lines += [f"INFO: Finished Backup of VM {vmid} ({took!s:0>8})", f"INFO: Backup finished at {ended}"]
    return "\n".join([*lines, end, ""])


def local(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


class PastNode:
    """A node's tree with its tasks' logs, and the history that is made of them."""

    def __init__(self, root: Path) -> None:
        self.node = Node(str(root))
        self.history = f"{root}/var/lib/pvehook/history.db"
        self.journal = JournalReceiver(self.node.journal_socket, lambda: NOW_S)
        self.write("/clock", f"@{NOW_S} 1.0\n")
        self.write("/etc/pve/qemu-server/101.conf", "name: db\n")
        self.write("/etc/pve/lxc/110.conf", "hostname: mail\n")
        os.symlink("/usr/share/zoneinfo/Europe/Berlin", root / "etc/localtime")
        clock = RehearsalClock(f"{root}/clock")
        context = Context(self.node, clock, Readers(), journal_log(self.node.journal_socket))
        self.past_runs = PastRuns(context, self.history)

    def write(self, path: str, text: str) -> None:
        real = Path(self.node.path(path))
        real.parent.mkdir(parents=True, exist_ok=True)
        with real.open("a") as file:
            file.write(text)

    def add_task(self, upid: Upid, log: str, ended: str = "6921C2F0 OK", index: str = "index") -> None:
        self.write(f"/var/log/pve/tasks/{index}", f"{upid.text} {ended}\n")
        self.write(f"/var/log/pve/tasks/{upid.started_s & 15:X}/{upid.text}", log)

    def attempts(self) -> list[Attempt]:
        self.past_runs.read(keep_days=400)
        return self.kept()

    def kept(self) -> list[Attempt]:
        with reading(self.history) as history:
            return attempts_between(history, 0, 1e11)

    def complaints(self) -> list[str]:
        """What the journal says was not read."""
        fields = [event.fields for event in self.journal.events]
        return [each["MESSAGE"] for each in fields if each["PVEHOOK_EVENT"] == "past-runs-not-read"]


@pytest.fixture
def past(tmp_path: Path) -> Iterator[PastNode]:
    node = PastNode(tmp_path)
    with node.journal:
        yield node


def attempt(upid: Upid, **changes: object) -> Attempt:
    made = Attempt(101, upid.started_s + 5.0, upid.started_s + 5.0, "pve1", upid.text, "nightly", "schedule", "db",
                   "qemu", "snapshot", "unknown", "its end was not seen")  # fmt: skip
    return made._replace(**changes)  # type: ignore[arg-type]


NIGHT = local("2026-11-28 02:00:00")


def test_a_night_from_before_is_read(past: PastNode) -> None:
    upid = upid_of(NIGHT)
    past.add_task(
        upid,
        log_of(
            (101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", ""),
            (102, "2026-11-28 02:05:18", "2026-11-28 02:06:00", "no space left"),
            end="TASK ERROR: job errors",
        ),
    )
    good, failed = past.attempts()
    assert good == Attempt(
        101, NIGHT + 5, NIGHT + 318, "pve1", upid.text, None, "unknown", "vm101", "qemu", "snapshot", "ok", "", 2.0**35
    )
    assert (failed.vmid, failed.result) == (102, "failed")
    assert failed.reason == f"no space left; its log: pvenode task log {upid.text}"
    assert past.attempts() == [good, failed]


def test_the_last_run_of_a_job_is_known_to_be_its(past: PastNode) -> None:
    by_schedule, by_hand = upid_of(NIGHT), upid_of(NIGHT + 3600)
    past.write("/var/lib/pve-manager/jobs/vzdump-nightly.json", f'{{"state": "started", "upid": "{by_schedule.text}"}}')
    past.add_task(by_schedule, log_of((101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", "")))
    past.add_task(by_hand, log_of((101, "2026-11-28 03:00:05", "2026-11-28 03:05:18", "")))
    runs = [(each.job_id, each.trigger) for each in past.attempts()]
    assert runs == [("nightly", "schedule"), (None, "unknown")]


def test_a_run_that_runs_or_is_older_than_the_history_is_left(past: PastNode) -> None:
    log = log_of((101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", ""))
    old = upid_of(NIGHT - 401 * 86400)
    past.add_task(old, log)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    os.symlink("/proc", past.node.path("/proc"))
    running = parse_upid(f"UPID:pve1:{os.getpid():08X}:{int(fields[19]):08X}:{int(NIGHT):08X}:vzdump::root@pam:")
    assert running is not None
    past.add_task(running, log, "0", index="active")
    assert past.attempts() == []
    dead = upid_of(NIGHT)
    past.add_task(dead, log, "0", index="active")
    assert [each.job for each in past.attempts()] == [dead.text]


def test_what_was_seen_of_a_turn_stays_and_an_end_that_was_not_seen_is_told(past: PastNode) -> None:
    """A daemon that was away for the end of 101 and all of 102's turn."""
    upid = upid_of(NIGHT)
    ours = attempt(upid)
    seen = attempt(upid, vmid=103, result="cancelled", reason="past the window's end")
    append_attempts(past.history, [ours, seen], now_s=NOW_S)
    past.add_task(
        upid,
        log_of(
            (101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", ""),
            (102, "2026-11-28 02:05:18", "2026-11-28 02:06:00", ""),
            (103, "2026-11-28 02:06:00", "2026-11-28 02:07:00", "backup cancelled"),
        ),
    )
    read, missed, kept = sorted(past.attempts())
    assert read == ours._replace(result="ok", reason="", ended_s=NIGHT + 318, copied_bytes=2.0**35)
    assert (missed.vmid, missed.result) == (102, "ok")
    assert kept == seen


@pytest.mark.parametrize("result", ["unknown", "worker-died"])
def test_a_log_without_an_end_changes_nothing(past: PastNode, result: str) -> None:
    upid = upid_of(NIGHT)
    ours = attempt(upid, result=result)
    append_attempts(past.history, [ours], now_s=NOW_S)
    log = log_of((101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", ""))
    past.add_task(upid, log[: log.index("INFO: transferred")])
    assert past.attempts() == [ours]
    past.write(f"/var/log/pve/tasks/{upid.started_s & 15:X}/{upid.text}", log[log.index("INFO: transferred") :])
    assert [each.result for each in past.attempts()] == ["ok"]  # as the rest was written while the daemon was there


def test_two_runs_in_one_minute_are_two_and_a_run_of_unknown_task_is_the_same(past: PastNode) -> None:
    """The second: in a history of an older pvehook, which did not keep the task."""
    first, second = upid_of(NIGHT, "101"), upid_of(NIGHT + 30, "101")
    append_attempts(past.history, [attempt(first, job="", result="ok", started_s=NIGHT + 2.5)], now_s=NOW_S)
    past.add_task(first, log_of((101, "2026-11-28 02:00:00", "2026-11-28 02:00:20", "no space left")))
    past.add_task(second, log_of((101, "2026-11-28 02:00:30", "2026-11-28 02:05:18", "")))
    assert [each.job for each in past.attempts()] == [""]  # both are near it; nothing is made up
    later = [upid_of(NIGHT + 3600, "101"), upid_of(NIGHT + 3630, "101")]
    past.add_task(later[0], log_of((101, "2026-11-28 03:00:00", "2026-11-28 03:00:20", "no space left")))
    past.add_task(later[1], log_of((101, "2026-11-28 03:00:30", "2026-11-28 03:05:18", "")))
    assert [each.result for each in past.attempts()] == ["ok", "failed", "ok"]


def test_a_run_that_broke_off_leaves_its_other_guests_without_a_backup(past: PastNode) -> None:
    upid = upid_of(NIGHT)
    log = log_of(
        (101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", "interrupted by signal"),
        end="TASK ERROR: interrupted by signal",
    )
    past.add_task(upid, log.replace("vzdump 101", "vzdump 101 102"))
    assert [(each.vmid, each.result) for each in past.attempts()] == [(101, "cancelled"), (102, "cancelled")]
    single = upid_of(NIGHT + 86400, "105")
    past.add_task(single, "TASK ERROR: could not activate storage 'nas'\n")
    last = past.attempts()[-1]
    assert (last.vmid, last.result) == (105, "failed")
    assert "could not activate storage 'nas'" in last.reason


def test_the_hour_that_comes_twice_goes_by_order_and_by_how_long_a_backup_took() -> None:
    began = local("2026-10-25 01:50:00")
    log = log_of(
        (101, "2026-10-25 01:50:00", "2026-10-25 02:40:00", ""),
        (102, "2026-10-25 02:40:00", "2026-10-25 02:10:00", "no space left"),
        (103, "2026-10-25 02:10:00", "2026-10-25 02:20:00", "no space left"),
    )
    attempts = attempts_of(upid_of(began), parse_task_log(log.encode()), BERLIN)
    assert [(each.started_s - began) / 60 for each in attempts] == [0, 50, 80]
    assert [each.duration_s / 60 for each in attempts] == [50, 30, 10]
    long = log_of((101, "2026-10-25 02:30:00", "2026-10-25 02:40:00", "")).replace("(00:10:00)", "(01:10:00)")
    (only,) = attempts_of(upid_of(local("2026-10-25 02:30:00")), parse_task_log(long.encode()), BERLIN)
    assert only.duration_s == 4200


STORAGES = """\
dir: local
\tpath /var/lib/vz
\tcontent iso,backup

dir: big
\tpath /mnt/big
\tcontent images

nfs: nas
\tpath /mnt/pve/nas
\tserver nas
\texport /x
\tcontent backup
"""


def test_archives_tell_of_guests_of_whom_nothing_else_is_known(past: PastNode) -> None:
    past.write("/etc/pve/storage.cfg", STORAGES)
    upid = upid_of(NIGHT)
    past.add_task(upid, log_of((101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", "")))
    for name in ("vzdump-lxc-110-2026_11_26-02_00_00.tar.zst", "vzdump-lxc-110-2026_11_27-02_00_00.tar.zst",
                 "vzdump-qemu-101-2026_11_26-02_00_00.vma.zst", "vzdump-qemu-999-2026_11_26-02_00_00.vma.zst",
                 "vzdump-lxc-110-2026_11_28-02_00_00.dat"):  # fmt: skip
        past.write(f"/var/lib/vz/dump/{name}", "")
    past.write("/mnt/big/dump/vzdump-lxc-110-2026_11_20-02_00_00.tar.zst", "")
    past.write("/mnt/pve/nas/dump/vzdump-lxc-110-2026_11_21-02_00_00.tar.zst", "")
    written_s = local("2026-11-26 02:20:00")
    os.utime(past.node.path("/var/lib/vz/dump/vzdump-lxc-110-2026_11_26-02_00_00.tar.zst"), (written_s, written_s))
    copied_s = local("2026-12-26 02:20:00")
    os.utime(past.node.path("/var/lib/vz/dump/vzdump-lxc-110-2026_11_27-02_00_00.tar.zst"), (copied_s, copied_s))
    first, second, read = past.attempts()
    assert (first.vmid, first.vmtype, first.result, first.job) == (110, "lxc", "ok", "")
    assert (first.started_s, first.ended_s) == (local("2026-11-26 02:00:00"), written_s)
    assert (second.started_s, second.ended_s) == (local("2026-11-27 02:00:00"),) * 2
    assert read.vmid == 101
    assert past.attempts() == [first, second, read]


def test_where_there_is_no_proxmox_nothing_is_made_and_nothing_said(past: PastNode) -> None:
    past.past_runs.read(keep_days=400)
    assert not os.path.exists(past.history)
    assert [event.fields for event in past.journal.events] == []


def test_what_cannot_be_read_costs_a_line_and_the_rest_is_kept(past: PastNode) -> None:
    bad, good = upid_of(NIGHT), upid_of(NIGHT + 16)
    past.add_task(good, log_of((101, "2026-11-28 02:00:16", "2026-11-28 02:05:18", "")))
    past.write("/var/log/pve/tasks/index", f"{bad.text} 6921C2F0 OK\n")
    os.mkfifo(past.node.path(f"/var/log/pve/tasks/{bad.started_s & 15:X}/{bad.text}"))  # nobody writes into it
    assert [each.job for each in past.attempts()] == [good.text]
    past.journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == "past-runs-not-read", "the fault")
    (complaint,) = past.complaints()
    assert bad.text in complaint


def test_a_log_that_proxmox_has_deleted_is_no_fault(past: PastNode) -> None:
    past.write("/var/log/pve/tasks/index", f"{upid_of(NIGHT).text} 6921C2F0 OK\n")
    assert past.attempts() == []
    past.journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == "past-runs-read", "the reading's end")
    assert past.complaints() == []


def test_a_history_of_an_older_pvehook_is_brought_up_to_date_first(past: PastNode) -> None:
    os.makedirs(os.path.dirname(past.history))
    with closing(sqlite3.connect(past.history)) as history:
        history.executescript("".join(SCHEMA[:4]) + "PRAGMA user_version = 4;")
    past.add_task(upid_of(NIGHT), log_of((101, "2026-11-28 02:00:05", "2026-11-28 02:05:18", "")))
    assert [each.result for each in past.attempts()] == ["ok"]
