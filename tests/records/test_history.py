"""The history keeps what it is given, is bounded by age, and losing it costs the history and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.errors import NodeError
from pvehook.records import history_schema, history_writing
from pvehook.records.attempt_history import attempts_between, last_good_s
from pvehook.records.beside_history import beside_between
from pvehook.records.history import last_records, last_samples, past_baselines, reading, record_of
from pvehook.records.history_schema import CHART_DAYS, DETAIL_DAYS, KEEP_DAYS, SCHEMA
from pvehook.records.history_writing import append, append_attempts, append_beside
from pvehook.records.nights import last_backups, nights
from pvehook.records.stall_record import Baseline, StallRecord
from tests.records.backups import (
    DAY_S,
    HUNG,
    NO_AGENT,
    NOW_S,
    all_backups,
    attempt,
    beside,
    charted,
    container,
    latency,
    record,
)

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "history.db")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that is soon full."""
    place = tmp_path / "tiny"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], check=False, capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no real small file system: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def backup(age: float, vmid: int = 101, **changes: object) -> StallRecord:
    started_s = NOW_S - age * DAY_S
    return record(vmid=vmid, started_s=started_s, ended_s=started_s + 600, **changes)


def kept(path: str) -> list[tuple[int, float]]:
    with reading(path) as database:
        return [(each.vmid, (NOW_S - each.started_s) / DAY_S) for each in all_backups(database)]


# Keeping


@pytest.mark.parametrize(
    "shown",
    [record(), record(stalled_s=3.4, slowed_s=41.0), record(hypervisor=HUNG, guest=NO_AGENT), container(), charted()],
    ids=["good", "bad", "missing", "container", "with a chart"],
)
def test_what_was_written_is_read(path: str, shown: StallRecord) -> None:
    assert append(path, shown, now_s=NOW_S) is None
    with reading(path) as database:
        (row,) = all_backups(database)
        read = record_of(database, row.id)
    assert isinstance(read, StallRecord)
    assert read.verdict == shown.verdict
    views = (shown.guest, shown.host, shown.baseline, shown.freeze)
    assert (read.guest, read.host, read.baseline, read.freeze) == views
    assert len(read.points) == len(shown.points)
    assert (read.governor and read.governor.speeds) == (shown.governor and shown.governor.speeds)
    assert (row.vmid, row.name, row.result, row.severity) == (shown.vmid, shown.name, "ok", shown.verdict.severity)
    assert row.causes.split() == [cause.kind for cause in shown.verdict.causes]


def test_zero_absent_and_broken_stay_apart_in_a_row(path: str) -> None:
    append(path, backup(0, 101), backup(0, 102, hypervisor=HUNG), backup(0, 103, hypervisor=NO_AGENT), now_s=NOW_S)
    with reading(path) as database:
        seen, hung, none = (each.stalled_s for each in all_backups(database))
    assert seen == 0.0
    assert isinstance(seen, float)
    assert hung == Broken("QMP did not answer within 5 s")
    assert none == Absent("the guest runs no agent")


def test_a_night_that_is_told_twice_is_kept_once(path: str) -> None:
    append(path, charted(), now_s=NOW_S)
    append(path, record(result="failed"), now_s=NOW_S)
    with reading(path) as database:
        (row,) = all_backups(database)
        read = record_of(database, row.id)
    assert row.result == "failed"
    assert isinstance(read, StallRecord)
    assert read.points == ()  # nor is a chart left of the first


def test_a_name_that_cannot_be_encoded_is_kept(path: str) -> None:
    append(path, record(name="web\udcff\n"), now_s=NOW_S)
    with reading(path) as database:
        (row,) = all_backups(database)
        read = record_of(database, row.id)
    assert row.name == "web\\udcff\\n"
    assert isinstance(read, StallRecord)
    assert read.name == "web\udcff\n"


def test_only_root_may_read_it(path: str) -> None:
    before = os.umask(0o022)
    append(path, record(), now_s=NOW_S)
    os.umask(before)
    with contextlib.closing(sqlite3.connect(path)) as writer:  # keeps the journal's files
        writer.execute("SELECT * FROM backups").fetchone()
        for name in os.listdir(os.path.dirname(path)):
            assert stat.S_IMODE(os.stat(os.path.join(os.path.dirname(path), name)).st_mode) == 0o600, name
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


