"""How much of the night a backup leaves to those behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from pvehook.config.in_force import Configuration
from pvehook.deadline import Deadline
from pvehook.host.clock import RehearsalClock
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.night.run_plan import RunPlan
from pvehook.records.attempt import Attempt
from pvehook.records.context import Context
from pvehook.records.history import history_file
from pvehook.records.history_writing import append_attempts
from pvehook.records.run_state import RunState

NOW_S = 1_764_381_600.0  # 2026-11-29 02:00 UTC
TOOK_S = {101: 600.0, 102: 1200.0, 103: 1800.0}
DAY_S = 86400.0


class Log:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, _level: str) -> Any:
        return lambda event, **_: self.events.append(event)


class Night:
    """A node whose guests each took as long in every night before; the window closes at 05:00."""

    def __init__(self, root: Path) -> None:
        node = Node(str(root))
        for path, text in (
            ("etc/pvehook.yaml", 'window: {open: ["02:00-05:00"], timezone: UTC}\n'),
            ("clock", f"{NOW_S}"),
            ("etc/pve/jobs.cfg", "vzdump: late\n\tschedule 02:00\n\tvmid 102,103\n"),
            *((f"etc/pve/qemu-server/{vmid}.conf", "name: web\n") for vmid in TOOK_S),
        ):
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.root, self.log, readers = root, Log(), Readers()
        self.context = Context(node, Clock(), readers, cast(Any, self.log))
        self.in_force = Configuration(node, readers.config).now()
        assert not self.in_force.problems
        (root / "var/lib/pvehook").mkdir(parents=True, exist_ok=True)
        turns = [turn(vmid, NOW_S - days * DAY_S) for days in (3, 2, 1) for vmid in TOOK_S]
        append_attempts(history_file(node), turns, now_s=NOW_S)

    def plan_beside(self, *waiting: RunState) -> RunPlan:
        """Of the run that backs up guest 101 alone."""
        plan = RunPlan(self.context, run(7, "101"), lambda: waiting)
        assert plan.make(self.in_force, Deadline.after(60)), self.log.events
        return plan


class Clock(RehearsalClock):
    def __init__(self) -> None:
        """Stands still."""

    def now_s(self) -> float:
        return NOW_S


def turn(vmid: int, at_s: float) -> Attempt:
    return Attempt(
        vmid, at_s, at_s + TOOK_S[vmid], "pve", f"UPID{at_s}", "late", "schedule", "web", "qemu", "snapshot", "ok", ""
    )


def run(pid: int, guest: str = "") -> RunState:
    return RunState(ProcessId(pid, 1), f"UPID:pve:{pid:08X}:00000001:692A5C00:vzdump:{guest}:root@pam:", NOW_S)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def test_a_run_alone_leaves_time_to_nobody(night: Night) -> None:
    assert night.plan_beside().share(101, Deadline.after(60)).others is None


def test_a_run_that_waits_for_the_lock_is_left_its_time(night: Night) -> None:
    others = night.plan_beside(run(8, "102")).share(101, Deadline.after(60)).others
    assert others is not None
    assert others.guests == 1
    assert 1200 <= others.need_s < 1600  # with the forecast's error


def test_so_are_all_guests_of_a_job_that_waits(night: Night) -> None:
    late = run(9)
    states = night.root / "var/lib/pve-manager/jobs"
    states.mkdir(parents=True)
    (states / "vzdump-late.json").write_text(f'{{"state": "started", "upid": "{late.upid}", "updated": 1, "time": 1}}')
    others = night.plan_beside(late).share(101, Deadline.after(60)).others
    assert others is not None
    assert others.guests == 2
    assert 3000 <= others.need_s < 3600


def test_one_of_which_nothing_is_known_changes_nothing(night: Night) -> None:
    assert night.plan_beside(run(8, "999"), run(9)).share(101, Deadline.after(60)).others is None
    assert "fault" not in night.log.events


