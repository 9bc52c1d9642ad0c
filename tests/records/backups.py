"""Invented nights, seeded: what a node with good and bad guests would have written down."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from pvehook.contract.measured import Absent, Broken
from pvehook.records.attempt import Attempt
from pvehook.records.beside_record import LOADS_KEPT, MARKS_KEPT, BesideBackup, BesideRecord, Mark
from pvehook.records.history import PastBackup, past_backup
from pvehook.records.history_writing import append, append_attempts, append_beside
from pvehook.records.stall_record import (
    Baseline,
    FreezeOutcome,
    GovernorSummary,
    IdlePriority,
    PacerSummary,
    Point,
    SpeedPoint,
    StallRecord,
    Versions,
)
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import (
    Cause,
    GuestView,
    HostView,
    HypervisorView,
    KernelEvent,
    PressureSeconds,
    Severity,
    Verdict,
)

NOW_S = 1_795_500_000.0
"""2026-11-24 06:00 UTC."""
DAY_S = 86400.0
MB = 1_000_000

NO_AGENT = Absent("the guest runs no agent")
HUNG = Broken("QMP did not answer within 5 s")
SLOW_TARGET = Cause(
    "slow-target",
    "slow target: each first write of the guest waits for the backup's copy",
    "p99 of reads 2.1 ms (1810), of writes 1310 ms; mean write before 4.1 ms, during 212 ms",
)
OLD = Versions("9.0.3", "9.2.0", "6.8.12-4-pve")
NEW = Versions("9.0.3", "10.0.2", "6.8.12-4-pve")
SOFT_LOCKUP = KernelEvent(
    NOW_S - 1500, "soft-lockup", "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]"
)


def attempt(**more: Any) -> Attempt:
    """One guest's turn, a good one; as `more` says."""
    known: dict[str, Any] = {
        "vmid": 101,
        "started_s": NOW_S - 3600,
        "ended_s": NOW_S - 3000,
        "node": "pve",
        "job": "UPID:pve:1",
        "job_id": "nightly",
        "trigger": "schedule",
        "name": "web",
        "vmtype": "qemu",
        "mode": "snapshot",
        "result": "ok",
        "reason": "",
    }
    return Attempt(**known | more)


def all_backups(history: sqlite3.Connection) -> list[PastBackup]:
    """Its rows, the oldest first."""
    sql = f"SELECT {', '.join(PastBackup._fields)} FROM backups ORDER BY started_s"
    return [past_backup(row) for row in history.execute(sql)]


def latency(p99_ms: float, operations: int = 4000, over_1s: int = 0, over_10s: int = 0) -> Latency:
    figures = (round(p99_ms * part, 4) for part in (1 / 6, 1 / 12, 1 / 2, 1, 2))  # rounded, as a record is kept
    return Latency._make((operations, *figures, over_1s, over_10s))


def guest_view(**changes: Any) -> GuestView:
    values: dict[str, Any] = {
        "cpu": PressureSeconds(0.4, 0.0),
        "io": PressureSeconds(14.2, 9.8),
        "memory": PressureSeconds(0.0, 0.0),
        "steal_s": 0.8,
        "kernel": (),
    }
    return GuestView(**{**values, **changes})


def host_view(**changes: Any) -> HostView:
    values: dict[str, Any] = {
        "run_delay_s": 1.2,
        "worst_vcpu_s": 0.7,
        "io_full_s": 21.0,
        "cpu_some_s": 3.0,
        "memory_full_s": 0.0,
        "guest_cpu": PressureSeconds(1.1, 0.2),
        "guest_memory": PressureSeconds(0.0, 0.0),
        "guest_io": Absent("of a VM's cgroup it would be wrong"),
        "kernel": (),
        "agent_slowest_ms": 12.0,
    }
    return HostView(**{**values, **changes})


def hypervisor_view(**changes: Any) -> HypervisorView:
    values: dict[str, Any] = {
        "read": latency(2.1, 1810),
        "write": latency(24.0),
        "flush": latency(31.0, 600),
        "stalled_s": 0.0,
        "slowed_s": 0.0,
        "samples": 4800,
        "silence_ms": 40.0,
        "run_state": "running",
    }
    return HypervisorView(**{**values, **changes})