def test_a_list_is_of_one_guest_and_since_a_day_when_asked(path: str) -> None:
    append(path, *(backup(age, vmid) for age in (9, 5, 1) for vmid in (101, 102)), now_s=NOW_S)
    with reading(path) as database:
        lasts = last_backups(database, NOW_S - 6 * DAY_S, NOW_S - 2 * DAY_S)
        assert [(each.vmid, NOW_S - each.started_s) for each, _ in lasts] == [(101, 5 * DAY_S), (102, 5 * DAY_S)]
        assert [each.vmid for each, _ in last_backups(database, 0.0, NOW_S, 102)] == [102]
        shown, _ = nights(database, 102, 0.0, NOW_S - 6 * DAY_S, NOW_S)
        assert [NOW_S - each.started_s for each in shown] == [5 * DAY_S, DAY_S]


# The bound


def test_what_is_too_old_goes_and_what_is_not_stays(path: str) -> None:
    ages = (KEEP_DAYS + 3, KEEP_DAYS + 1, KEEP_DAYS - 1, 2, 1, 0)  # counted from the third last night
    append(path, *map(backup, ages), now_s=NOW_S)
    assert [round(age) for _, age in kept(path)] == [KEEP_DAYS + 1, KEEP_DAYS - 1, 2, 1, 0]


@pytest.mark.parametrize("years", [30, -30], ids=["ahead", "back"])
def test_nights_with_a_wrong_clock_delete_nothing_and_are_forgotten_in_the_end(path: str, years: int) -> None:
    for age in range(10, 2, -1):
        append(path, backup(age), now_s=NOW_S - age * DAY_S)
    for day in (0, 1):
        wrong_s = NOW_S + years * 365 * DAY_S + day * DAY_S
        for vmid in (101, 102):
            late = record(vmid=vmid, started_s=wrong_s, ended_s=wrong_s + 60)
            append(path, late, now_s=wrong_s + 60)
    append(path, backup(0), now_s=NOW_S)
    right = [round(age) for _, age in kept(path) if abs(age) < 1000]
    assert right == [10, 9, 8, 7, 6, 5, 4, 3, 0]

    later_s = NOW_S + (KEEP_DAYS + 9) * DAY_S
    for day in range(4):
        at_s = later_s + day * DAY_S
        append(path, record(started_s=at_s, ended_s=at_s + 60), now_s=at_s + 60)
    assert [round(age + KEEP_DAYS + 9) for _, age in kept(path)] == [0, -1, -2, -3]


def test_a_caller_can_keep_less(path: str) -> None:
    append(path, backup(33), backup(31), backup(2), backup(1), charted(), now_s=NOW_S, keep_days=30)
    assert [round(age) for _, age in kept(path)] == [31, 2, 1, 0]


def test_charts_and_details_go_before_their_row(path: str) -> None:
    for age in (DETAIL_DAYS + 3, DETAIL_DAYS - 1, CHART_DAYS + 3, CHART_DAYS - 1, 2, 1, 0):
        started_s = NOW_S - age * DAY_S
        append(path, charted(started_s=started_s, ended_s=started_s + 600), now_s=started_s + 600)
    append(path, now_s=NOW_S)
    with reading(path) as database:
        rows = all_backups(database)
        records = [record_of(database, row.id) for row in rows]
    assert len(rows) == 7
    assert records[0] == Absent("details are kept for 120 days")
    assert [len(each.points) for each in records if isinstance(each, StallRecord)] == [0, 0, 120, 120, 120, 120]


# What the sampler and Prometheus take from it


def test_baselines_of_a_guest_newest_first(path: str) -> None:
    for age in range(10):
        before = Baseline(600.0, "before", latency(1.0), latency(float(age + 1)), latency(1.0), 2.0)
        append(path, backup(age, 101, baseline=before), backup(age, 102), now_s=NOW_S)
    assert [each.write.p99_ms for each in past_baselines(path, 101, 3)] == [1.0, 2.0, 3.0]
    assert past_baselines(path, 999) == []


def test_a_baseline_that_came_from_history_or_was_not_seen_is_none(path: str) -> None:
    """Else one quiet week would be the measure for ever."""
    borrowed = Baseline(600.0, "history", latency(1.0), latency(1.0), latency(1.0))
    append(path, backup(2), backup(1, baseline=borrowed), backup(0, baseline=HUNG), now_s=NOW_S)
    (found,) = past_baselines(path, 101)
    assert found.source == "before"


def test_without_a_history_there_are_no_baselines(path: str) -> None:
    assert past_baselines(path, 101) == []


def test_the_newest_record_of_each_guest(path: str) -> None:
    append(path, backup(2, 101), backup(1, 101), backup(1, 102), backup(20, 103), now_s=NOW_S)
    with reading(path) as database:
        found = last_records(database, NOW_S - 10 * DAY_S)
    assert [(each.vmid, round((NOW_S - each.started_s) / DAY_S)) for each in found] == [(101, 1), (102, 1)]


