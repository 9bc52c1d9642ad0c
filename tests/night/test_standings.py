"""How each guest of a node stands, by the node's jobs and the history of turns."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvehook.config.in_force import Configuration
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.night.promises import read_promises
from pvehook.night.standings import standings
from pvehook.records.attempt import Attempt, AttemptResult
from pvehook.records.history import history_file
from pvehook.records.history_writing import append_attempts, keep_guests
from pvehook.records.known_guests import KnownGuest
from pvehook.report.standing import Standing
from pvehook.settings import Exempt

CLOSED = "at 05:02 the backup window was closed (outside 02:00-05:00)"
JOBS = """\
vzdump: nightly
\tschedule 02:00
\tall 1
\texclude 103
\tstorage nas

vzdump: weekly
\tschedule sat 03:00
\tvmid 103,101
\tenabled 0

vzdump: elsewhere
\tschedule 02:00
\tall 1
\tnode another
"""


def at_s(day: int, clock: str) -> float:
    hour, minute = map(int, clock.split(":"))
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC).timestamp()


class NodeInATree:
    """Its guests are 101, 102, 103 and the container 110."""

    def __init__(self, root: Path) -> None:
        self.node = Node(str(root))
        self.root = root
        for vmid, kind in ((101, "qemu-server"), (102, "qemu-server"), (103, "qemu-server"), (110, "lxc")):
            key = "name" if kind == "qemu-server" else "hostname"
            self.write(f"etc/pve/{kind}/{vmid}.conf", f"{key}: guest-{vmid}\n")
        self.write("etc/pve/jobs.cfg", JOBS)
        self.write("etc/pvehook.yaml", 'window: {open: ["02:00-05:00"]}\n')
        self.path = history_file(self.node)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def turn(self, vmid: int, day: int, result: AttemptResult, clock: str = "02:30") -> None:
        at = at_s(day, clock)
        reason = {"ok": "", "refused": CLOSED}.get(result, "no space left")
        attempt = Attempt(
            vmid, at, at + 60, "pve", f"UPID:{vmid}:{day}", "nightly", "schedule", None, None, None, result, reason
        )
        append_attempts(self.path, [attempt], now_s=at + 60)

    def run_ends(self, day: int, clock: str = "05:10") -> None:
        """What the daemon keeps then."""
        found = self.standings(day, clock).values()
        known = {each.vmid: KnownGuest(each.promised_s, None, None) for each in found}
        keep_guests(self.path, known, now_s=at_s(day, clock))

    def standings(self, day: int, clock: str = "05:10") -> dict[int, Standing]:
        in_force = Configuration(self.node, TimelyReader(), remembers=False).now()
        return {each.vmid: each for each in standings(self.node, TimelyReader(), in_force, at_s(day, clock))}


@pytest.fixture
def tree(tmp_path: Path) -> NodeInATree:
    return NodeInATree(tmp_path)


def test_a_node_that_backed_up_nothing_yet_has_guests_and_none_is_overdue(tree: NodeInATree) -> None:
    found = tree.standings(20)
    assert sorted(found) == [101, 102, 103, 110]
    assert not any(each.is_overdue for each in found.values())
    assert {each.last_good_s for each in found.values()} == {None}
    assert (found[110].title, found[101].title) == ("CT 110 guest-110", "VM 101 guest-101")


def test_who_is_refused_two_nights_running_is_overdue_and_comes_first(tree: NodeInATree) -> None:
    for day in (20, 21, 22):
        tree.turn(101, day, "ok")
        tree.turn(110, day, "ok" if day == 20 else "refused", "05:02")
        found = tree.standings(day)
        assert found[101].missed_turns == 0
    assert found[110].is_overdue
    assert next(iter(found)) == 110
    assert found[110].cause == f"refused twice: {CLOSED}"  # how long 102 takes nobody knows
    assert found[110].last_good_s == at_s(20, "05:02")
    assert found[110].in_job
    tree.turn(110, 23, "ok")
    assert not tree.standings(23)[110].is_overdue


def test_the_cause_of_a_refusal_says_how_long_its_job_takes(tree: NodeInATree) -> None:
    for day in (18, 19, 20, 21, 22):
        tree.turn(101, day, "ok")
        tree.turn(102, day, "ok")
        tree.turn(110, day, "ok" if day < 21 else "refused", "05:02")
    cause = tree.standings(22)[110].cause
    assert cause == f"refused twice: {CLOSED}; job nightly needs 0 h 03 min for all of its guests"


def test_a_guest_in_no_enabled_job_is_not_overdue_however_old_its_backup_is(tree: NodeInATree) -> None:
    tree.turn(103, 1, "ok")
    found = tree.standings(28)[103]
    assert (found.is_overdue, found.last_good_s) == (False, at_s(1, "02:30"))
    assert found.cause == "in no job that is enabled: job weekly would take it"


def test_a_guest_that_never_had_a_good_backup_is_overdue_by_the_turns_since_a_job_takes_it(tree: NodeInATree) -> None:
    tree.run_ends(20)
    assert tree.standings(21, "14:00")[102].missed_turns == 1
    assert tree.standings(22, "14:00")[102].is_overdue


def test_the_first_turn_of_a_new_guest_counts(tree: NodeInATree) -> None:
    tree.turn(101, 19, "ok")
    tree.run_ends(19)
    tree.write("etc/pve/qemu-server/104.conf", "name: new\n")
    tree.turn(104, 20, "failed")
    tree.run_ends(20)
    tree.turn(104, 21, "failed")
    assert (tree.standings(21)[104].missed_turns, tree.standings(21)[104].is_overdue) == (2, True)


def test_a_guest_that_a_job_takes_from_now_on_is_not_late_by_the_turns_before(tree: NodeInATree) -> None:
    tree.turn(103, 1, "ok")
    for day in range(1, 21):
        tree.run_ends(day)
    tree.write("etc/pve/jobs.cfg", JOBS.replace("\texclude 103\n", ""))
    assert not tree.standings(20)[103].is_overdue
    tree.run_ends(20)
    tree.turn(103, 21, "refused")
    assert tree.standings(21)[103].missed_turns == 1
    tree.turn(103, 22, "refused")
    assert tree.standings(22)[103].is_overdue


def test_another_job_does_not_make_up_for_missed_turns(tree: NodeInATree) -> None:
    tree.turn(101, 20, "ok")
    tree.run_ends(20)
    tree.turn(101, 21, "refused")
    tree.turn(101, 22, "refused")
    tree.run_ends(22)
    tree.write("etc/pve/jobs.cfg", JOBS.replace("vzdump: nightly", "vzdump: nightly-now-2"))
    assert tree.standings(22)[101].is_overdue


def test_a_guest_that_comes_back_from_another_node_is_not_late_by_what_it_missed_here(tree: NodeInATree) -> None:
    tree.turn(102, 1, "ok")
    tree.run_ends(1)
    (tree.root / "etc/pve/qemu-server/102.conf").unlink()
    tree.run_ends(2)
    tree.write("etc/pve/qemu-server/102.conf", "name: guest-102\n")
    tree.run_ends(20)
    assert not tree.standings(20, "06:00")[102].is_overdue
    tree.turn(102, 21, "refused")
    tree.turn(102, 22, "refused")
    assert tree.standings(22)[102].missed_turns == 2


def test_where_pvehook_has_just_come_what_is_read_from_proxmoxs_logs_counts(tree: NodeInATree) -> None:
    tree.turn(102, 1, "ok")
    tree.turn(110, 17, "failed")
    tree.turn(110, 18, "failed")
    for _ in ("before its first run's end", "after it"):
        found = tree.standings(18)
        assert (found[102].is_overdue, found[110].is_overdue, found[101].is_overdue) == (True, True, False)
        tree.run_ends(18)


def test_overdue_after_is_a_setting(tree: NodeInATree) -> None:
    tree.write("etc/pvehook.yaml", 'window: {open: ["02:00-05:00"], overdue_after: 3}\n')
    tree.turn(101, 20, "ok")
    tree.turn(101, 21, "refused")
    tree.turn(101, 22, "failed")
    assert not tree.standings(22)[101].is_overdue
    tree.turn(101, 23, "failed")
    assert tree.standings(23)[101].is_overdue


def test_a_line_of_cron_and_a_pool_promise_too(tree: NodeInATree) -> None:
    tree.write("etc/pve/user.cfg", "pool:web::103,200::\n")
    tree.write("etc/cron.d/backup", "30 2 * * * root vzdump --pool web --storage pbs\n")
    promises = read_promises(tree.node, TimelyReader(), Exempt())
    (promise,) = promises.of[103]
    assert (promise.job, promise.schedule, promise.is_cron, promise.storage) == (
        "/etc/cron.d/backup:1", "30 2 * * *", True, "pbs"
    )  # fmt: skip


def test_exemptions_from_the_window_are_known(tree: NodeInATree) -> None:
    for exempt in (Exempt(guests=(101,)), Exempt(jobs=("nightly",)), Exempt(storages=("nas",))):
        promises = read_promises(tree.node, TimelyReader(), exempt)
        assert [each.is_exempt for each in promises.of[101]] == [True]
    assert [each.is_exempt for each in read_promises(tree.node, TimelyReader(), Exempt()).of[101]] == [False]


def test_taking_a_guest_out_of_its_job_keeps_what_the_job_leaves_out(tree: NodeInATree) -> None:
    tree.write("etc/pve/jobs.cfg", JOBS + "\nvzdump: two\n\tschedule 02:00\n\tvmid 101,102\n")
    promises = read_promises(tree.node, TimelyReader(), Exempt()).of[101]
    assert [each.without for each in promises] == ["--exclude 103,101", "--vmid 102"]


def test_a_history_that_cannot_be_read_is_said(tree: NodeInATree) -> None:
    os.makedirs(os.path.dirname(tree.path))
    Path(tree.path).write_bytes(b"no database at all" * 100)
    with pytest.raises(NodeError, match="history"):
        tree.standings(20)
