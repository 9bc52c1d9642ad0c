"""What a run's start says of its end, who gives way to whom, and what its governor leaves to the guests behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from pvehook.records.attempt import Attempt, AttemptResult
from pvehook.records.attempt_history import attempts_between
from pvehook.records.history import history_file, reading
from pvehook.records.history_writing import append_attempts
from pvehook.rehearsal.vzdump.player import Played, Player, play
from pvehook.rehearsal.vzdump.run import Guest
from tests.node_under_test import NodeUnderTest

WINDOW = 'window: {open: ["02:00-05:00"], timezone: UTC}\n'
BEGINS = datetime(2026, 11, 24, 2, tzinfo=UTC)


def backed_up(vmid: int, nights_ago: int, hours: float, result: AttemptResult = "ok") -> Attempt:
    started_s = (BEGINS - timedelta(days=nights_ago)).timestamp() + vmid
    ended_s = started_s + (hours * 3600 if result != "refused" else 0)
    return Attempt(
        vmid=vmid, started_s=started_s, ended_s=ended_s, node="pve1", job=f"UPID:{vmid}:{nights_ago}",
        job_id="nightly", trigger="schedule", name=None, vmtype="qemu", mode="snapshot", result=result, reason="",
    )  # fmt: skip


def prepare(node: NodeUnderTest, past: Sequence[Attempt], vmids: Sequence[int] = (101, 102, 103)) -> None:
    """A node with one job of these guests, and their past."""
    for vmid in vmids:
        node.write(f"/etc/pve/qemu-server/{vmid}.conf", "scsi0: local:disk,size=32G\n")
    node.write("/etc/pve/jobs.cfg", f"vzdump: nightly\n\tschedule 02:00\n\tvmid {','.join(map(str, vmids))}\n")
    if past:
        append_attempts(history_file(node.node), past, now_s=BEGINS.timestamp())


def night(
    node: NodeUnderTest,
    *vmids: int,
    runs: Sequence[int],
    hours: float,
    job_id: str | None = "nightly",
    known: str = "after job-init",
) -> Played:
    """A run of these guests from 02:00 on. `runs` are backed up, and each of them takes that long. `known`: when the
    scheduler writes down which job it is."""
    now = BEGINS
    node.set_clock(now.isoformat())
    pauses = (known, *(f"archive {vmid}" for vmid in runs))
    with Player(node.run(*(Guest(vmid) for vmid in vmids), pauses=pauses)) as player:
        player.wait_for(known)
        if job_id is not None:
            state = {"state": "started", "upid": player.so_far().upid, "config": {"schedule": "02:00"}}
            node.write(f"/var/lib/pve-manager/jobs/vzdump-{job_id}.json", json.dumps(state))
        player.go_on()
        for vmid in runs:
            player.wait_for(f"archive {vmid}")
            now += timedelta(hours=hours)
            node.set_clock(now.isoformat())
            player.go_on()
        return player.finish()


def results(node: NodeUnderTest) -> dict[int, Attempt]:
    with reading(history_file(node.node)) as history:
        return {each.vmid: each for each in attempts_between(history, BEGINS.timestamp(), 1e12)}


WAITED = [backed_up(vmid, nights, 2.0) for vmid in (101, 102) for nights in (1, 2)] + [
    backed_up(103, 1, 0, "refused"),
    backed_up(103, 2, 2.0),
]
"""Two hours each: three do not fit. Last night it was 103 that was refused."""


def test_who_was_backed_up_last_gives_way_to_who_waited_longer(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, WAITED)
    played = night(node, 101, 102, 103, runs=(101, 103), hours=2)
    log = "\n".join(played.task_log)
    assert "pvehook: guest 102 is refused, it gives way to guest 103, which waited longer" in log
    assert "the window closes at 05:00; its turn is expected in the next run" in log
    assert any("VM 102            refused" in each for each in played.notification)
    kept = results(node)
    assert {vmid: each.result for vmid, each in kept.items()} == {101: "ok", 102: "refused", 103: "ok"}
    assert kept[102].reason.startswith("gave way to guest 103, which waited longer")
    assert node.wait_for_event("window-refused", vmid="102")["PVEHOOK_REASON"] == "gives-way"


def test_also_where_the_scheduler_writes_the_job_down_a_moment_late(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, WAITED)
    night(node, 101, 102, 103, runs=(101, 103), hours=2, known="after job-start")
    assert results(node)[102].result == "refused"


def test_in_order_the_last_one_is_refused_again(node: NodeUnderTest) -> None:
    node.configure(WINDOW.replace("}", ", when_short: in-order}"))
    prepare(node, WAITED)
    night(node, 101, 102, 103, runs=(101, 102), hours=2)
    assert {vmid: each.result for vmid, each in results(node).items()} == {101: "ok", 102: "ok", 103: "refused"}


def test_a_run_by_hand_is_told_that_its_end_is_not_known_and_nobody_gives_way_in_it(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, WAITED)
    night(node, 101, 102, 103, runs=(101, 102), hours=2, job_id=None)
    assert {vmid: each.result for vmid, each in results(node).items()} == {101: "ok", 102: "ok", 103: "refused"}
    assert "vzdump does not say which guests it has" in node.wait_for_event("forecast-not-made")["MESSAGE"]


def test_an_exempt_guest_gives_way_to_nobody(node: NodeUnderTest) -> None:
    node.configure(WINDOW.replace("}", ", exempt: {guests: [102]}}"))
    prepare(node, WAITED)
    night(node, 101, 102, 103, runs=(102, 103), hours=2)
    assert {vmid: each.result for vmid, each in results(node).items()} == {101: "refused", 102: "ok", 103: "ok"}


def test_the_starts_line_says_when_the_run_ends_and_the_window_closes(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, [backed_up(vmid, nights, 0.5) for vmid in (101, 102, 103) for nights in (1, 2, 3)])
    played = night(node, 101, 102, 103, runs=(101, 102, 103), hours=0.5)
    (line,) = (each for each in played.task_log if "expected to end" in each)
    assert "pvehook: expected to end at 03:30 (03:1" in line
    assert line.endswith("), 3 guests; the window closes at 05:00")


def test_the_forecast_is_kept_beside_what_came_of_it(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, [backed_up(vmid, nights, 0.5) for vmid in (101, 102, 103) for nights in (1, 2, 3)])
    night(node, 101, 102, 103, runs=(101, 102, 103), hours=0.5)
    last = results(node)[103]
    assert last.expected_s == pytest.approx(1800, rel=0.01)
    assert last.expected_least_s is not None
    assert last.expected_most_s is not None
    assert last.expected_least_s < 1800 < last.expected_most_s
    assert last.expected_end_s == pytest.approx(BEGINS.timestamp() + 5400, abs=60)


def test_of_a_first_night_it_is_said_that_nothing_is_known(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, [])
    played = night(node, 101, 102, 103, runs=(101, 102, 103), hours=0.1)
    assert any("3 guests; how long they take is not known yet" in each for each in played.task_log)


def test_a_run_that_does_not_fit_says_so_at_its_start(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, WAITED)
    played = night(node, 101, 102, 103, runs=(101, 103), hours=2)
    (line,) = (each for each in played.task_log if "expected to end" in each)
    assert "too early for 1 of them; those who were backed up last give way (window.when_short: rotate)" in line


OVERDUE = [
    backed_up(102, 1, 0.5),
    backed_up(101, 9, 0.5),
    *(backed_up(101, night, 0, "refused") for night in (1, 2, 3)),
]
"""101 was refused three nights."""


@pytest.mark.parametrize(("overdue", "refused"), [("refuse", {101, 102}), ("allow", {102})])
def test_an_overdue_guest_is_let_in_outside_the_window_if_that_is_configured(
    node: NodeUnderTest, overdue: str, refused: set[int]
) -> None:
    node.configure(WINDOW.replace("}", f", overdue: {overdue}}}"))
    prepare(node, OVERDUE, (101, 102))
    node.set_clock("2026-11-24T09:00:00+00:00")
    played = play(node.run(Guest(101), Guest(102)))
    if overdue == "refuse":
        assert [call.argv[0] for call in played.calls] == ["job-init"]
        return
    assert {vmid for vmid, each in results(node).items() if each.result == "refused"} == refused
    log = "\n".join(played.task_log)
    assert "of this run only these guests will be backed up, every other is refused: 101" in log
    assert "but guest 101 is overdue (window.overdue: allow)" in log
    assert node.wait_for_event("window-admitted", vmid="101")["PVEHOOK_REASON"] == "overdue"


def test_without_the_daemon_an_overdue_guest_is_refused(node: NodeUnderTest) -> None:
    node.configure("window: {open: [], overdue: allow}\n")
    prepare(node, OVERDUE, (101, 102))
    node.set_clock("2026-11-24T09:00:00+00:00")
    with Player(node.run(Guest(101), pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        assert player.so_far().calls[0].exit_code == 0
    node.kill_daemon()
    assert play(node.run(Guest(101))).calls[0].exit_code == 1


def test_a_restarted_daemon_knows_the_plan(node: NodeUnderTest) -> None:
    node.configure(WINDOW)
    prepare(node, WAITED)
    node.set_clock(BEGINS.isoformat())
    pauses = ("after job-init", "archive 101", "archive 103")
    with Player(node.run(*map(Guest, (101, 102, 103)), pauses=pauses)) as player:
        player.wait_for("after job-init")
        state = {"state": "started", "upid": player.so_far().upid}
        node.write("/var/lib/pve-manager/jobs/vzdump-nightly.json", json.dumps(state))
        player.go_on()
        player.wait_for("archive 101")
        node.kill_daemon()
        node.set_clock((BEGINS + timedelta(hours=2)).isoformat())
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        player.go_on()
        player.wait_for("archive 103")
        player.go_on()
        player.finish()
    assert results(node)[102].result == "refused"