def record(**changes: Any) -> StallRecord:
    """A VM's good night of an hour that was seen by all three views."""
    stalled_s, slowed_s = changes.pop("stalled_s", 0.0), changes.pop("slowed_s", 0.0)
    severity: Severity = "stalled" if stalled_s >= 1 else "slowed" if slowed_s >= 1 else "none"
    causes = (SLOW_TARGET,) if severity != "none" else ()
    values: dict[str, Any] = {
        "node": "pve1",
        "job": "UPID:pve1:00001267:0086789C:6923D2A0:vzdump::root@pam:",
        "vmid": 101,
        "name": "web",
        "vmtype": "qemu",
        "mode": "snapshot",
        "result": "ok",
        "started_s": NOW_S - 4800,
        "ended_s": NOW_S - 1200,
        "backup_bytes": 32_000 * MB,
        "verdict": Verdict(severity, stalled_s, slowed_s, causes),
        "guest": guest_view(),
        "hypervisor": hypervisor_view(stalled_s=stalled_s, slowed_s=slowed_s),
        "host": host_view(),
        "baseline": Baseline(3600.0, "before", latency(1.4), latency(4.1), latency(9.0), 4.4),
        "points": (),
        "freeze": FreezeOutcome("freeze", "filesystem-consistent", 184, "frozen and thawed by pvehook", 3.2),
        "idle": IdlePriority(6, 6, "compressor only, dump honoured"),
        "governor": None,
        "pacer": None,
        "admitted_by": "the window 02:00-05:00 is open",
        "versions": NEW,
        "sampler_cpu_s": 2.4,
    }
    values.update(changes)
    if "verdict" not in changes and isinstance(values["hypervisor"], (Absent, Broken)):
        values["verdict"] = Verdict("unknown", None, None, ())
    return StallRecord(**values)


def container(**changes: Any) -> StallRecord:
    """A container's: QEMU has nothing to say, and it has no agent."""
    host = host_view(guest_io=PressureSeconds(40.0, 12.0), run_delay_s=Absent("a container has no vCPUs"))
    values: dict[str, Any] = {
        "vmid": 110,
        "name": "mail",
        "vmtype": "lxc",
        "guest": Absent("a container has no agent"),
        "hypervisor": Absent("a container has no QEMU"),
        "baseline": Absent("a container has no QEMU"),
        "host": host,
        "freeze": None,
        "verdict": Verdict("stalled", 12.0, None, (Cause("shared-disks", "shared disks", "waited 12.0 s"),)),
    }
    return record(**{**values, **changes})


def beside(**changes: Any) -> BesideRecord:
    """A VM that was in no backup of its own and suffered beside two of a run of two hours, 103's more than 110's."""
    stalled_s, slowed_s = changes.pop("stalled_s", 17.0), changes.pop("slowed_s", 41.0)
    severity: Severity = changes.pop("severity", None) or (
        "stalled" if stalled_s >= 1 else "slowed" if slowed_s >= 1 else "none"
    )
    values: dict[str, Any] = {
        "node": "pve1",
        "job": "UPID:pve1:00001267:0086789C:6923D2A0:vzdump::root@pam:",
        "vmid": 101,
        "name": "web",
        "vmtype": "qemu",
        "started_s": NOW_S - 8400,
        "ended_s": NOW_S - 1200,
        "watched_s": 7000.0,
        "severity": severity,
        "stalled_s": stalled_s,
        "slowed_s": slowed_s,
        "p99_ms": 2405.0 if severity != "none" else 16.0,
        "baseline_p99_ms": 15.0,
        "seen_by": "requests",
        "unknown": (),
        "beside": (
            BesideBackup(103, "qemu", "shared", 3600.0, 12.0, 30.0, 8.0),
            BesideBackup(110, "lxc", "shared", 1800.0, 5.0, 11.0),
        )
        if severity != "none"
        else (),
        "marks": tuple(Mark(60.0 * (each + 1), 10.0, 1.7, 4.1) for each in range(10)) if severity != "none" else (),
    }
    return BesideRecord(**{**values, **changes})