def test_the_samples_of_each_guests_last_backup_for_prometheus(path: str) -> None:
    append(path, backup(30, 103), now_s=NOW_S)
    append(path, backup(2, 101), backup(1, 101), backup(1, 102), now_s=NOW_S)
    samples, _, _ = last_samples(path, NOW_S - 10 * DAY_S, NOW_S)
    assert sorted(samples) == [101, 102]
    started_s = f"{NOW_S - DAY_S:.1f}"
    name = "pvehook_backup_start_timestamp_seconds"
    assert samples[101][name] == [f'{name}{{vmid="101"}} {started_s}']


def test_beside_others_prometheus_gets_the_last_run(path: str) -> None:
    """A guest that was well since must not stay as it was in the night in which it suffered."""
    append_beside(path, [beside(vmid=103), beside(vmid=104)], now_s=NOW_S)
    append_beside(path, [beside(vmid=104, job="UPID:next", started_s=NOW_S - 60)], now_s=NOW_S)
    _, samples, _ = last_samples(path, NOW_S - 10 * DAY_S, NOW_S)
    name = "pvehook_beside_start_timestamp_seconds"
    assert [each[name] for each in samples.values()] == [[f'{name}{{vmid="104"}} {NOW_S - 60:.1f}']]
    append_beside(path, [], now_s=NOW_S)
    assert last_samples(path, 0.0, NOW_S)[1] == {}


# What can go wrong


@AS_ROOT
def test_a_full_disk_costs_the_record_and_nothing_else(tiny_disk: Path) -> None:
    path = str(tiny_disk / "history.db")
    append(path, charted(), now_s=NOW_S)
    (tiny_disk / "filler").write_bytes(b"")
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(NodeError, match=r"history .*full.*record is not kept"):
        append(path, *(charted(vmid=vmid) for vmid in range(102, 140)), now_s=NOW_S)
    assert [vmid for vmid, _ in kept(path)] == [101]
    (tiny_disk / "filler").unlink()
    assert append(path, record(vmid=102), now_s=NOW_S) is None
    assert [vmid for vmid, _ in kept(path)] == [101, 102]


@AS_ROOT
def test_a_disk_that_is_full_from_the_start(tiny_disk: Path) -> None:
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(NodeError, match="not kept"):
        append(str(tiny_disk / "history.db"), record(), now_s=NOW_S)
    (tiny_disk / "filler").unlink()
    assert append(str(tiny_disk / "history.db"), record(), now_s=NOW_S) is None


@AS_ROOT
def test_a_read_only_directory_costs_the_record_and_can_be_read(tiny_disk: Path) -> None:
    path = str(tiny_disk / "history.db")
    append(path, record(), now_s=NOW_S)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(NodeError, match="not kept"):
        append(path, record(vmid=102), now_s=NOW_S)
    assert [vmid for vmid, _ in kept(path)] == [101]


def crashed_writer(path: str) -> None:
    """A real process that is killed with a record in the journal and not yet in the file."""
    code = (
        "import os, signal, sqlite3\n"
        f"writer = sqlite3.connect({path!r}, isolation_level=None)\n"
        "writer.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "writer.execute('UPDATE backups SET name = \"from the journal\"')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert os.path.getsize(f"{path}-wal") > 0


def names(path: str) -> list[str | None]:
    with reading(path) as database:
        return [each.name for each in all_backups(database)]


def test_what_a_killed_daemon_left_in_the_journal_is_read_and_kept(path: str) -> None:
    append(path, record(), now_s=NOW_S)
    crashed_writer(path)
    assert names(path) == ["from the journal"]
    append(path, record(vmid=102, name="next"), now_s=NOW_S)
    assert names(path) == ["from the journal", "next"]


@AS_ROOT
@pytest.mark.parametrize("is_there", [True, False], ids=["with -shm", "without"])
def test_a_journal_that_cannot_be_recovered_in_place_is_read_all_the_same(tiny_disk: Path, is_there: bool) -> None:
    path = str(tiny_disk / "history.db")
    append(path, record(), now_s=NOW_S)
    crashed_writer(path)
    if not is_there:
        os.unlink(f"{path}-shm")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert names(path) == ["from the journal"]


def test_a_copy_elsewhere_is_read(path: str, tmp_path: Path) -> None:
    append(path, record(), now_s=NOW_S)
    shutil.copy(path, tmp_path / "odd name #1?.db")
    assert names(str(tmp_path / "odd name #1?.db")) == ["web"]


def test_it_is_read_while_it_is_written(path: str) -> None:
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE backups SET name = 'half written'")
        assert names(path) == ["web"]


def test_a_lock_of_somebody_else_is_not_waited_for_without_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_writing, "BUSY_S", 0.05)
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NodeError, match=r"locked.*not kept"):
            append(path, record(vmid=102), now_s=NOW_S)
        other.execute("ROLLBACK")
    assert append(path, record(vmid=102), now_s=NOW_S) is None