def charted(seed: int = 1, number: int = 120, bad: bool = True, **changes: Any) -> StallRecord:
    """A night with a chart: quiet at first, then the disks are full of the backup until the governor slows it."""
    rng = random.Random(seed)
    lasted_s = (changes.get("ended_s", 3600.0) - changes.get("started_s", 0.0)) / number
    points, speeds = [], []
    for index in range(number):
        part = index / number
        busy = bad and 0.25 < part < 0.6
        p99_ms = round((600.0 if busy else 9.0) * rng.lognormvariate(0.0, 0.6), 3)
        stalled_s = max(0.0, rng.gauss(0.4, 0.6)) if busy else 0.0
        moved = int((60 if busy else 110) * MB * lasted_s * rng.uniform(0.7, 1.1) * (0.4 if bad and part > 0.6 else 1))
        points.append(
            Point(round((index + 1) * lasted_s, 3), round(lasted_s, 3), p99_ms, 400, round(stalled_s, 2), moved)
        )
        if bad and part > 0.55 and index % 3 == 0:
            speeds.append(SpeedPoint(round(index * lasted_s, 3), int(rng.uniform(30, 55)) * MB, p99_ms, 25.0))
    stalled_s = round(sum(point.stalled_s for point in points), 1)
    write = latency(1310.0, 4000, 31, 0) if bad else latency(12.0)
    governor = GovernorSummary(
        "on",
        1600.0 if speeds else 0.0,
        240.0 if speeds else 0.0,
        30 * MB if speeds else None,
        25.0,
        ("the guest's writes took 600 ms, over the target of 25 ms",) if speeds else (),
        ("performance: max-workers=1 in /etc/vzdump.conf would help more",) if speeds else (),
        tuple(speeds),
    )
    values: dict[str, Any] = {
        "points": tuple(points),
        "stalled_s": stalled_s,
        "slowed_s": 6 * stalled_s,
        "governor": governor,
        "pacer": PacerSummary("auto", "the dump is on another disk", 0, 2 * MB, 0.0),
        "hypervisor": hypervisor_view(write=write, stalled_s=stalled_s, slowed_s=6 * stalled_s),
    }
    made = record(**{**values, **changes})
    if bad and isinstance(made.guest, GuestView):
        line = SOFT_LOCKUP._replace(at_s=made.started_s + 0.4 * made.duration_s)
        made = replace(made, guest=made.guest._replace(kernel=(line,)))
    return made


def a_nodes_backups(guests: int, days: int, seed: int = 7, charts_for_days: int = 0) -> list[StallRecord]:
    """`guests` over `days`, the oldest first: guest 103 gets worse with a new QEMU 12 nights ago, 105's agent is away,
    107's monitor hangs in the last night, some others have a bad night now and then."""
    rng = random.Random(seed)
    made = []
    for age in range(days - 1, -1, -1):
        for number in range(guests):
            vmid = 101 + number
            started_s = NOW_S - age * DAY_S - 7200 + number * 30
            made.append(_a_backup(vmid, started_s, age, age < charts_for_days, rng))
    return made


def _a_backup(vmid: int, started_s: float, age: int, has_chart: bool, rng: random.Random) -> StallRecord:
    after_upgrade = vmid % 50 == 3 and age < 12
    bad = after_upgrade or rng.random() < 0.03
    stalled_s = round(rng.uniform(4, 40), 1) if bad else 0.0
    slowed_s = stalled_s * 5 if bad else round(rng.expovariate(2), 1)
    lasted_s = rng.uniform(300, 5400)
    names = ("web", "build", "db", "files", "mail", "win-dc1", "git", "backup", "monitoring", "erp-test")
    changes: dict[str, Any] = {
        "vmid": vmid,
        "name": f"{names[vmid % 10]}{vmid // 10}",
        "started_s": started_s,
        "ended_s": started_s + lasted_s,
        "versions": NEW if age < 12 else OLD,
    }
    if vmid % 50 == 10:
        return container(**changes, verdict=Verdict("stalled" if bad else "none", stalled_s, None, ()))
    if vmid % 50 == 7 and age == 0:
        return record(**changes, hypervisor=HUNG, baseline=HUNG)
    if vmid % 50 == 5:
        changes["guest"] = NO_AGENT
    if has_chart:
        return charted(seed=vmid + age, bad=bad, **changes)
    write = latency(rng.uniform(300, 2000), over_1s=int(stalled_s)) if bad else latency(rng.lognormvariate(2.5, 0.4))
    view = hypervisor_view(write=write, stalled_s=stalled_s, slowed_s=slowed_s)
    return record(**changes, stalled_s=stalled_s, slowed_s=slowed_s, hypervisor=view)


def a_nodes_nights_beside(guests: int, days: int, seed: int = 11) -> list[BesideRecord]:
    """As much as there can be: in each night each guest suffers beside as many backups as are kept, all night."""
    rng = random.Random(seed)
    made = []
    for age, number in ((age, number) for age in range(days - 1, -1, -1) for number in range(guests)):
        others = rng.sample(range(guests), min(LOADS_KEPT, guests))
        worst_first = sorted((round(rng.expovariate(0.1), 3) for _ in others), reverse=True)
        loads = [
            BesideBackup(101 + other, "qemu", "shared", round(rng.uniform(60, 4000), 1), s, round(s * 2.4, 3), s)
            for other, s in zip(others, worst_first, strict=True)
        ]
        stalls = [round(rng.expovariate(0.5), 3) for _ in range(MARKS_KEPT)]
        marks = [Mark(round(60.0 * at + rng.random(), 3), 60.0, s, round(s * 2.7, 3)) for at, s in enumerate(stalls)]
        started_s = NOW_S - age * DAY_S - 7200
        made.append(
            beside(
                vmid=101 + number,
                name=f"guest-{number}",
                job=f"UPID:pve1:{age:08X}:0086789C:6923D2A0:vzdump::root@pam:",
                started_s=started_s,
                ended_s=started_s + 7200,
                p99_ms=round(rng.uniform(20, 3000), 3),
                beside=tuple(loads),
                marks=tuple(marks),
            )
        )
    return made


def neighbours(backups: Sequence[StallRecord], seed: int = 3) -> list[BesideRecord]:
    """What the guests of one night of a node, and three that are in no job, suffered while the others were backed up
    one after the other: 102 and 900 badly, some others a little. The rest, who did not, are on no record."""
    rng = random.Random(seed)
    began_s, ended_s = min(each.started_s for each in backups), max(each.ended_s for each in backups)
    others: list[tuple[int, str | None, str]] = [(each.vmid, each.name, each.vmtype or "qemu") for each in backups]
    others += [(900, "router", "qemu"), (901, "dns", "lxc"), (902, "quiet", "qemu")]
    made = []
    for vmid, name, vmtype in others:
        badness = 0.5 if vmid in (102, 900) else 0.0 if vmid == 902 else rng.choice((0.0, 0.0, 0.04))
        beside_, marks = [], []
        for backup in backups:
            if backup.vmid == vmid:
                continue
            stalled_s = slowed_s = 0.0
            pieces = max(int(backup.duration_s / 60), 1)
            for piece in range(pieces):
                if rng.random() < badness:
                    is_stalled = rng.random() < 0.4
                    mark_s = rng.uniform(1, 9)
                    at_s = backup.started_s - began_s + (piece + 1) * backup.duration_s / pieces
                    marks.append(Mark(round(at_s, 1), 60.0, mark_s if is_stalled else 0.0, mark_s + 3))
                    stalled_s += mark_s if is_stalled else 0.0
                    slowed_s += mark_s + 3
            if slowed_s:
                saved_s = backup.duration_s / 12 if stalled_s else 0.0
                watched_s = backup.duration_s
                beside_.append(
                    BesideBackup(backup.vmid, backup.vmtype, "shared", watched_s, stalled_s, slowed_s, saved_s)
                )
        beside_.sort(key=lambda each: (each.stalled_s, each.slowed_s), reverse=True)
        slowed_s = sum(each.slowed_s for each in beside_)
        changes: dict[str, Any] = {"p99_ms": min(60 * slowed_s + 16, 2600.0)}
        if vmtype == "lxc":
            no_p99 = Absent("a container has no QEMU")
            changes = {"p99_ms": no_p99, "baseline_p99_ms": no_p99, "seen_by": "pressure"}
        made.append(
            beside(
                **{"vmid": vmid, "name": name, "vmtype": vmtype, "started_s": began_s, "ended_s": ended_s, **changes},
                stalled_s=sum(each.stalled_s for each in beside_),
                slowed_s=slowed_s,
                beside=tuple(beside_),
                marks=tuple(sorted(marks)[:MARKS_KEPT]),
            )
        )
    return [each for each in made if each.severity != "none"]