def test_several_jobs_end_at_the_same_time(path: str) -> None:
    threads = [
        threading.Thread(target=append, args=(path, record(vmid=vmid)), kwargs={"now_s": NOW_S})
        for vmid in range(101, 117)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(vmid for vmid, _ in kept(path)) == list(range(101, 117))


@pytest.mark.parametrize("rubbish", [b"no database at all" * 999, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_moved_aside_and_said(path: str, rubbish: bytes) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(rubbish)
    said = append(path, record(), now_s=NOW_S)
    assert said is not None
    assert f"it is now {path}.damaged, and a new one was begun" in said
    assert Path(f"{path}.damaged").read_bytes() == rubbish
    assert [vmid for vmid, _ in kept(path)] == [101]
    assert append(path, record(vmid=102), now_s=NOW_S) is None  # it is said once


def test_a_page_that_is_damaged_is_found_when_it_is_written_to(path: str) -> None:
    append(path, *(backup(age) for age in range(50)), now_s=NOW_S)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))
    said = append(path, record(vmid=102), now_s=NOW_S)
    assert said is not None
    assert "damaged" in said
    assert [vmid for vmid, _ in kept(path)] == [102]


def test_damage_that_sqlites_own_message_quotes_is_damage_too(path: str) -> None:
    """Found by tests/bench/fuzz_parsers.py: the bytes are no text, so Python raises something else for them."""
    append(path, record(), now_s=NOW_S)
    whole = Path(path).read_bytes()
    damaged = whole.replace(b"CREATE INDEX details_by_time", b"CREATE \xd3\xd3\xd3\xd3\xd3 details_by_time")
    assert damaged != whole
    Path(path).write_bytes(damaged)
    with pytest.raises(NodeError, match="history"), reading(path) as opened:
        all_backups(opened)
    said = append(path, record(vmid=102), now_s=NOW_S)
    assert said is not None
    assert f"it is now {path}.damaged, and a new one was begun" in said
    assert [vmid for vmid, _ in kept(path)] == [102]


def test_what_is_moved_aside_every_night_does_not_fill_the_disk(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    for _ in range(5):
        Path(path).write_bytes(b"rubbish " * 1000)
        append(path, record(), now_s=NOW_S)
    assert sorted(os.listdir(os.path.dirname(path))) == ["history.db", "history.db.damaged"]


def test_a_newer_database_is_moved_aside_by_the_daemon_and_left_alone_by_a_report(path: str) -> None:
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute(f"PRAGMA user_version = {len(SCHEMA) + 1}")
    with pytest.raises(NodeError, match="made by a newer pvehook"), reading(path):
        pass
    said = append(path, record(vmid=102), now_s=NOW_S)
    assert said is not None
    assert f"made by a newer pvehook (version {len(SCHEMA) + 1}; this one knows {len(SCHEMA)})" in said
    assert os.path.exists(f"{path}.newer")
    assert [vmid for vmid, _ in kept(path)] == [102]


def test_the_first_releases_history_is_migrated_with_its_records(path: str) -> None:
    """tests/data/history-1.sql was dumped from a database that pvehook 0.1.0's first layout wrote."""
    os.makedirs(os.path.dirname(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript((Path(__file__).parents[1] / "data" / "history-1.sql").read_text())
    assert append(path, record(vmid=102), now_s=NOW_S) is None
    with reading(path) as history_now:
        rows = all_backups(history_now)
        assert [(row.vmid, row.severity) for row in rows] == [(110, "stalled"), (101, "stalled"), (102, "none")]
        for row in rows:
            assert isinstance(record_of(history_now, row.id), StallRecord), row.vmid


def test_a_history_from_before_guests_were_watched_beside_others_is_migrated_with_its_records(path: str) -> None:
    """tests/data/history-3.sql was dumped from a database of version 3, the last one without them."""
    os.makedirs(os.path.dirname(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript((Path(__file__).parents[1] / "data" / "history-3.sql").read_text())
    assert append_beside(path, [beside(vmid=102)], now_s=NOW_S) is None
    with reading(path) as history_now:
        rows = all_backups(history_now)
        assert [(row.vmid, row.severity) for row in rows] == [(101, "stalled"), (110, "stalled"), (103, "unknown")]
        records = [record_of(history_now, row.id) for row in rows]
        assert [len(each.points) for each in records if isinstance(each, StallRecord)] == [12, 0, 0]
        assert [each.vmid for each in beside_between(history_now, 0.0, NOW_S)] == [102]
    samples, beside_others, _ = last_samples(path, 0.0, NOW_S)
    assert (sorted(samples), sorted(beside_others)) == ([101, 103, 110], [102])
    assert samples[101]["pvehook_stalled_seconds"] == ['pvehook_stalled_seconds{part="own",vmid="101"} 3.1']
    assert samples[110]["pvehook_slowed_seconds"] == []


def test_a_history_from_before_refused_guests_were_kept_has_its_backups_as_turns(path: str) -> None:
    """tests/data/history-4.sql was dumped from a database of version 4, the last one without them."""
    os.makedirs(os.path.dirname(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript((Path(__file__).parents[1] / "data" / "history-4.sql").read_text())
    turn = attempt(vmid=102, result="refused", reason="at 05:12 the backup window was closed (outside 02:00-05:00)")
    assert append_attempts(path, [turn], now_s=NOW_S) is None
    with reading(path) as history_now:
        turns = attempts_between(history_now, 0.0, NOW_S)
        assert [(each.vmid, each.result) for each in turns] == [(110, "ok"), (101, "ok"), (102, "refused")]
        assert turns[2] == turn
        assert last_good_s(history_now, NOW_S) == {each.vmid: each.started_s for each in turns[:2]}
        assert [each.vmid for each in beside_between(history_now, 0.0, NOW_S)] == [103]


def test_a_turn_from_proxmoxs_log_takes_the_place_of_one_whose_end_was_not_seen_only(path: str) -> None:
    ours = [attempt(vmid=101, result="unknown", job="UPID:1"), attempt(vmid=102, result="failed", job="UPID:1")]
    append_attempts(path, ours, now_s=NOW_S)
    logged = [each._replace(result="ok", started_s=each.started_s + 5, reason="") for each in ours]
    append_attempts(path, [*logged, attempt(vmid=103, job="UPID:1")], now_s=NOW_S, are_read=True)
    with reading(path) as history_now:
        turns = attempts_between(history_now, 0.0, NOW_S)
    assert {each.vmid: each.result for each in turns} == {101: "ok", 102: "failed", 103: "ok"}


def test_an_older_database_is_brought_up_to_date_with_its_rows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, record(), now_s=NOW_S)
    monkeypatch.setattr(history_schema, "SCHEMA", (*SCHEMA, "ALTER TABLE backups ADD COLUMN new_one DEFAULT 7;"))
    with pytest.raises(NodeError, match="older pvehook; the next backup brings it up to date"), reading(path):
        pass
    assert append(path, record(vmid=102), now_s=NOW_S) is None
    assert [vmid for vmid, _ in kept(path)] == [101, 102]
    with reading(path) as database:
        assert database.execute("SELECT DISTINCT new_one FROM backups").fetchall() == [(7,)]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"rubbish", "cannot be read"),
        (zlib.compress(b"[" * 100_000), "cannot be read"),
        (zlib.compress(b'{"vmid": 101}'), "cannot be read"),
        (zlib.compress(b" " * (history_schema.DETAIL_LIMIT_BYTES + 1)), "over 4194304 bytes"),
        ("a text", "no bytes"),
    ],
    ids=["rubbish", "too deep", "an older layout", "a bomb", "no blob"],
)
def test_details_that_cannot_be_read_cost_the_details(path: str, body: object, why: str) -> None:
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damage:
        damage.execute("UPDATE details SET body = ?", (body,))
    with reading(path) as database:
        (row,) = all_backups(database)
        read = record_of(database, row.id)
        assert last_records(database, 0.0) == []
    assert row.name == "web"
    assert isinstance(read, Broken)
    assert why in read.why
    assert past_baselines(path, 101) == []


def test_a_figure_that_is_no_figure_is_broken(path: str) -> None:
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damage:
        damage.execute("UPDATE backups SET stalled_s = x'00', slowed_s = NULL")
    with reading(path) as database:
        (row,) = all_backups(database)
    assert isinstance(row.stalled_s, Broken)
    assert isinstance(row.slowed_s, Broken)
    assert row.write_p99_ms == 24.0