def one_after_the_other(guests: int, seed: int = 5, hours: float = 3.05, **changes: Any) -> list[StallRecord]:
    """A node's last night, with charts: the guests one after the other from 02:00 UTC on, in a window until 05:00."""
    rng = random.Random(seed)
    made, at_s = [], NOW_S - 4 * 3600
    lengths = [rng.expovariate(1) + 0.2 for _ in range(guests)]
    for number, length in enumerate(lengths):
        ended_s = at_s + length / sum(lengths) * hours * 3600
        backup = _a_backup(101 + number, at_s, 0, True, rng)
        bad = number % 6 == 2
        kept = {"vmid": backup.vmid, "name": backup.name, "started_s": at_s, "ended_s": ended_s}
        kept |= {"window_closes_s": NOW_S - 3600, **changes}
        is_container = backup.vmtype == "lxc"
        made.append(container(**kept) if is_container else charted(101 + number, 120, bad, **kept))
        at_s = ended_s + 4
    return made


def a_nodes_turns(guests: int, days: int) -> list[Attempt]:
    """Of all guests each night: backed up, or refused as in a night that is too short."""
    upid = "UPID:pve-node-1:0003A6C1:00C0FFEE:{age:08X}:vzdump::root@pam:"
    refused = {"result": "refused", "reason": "at 05:12 the backup window was closed (outside 02:00-05:00)"}
    return [
        attempt(
            vmid=100 + number,
            started_s=NOW_S - age * DAY_S + number,
            ended_s=NOW_S - age * DAY_S + number,
            job=upid.format(age=age),
            copied_bytes=32e9,
            cost_s=61.5,
            **(refused if number % 4 == 0 else {}),
        )
        for age in range(days)
        for number in range(guests)
    ]


def write_long_history(path: str, guests: int, days: int) -> None:
    """A history as it is after `days` nights of `guests` guests, each with a chart, each suffering beside the others.
    Written night by night: some nights are written through `append`, the others are copies of them, made by SQLite,
    because it has to be quick."""
    template_days = 4
    template = f"{path}.template"
    append(template, *a_nodes_backups(guests, template_days, charts_for_days=template_days), now_s=NOW_S)
    append_beside(template, a_nodes_nights_beside(guests, template_days), now_s=NOW_S)
    append_attempts(template, a_nodes_turns(guests, template_days), now_s=NOW_S)
    for age in range(days - 1, -1, -1):
        append(path, now_s=NOW_S - age * DAY_S)  # drops what is too old by then
        with closing(sqlite3.connect(path, isolation_level=None)) as history:
            history.execute("ATTACH ? AS template", (template,))
            history.execute("BEGIN")
            _copy_backups(history, age % template_days, (age - age % template_days) * DAY_S)
            history.execute("COMMIT")


def _copy_backups(history: sqlite3.Connection, age: int, earlier_s: float) -> None:
    backup = (NOW_S - (age + 0.5) * DAY_S, NOW_S - (age - 0.5) * DAY_S)
    for rows, tables in (
        ("backups", (("backups", "id"), ("details", "backup"), ("charts", "backup"))),
        ("beside", (("beside", "id"), ("beside_details", "beside"), ("beside_marks", "beside"))),
        ("attempts", (("attempts", "id"),)),
    ):
        (highest,) = history.execute(f"SELECT coalesce(max(id), 0) FROM main.{rows}").fetchone()
        for table, key in tables:
            columns = [row[1] for row in history.execute(f"PRAGMA main.table_info({table})")]
            times = {name: f"{name} - {earlier_s}" for name in columns if name in ("started_s", "ended_s")}
            changed = {key: f"{key} + {highest}", **times}
            chosen = ", ".join(changed.get(column, column) for column in columns)
            copied = f"SELECT {chosen} FROM template.{table} WHERE started_s BETWEEN ? AND ?"
            history.execute(f"INSERT INTO main.{table} {copied}", backup)
