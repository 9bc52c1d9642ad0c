"""`pvehook report` as an administrator meets it: in a terminal, in a pipe, as JSON."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import sqlite3
import struct
import termios
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from pvehook.contract.measured import Absent
from pvehook.errors import NodeError
from pvehook.records.history_writing import append
from pvehook.records.stall_record import Baseline, StallRecord
from pvehook.report.report import run_report, start_of
from pvehook.report.trends import day, instant, worst_first
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import Verdict
from tests.records.backups import (
    DAY_S,
    HUNG,
    NEW,
    NO_AGENT,
    NOW_S,
    OLD,
    SOFT_LOCKUP,
    a_nodes_backups,
    charted,
    container,
    guest_view,
    record,
)

NOW = datetime.fromtimestamp(NOW_S, UTC)
EVIL = "<script>alert(1)</script>\x1b[2J\nVM 999 \u202eevil"


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


@pytest.fixture(scope="module")
def node_history(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("node") / "history.db")
    append(path, *a_nodes_backups(12, 40, charts_for_days=1), now_s=NOW_S)
    return path


def report(history: str, now: datetime = NOW, encoding: str = "utf-8", **options: Any) -> str:
    """What it prints into a pipe."""
    pipe = io.BytesIO()
    out = io.TextIOWrapper(pipe, encoding=encoding)
    assert run_report(history, out, now, **options) == 0
    out.flush()
    return pipe.getvalue().decode(encoding)


def backup(age: float, vmid: int = 101, **changes: Any) -> StallRecord:
    started_s = NOW_S - age * DAY_S - 7200
    return record(vmid=vmid, started_s=started_s, ended_s=started_s + 3600, **changes)


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"(VM|CT|guest) \d", line)]


# All guests


def test_a_guest_is_a_line_with_its_nights_the_worst_first(history: str) -> None:
    append(history, *(backup(age, 101) for age in (2, 1, 0)), now_s=NOW_S)
    append(history, backup(2, 103, name="db"), backup(0, 103, name="db", stalled_s=12.3, slowed_s=60.0), now_s=NOW_S)
    append(history, backup(1, 105, name="erp", slowed_s=5.0), backup(0, 105, name="erp", hypervisor=HUNG), now_s=NOW_S)
    assert report(history).splitlines() == [
        "pvehook: 3 guests, nights of 2026-11-22 to 2026-11-24, worst last night first",
        "",
        "guest      nights last      stalled  write p99  cause",
        "VM 103 db  ▁ ▅    stalled       12s     4.1>24  slow target",
        "VM 105 erp  ▂?    unknown         ?      4.1>?  -",
        "VM 101 web ▁▁▁    none           0s     4.1>24  -",
        "",
        "nights     ▁ no stall  ▂ slowed  ▃▄▅▆▇ stalled under 3, 10, 30, 100, 300 s",
        "           █ longer or locked up  - nothing to measure  ? could not be read",
        "stalled    seconds in which a disk request that took over 1 s was on its way",
        "write p99  ms that 99 of 100 writes did not exceed, before > during the backup",
    ]


def test_zero_absent_broken_and_no_backup_are_four_marks(history: str) -> None:
    append(history, backup(3), backup(2, hypervisor=HUNG), backup(0, hypervisor=NO_AGENT), backup(1, 102), now_s=NOW_S)
    (row,) = [row for row in rows_of(report(history)) if row.startswith("VM 101")]
    assert "▁? -" in row
    assert " - " in row.replace("▁? -", "")  # stalled in the last night
    ascii_row = next(row for row in rows_of(report(history, encoding="ascii")) if row.startswith("VM 101"))
    assert "_? -" in ascii_row


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_line_fits(node_history: str, monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    asked: list[dict[str, Any]] = [{}, {"since": "400d"}, *({"vmid": vmid} for vmid in (101, 103, 105, 107, 110))]
    for options in asked:
        for line in report(node_history, encoding=encoding, **options).splitlines():
            assert len(line) <= columns, line


def test_a_wide_terminal_shows_more_nights(node_history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bars(row: str) -> int:
        return len(re.findall("[▁▂▃▄▅▆▇█?-]", row.split("  ", maxsplit=1)[0].partition(" db")[2] or row))

    narrow = next(row for row in rows_of(report(node_history)) if row.startswith("VM 106"))
    monkeypatch.setenv("COLUMNS", "120")
    wide = next(row for row in rows_of(report(node_history)) if row.startswith("VM 106"))
    assert bars(narrow) < 30 <= bars(wide)


def test_a_locale_without_unicode_gets_ascii(node_history: str) -> None:
    text = report(node_history, encoding="ascii") + report(node_history, encoding="ascii", vmid=103)
    assert text.isascii()
    assert "nights     _ no stall  . slowed  :=+*# stalled" in text


def test_a_regression_is_told_at_the_top_with_versions_and_figures(node_history: str) -> None:
    lines = report(node_history).splitlines()
    assert lines[2].startswith("!! VM 103 files10 got worse on 2026-11-13: stalled seconds 0 -> ")
    assert "QEMU 9.2.0 -> 10.0.2 (28 nights before, 12 after)" in " ".join(line.strip() for line in lines[2:6])


def test_a_regression_of_a_guest_that_is_not_shown_is_told_all_the_same(history: str) -> None:
    append(history, *(backup(age, 101, stalled_s=300.0, slowed_s=400.0) for age in range(3)), now_s=NOW_S)
    for age in range(30):
        bad = {"stalled_s": 20.0, "slowed_s": 90.0, "versions": NEW} if age < 10 else {"versions": OLD}
        append(history, backup(age, 102, name="files", **bad), now_s=NOW_S)
    text = report(history, worst=1)
    assert "!! VM 102 files got worse on" in text
    assert [row[:6] for row in rows_of(text)] == ["VM 101"]
    assert "1 more guest with better nights" in text


def test_a_regression_older_than_what_is_shown_is_found(history: str) -> None:
    for age in range(60):
        bad = {"stalled_s": 20.0, "slowed_s": 90.0, "versions": NEW} if age < 40 else {"versions": OLD}
        append(history, backup(age, **bad), now_s=NOW_S)
    text = report(history, since="7d")
    assert "nights of 2026-11-18 to 2026-11-24" in text
    assert "!! VM 101 web got worse on 2026-10-16" in text


def test_worst_says_how_many(node_history: str) -> None:
    assert len(rows_of(report(node_history, worst=3))) == 3
    assert "9 more guests with better nights; --worst shows more" in report(node_history, worst=3)


def test_a_night_belongs_to_the_day_of_the_zone_that_is_told(history: str) -> None:
    at = datetime(2026, 11, 24, 0, 30, tzinfo=UTC)
    append(history, record(started_s=at.timestamp(), ended_s=at.timestamp() + 60), now_s=NOW_S)
    assert "nights of 2026-11-24 to 2026-11-24" in report(history)
    new_york = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert "nights of 2026-11-23 to 2026-11-23" in report(history, new_york)


# One guest's night


def test_a_night_in_detail(history: str) -> None:
    append(history, charted(vmid=103, name="db"), now_s=NOW_S)
    text = report(history, vmid=103)
    for shown in (
        "VM 103 db, night of 2026-11-24: stalled",
        "stalled    15 s",
        "slowed     91 s",
        "cause      slow target: each first write of the guest waits for the backup's",
        "QEMU    before > during    the guest itself           the node",
        "write p99 ms  4.1 > 1310   ",
        "io some s             14",
        "freeze     freeze, frozen for 184 ms; filesystem-consistent: frozen and thawed",
        "idle       6 of 6 threads read back as idle; compressor only, dump honoured",
        "governor   on, target 25 ms; slowed the backup for 1600 s, down to ",
        "advice     performance: max-workers=1 in /etc/vzdump.conf would help more",
        "pacer      auto: the dump is on another disk",
        "versions   pve-manager 9.0.3, QEMU 10.0.2, kernel 6.8.12-4-pve",
        "window     the window 02:00-05:00 is open",
        "the guest's kernel logged",
        "soft-lockup: watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
        "p99 of the guest's disk requests, ms; before: 4.4",
        "1000 │",
    ):
        assert shown in text, text


def test_the_last_night_is_shown_or_the_one_that_is_asked_for(history: str, capsys: pytest.CaptureFixture[str]) -> None:
    append(history, backup(200, stalled_s=50.0), backup(2), backup(1, stalled_s=7.0), backup(0), now_s=NOW_S)
    append(history, backup(0, 102), now_s=NOW_S)
    assert "night of 2026-11-24: none" in report(history, vmid=101)
    yesterday = report(history, vmid=101, backup="2026-11-23")
    assert "night of 2026-11-23: stalled" in yesterday
    assert "2026-11-24" not in yesterday  # as of that night
    assert "details are kept for 120 days" in report(history, vmid=101, backup="2026-05-08")
    assert run_report(history, io.StringIO(), NOW, vmid=101, backup="2026-11-20") == 2
    assert capsys.readouterr().err == "pvehook: no backup of guest 101 began on 2026-11-20\n"
    assert run_report(history, io.StringIO(), NOW, vmid=102, since="7d", backup="2026-11-25") == 2
    assert capsys.readouterr().err == (
        "pvehook: no backup of guest 102 began on 2026-11-25; the last nights before: 2026-11-24\n"
    )


def test_all_guests_as_of_a_night(history: str) -> None:
    """Who suffered then; a guest that was not backed up then is not among them."""
    append(history, backup(1, 101, stalled_s=7.0), backup(0, 101), backup(1, 102), backup(0, 103), now_s=NOW_S)
    assert [row[:6] for row in rows_of(report(history, backup="2026-11-23"))] == ["VM 101", "VM 102"]
    body = json.loads(report(history, backup="2026-11-23", as_json=True))
    assert [len(guest["backups"]) for guest in body["guests"]] == [1, 1]


@pytest.mark.parametrize("asked", ["yesterday", "2026-1-1", "24.11.2026", "2026-02-30", ""])
def test_a_night_that_is_none_is_said(history: str, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    append(history, record(), now_s=NOW_S)
    assert run_report(history, io.StringIO(), NOW, vmid=101, backup=asked) == 2
    assert "is no night; expected its date, such as 2026-11-24" in capsys.readouterr().err


def test_a_guests_nights_are_above_its_last_one(history: str) -> None:
    append(history, backup(3, stalled_s=7.0), backup(2), backup(0, hypervisor=HUNG), now_s=NOW_S)
    lines = report(history, vmid=101).splitlines()
    at = lines.index("nights     ▄▁?")
    assert lines[at + 1] == "           2026-11-21 to 2026-11-24, stalled in 1 of 3 nights, 1 not known"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_read_the_history_is_not_told_that_there_is_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    append(str(state / "history.db"), record(), now_s=NOW_S)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            run_report(str(state / "history.db"), io.StringIO(), NOW)
    finally:
        os.seteuid(0)


def test_what_is_missing_has_its_reason_below_the_views(history: str) -> None:
    psi_off = Absent("the guest's kernel has no pressure information")
    append(history, record(hypervisor=HUNG, guest=guest_view(io=psi_off)), container(vmid=102), now_s=NOW_S)
    text = report(history, vmid=101)
    assert "stalled    ?  (QMP did not answer within 5 s)" in text
    assert "all of it              ?   io some s              -" in text
    assert "? QEMU: QMP did not answer within 5 s" in text
    assert "- io some s, io full s: the guest's kernel has no pressure information" in text
    text = report(history, vmid=102)
    assert "- QEMU: a container has no QEMU" in text
    assert "guest's io full s     12" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("history", "before: from its last nights, because it was not watched just before this"),
        ("since-start", "before: means since the VM was started; - for percentiles: not measured"),
    ],
)
def test_a_baseline_says_where_it_is_from(history: str, source: Literal["history", "since-start"], said: str) -> None:
    mean = Latency(9000, 3.5)
    append(history, record(baseline=Baseline(1e5, source, mean, mean, mean)), now_s=NOW_S)
    text = report(history, vmid=101)
    assert said in text
    assert re.search(r"write mean ms +3\.5 > 4 ", text)
    assert re.search(r"write p99 ms +- > 24 ", text)


def test_details_that_are_damaged_are_said_and_the_rest_is_shown(history: str) -> None:
    append(history, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as damage:
        damage.execute("UPDATE details SET body = x'00'")
    text = report(history, vmid=101)
    assert "VM 101 web, night of 2026-11-24: none" in text
    assert "its details cannot be read" in text


@pytest.mark.parametrize("number", [1, 3, 40, 120])
def test_a_chart_of_any_number_of_pieces_fits(history: str, number: int) -> None:
    append(history, charted(number=number), now_s=NOW_S)
    lines = report(history, vmid=101).splitlines()
    chart = lines[lines.index(next(line for line in lines if line.startswith("p99 of the guest"))) :]
    assert max(map(len, chart)) <= 80
    assert any(line.startswith("stalled  ") for line in chart)
    assert any(line.startswith("frozen   █") for line in chart)


def test_a_night_in_which_the_guest_made_no_request_has_a_chart_without_a_line(history: str) -> None:
    quiet = charted(bad=False)
    points = tuple(point._replace(p99_ms=None) for point in quiet.points)
    append(history, record(points=points, baseline=NO_AGENT), now_s=NOW_S)
    text = report(history, vmid=101)
    assert "backup   " in text
    assert "│" not in text


# Hostile names, colour, empty histories, wrong options


def hostile(**changes: Any) -> StallRecord:
    lines = (SOFT_LOCKUP._replace(text=EVIL),)
    missing = Absent(EVIL)
    values: dict[str, Any] = {
        "name": EVIL,
        "node": EVIL,
        "guest": guest_view(kernel=lines, io=missing),
        "baseline": missing,
        "admitted_by": EVIL,
        "verdict": Verdict("locked-up", 1.0, 2.0, ()),
    }
    return charted(**{**values, **changes})


def test_what_a_guest_says_cannot_move_the_cursor_or_forge_a_line(history: str) -> None:
    append(history, hostile(), now_s=NOW_S)
    for text in (report(history), report(history, vmid=101)):
        assert all(char.isprintable() for char in text if char != "\n")
        assert not [line for line in text.splitlines() if line.startswith("VM 999")]
    assert "\\x1b[2J\\nVM 999" in report(history, vmid=101)


def test_a_history_of_others_cannot_move_the_cursor(history: str) -> None:
    """`--history FILE` may be anybody's: no column of it is trusted."""
    append(history, backup(0), backup(1), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        texts = ("node", "name", "vmtype", "result", "severity", "causes", "pve_manager", "qemu", "kernel")
        theirs.execute(f"UPDATE backups SET {', '.join(f'{column} = ?1' for column in texts)}", (EVIL,))
        theirs.execute("UPDATE backups SET stalled_s = 'broken: ' || ?1, write_p99_ms = ?1", (EVIL,))
    for text in (report(history), report(history, vmid=101), report(history, encoding="ascii")):
        assert all(char.isprintable() for char in text if char != "\n")
        assert not [line for line in text.splitlines() if line.startswith("VM 999")]
    (guest,) = json.loads(report(history, as_json=True))["guests"]
    assert [each["severity"] for each in guest["backups"]] == [EVIL, EVIL]


def on_a_terminal(history: str, columns: int, **options: Any) -> str:
    """What it writes to a real terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(slave, "w", encoding="utf-8") as out:
        run_report(history, out, NOW, **options)
    written = bytearray()
    with contextlib.suppress(OSError):  # EIO: the other side is closed, and everything has been read
        while chunk := os.read(master, 1 << 16):
            written += chunk
    os.close(master)
    return written.decode()


def test_colour_is_for_a_terminal_and_not_against_no_color(history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append(history, backup(0, stalled_s=5.0), now_s=NOW_S)
    assert "\x1b[" not in report(history)
    assert "\x1b[1;31mstalled" in on_a_terminal(history, 80)
    assert "\x1b[1;31mstalled" in on_a_terminal(history, 80, vmid=101)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in on_a_terminal(history, 80)


def test_without_a_history_it_says_when_there_will_be_one(history: str) -> None:
    text = report(history)
    assert f"there is no history yet ({history})" in text
    assert "recorded when its backup ends" in text
    assert json.loads(report(history, as_json=True)) == {"format": 1, "guests": []}


def test_a_history_without_the_nights_that_are_asked_for(history: str) -> None:
    append(history, backup(20), now_s=NOW_S)
    assert "the history has no night since 2026-11-17" in report(history, since="7d")
    assert "the history has no night of guest 999 since" in report(history, vmid=999)
    assert not os.path.exists(f"{history}.html")
    report(history, vmid=999, html=f"{history}.html")
    assert not os.path.exists(f"{history}.html")


def test_a_history_that_is_none_is_an_error(history: str) -> None:
    Path(history).write_bytes(b"rubbish" * 999)
    with pytest.raises(NodeError, match="not a database"):
        report(history)


@pytest.mark.parametrize(
    "since", ["", "d", "0d", "-3d", "3x", "yesterday", "99999999999999999999d", "0001-01-01", "2026-13-01"]
)
def test_a_since_that_is_none_is_said(history: str, since: str, capsys: pytest.CaptureFixture[str]) -> None:
    append(history, record(), now_s=NOW_S)
    code = run_report(history, io.StringIO(), NOW, since=since)
    if since == "0001-01-01":
        assert code in (0, 2)  # a day, though nobody means it
    else:
        assert code == 2
        assert "expected days such as 30d, or a date such as 2026-11-01" in capsys.readouterr().err


def test_since_is_days_or_a_days_midnight() -> None:
    assert start_of("30d", NOW) == NOW - timedelta(days=30)
    assert start_of("2026-11-01", NOW) == datetime(2026, 11, 1, tzinfo=UTC)


# JSON


def test_a_night_of_a_wrong_clock_hides_no_other(history: str) -> None:
    """Dated years ahead, it would be the last night until then."""
    ahead_s = NOW_S + 9 * 365 * 86400
    append(history, backup(1, stalled_s=7.0), backup(0), now_s=NOW_S)
    append(history, record(started_s=ahead_s, ended_s=ahead_s + 60), now_s=ahead_s + 60)
    assert "night of 2026-11-24: none" in report(history, vmid=101)
    (guest,) = json.loads(report(history, as_json=True))["guests"]
    assert [each["started"][:10] for each in guest["backups"]] == ["2026-11-23", "2026-11-24"]


@pytest.mark.parametrize("zone", ["Europe/Warsaw", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"])
def test_days_and_times_are_those_of_the_zone(zone: str) -> None:
    """They are worked out by quarters of an hour; here over a change of the clocks."""
    for at_s in range(1_792_880_000, 1_792_980_000, 611):
        right = datetime.fromtimestamp(at_s, ZoneInfo(zone))
        assert instant(at_s + 0.7, ZoneInfo(zone)) == right.isoformat(timespec="seconds")
        assert day(at_s + 0.7, ZoneInfo(zone)) == f"{right:%Y-%m-%d}"


def test_json_of_all_guests(history: str) -> None:
    append(history, backup(1), backup(0, hypervisor=HUNG), backup(0, 102, name="b", hypervisor=NO_AGENT), now_s=NOW_S)
    body = json.loads(report(history, as_json=True))
    assert [guest["vmid"] for guest in body["guests"]] == [101, 102]
    yesterday, today = body["guests"][0]["backups"]
    assert yesterday["started"] == "2026-11-23T04:00:00+00:00"
    assert (yesterday["stalled_s"], yesterday["write_p99_ms"], yesterday["causes"]) == (0.0, 24.0, [])
    assert today["stalled_s"] == "broken: QMP did not answer within 5 s"
    assert body["guests"][1]["backups"][0]["stalled_s"] == "absent: the guest runs no agent"
    assert yesterday["qemu"] == "10.0.2"


def test_json_has_the_regression(node_history: str) -> None:
    (regression,) = [
        guest["regression"]
        for guest in json.loads(report(node_history, as_json=True))["guests"]
        if guest["regression"] is not None
    ]
    assert regression["since"].startswith("2026-11-13T")
    assert regression["changes"] == [{"what": "QEMU", "before": "9.2.0", "after": "10.0.2"}]
    assert regression["worse"][0]["figure"] == "stalled_s"


def test_json_of_one_night_has_the_whole_record(history: str) -> None:
    append(history, charted(), now_s=NOW_S)
    body = json.loads(report(history, vmid=101, as_json=True))
    assert body["backup"]["severity"] == "stalled"
    assert body["figures"]["write_p99_ms"] == 1310
    assert len(body["record"]["points"]) == 120
    assert body["record"]["guest"]["io"] == {"some_s": 14.2, "full_s": 9.8}


def test_json_of_a_hostile_name_is_json(history: str) -> None:
    append(history, hostile(), now_s=NOW_S)
    for vmid in (None, 101):
        text = report(history, encoding="ascii", as_json=True, vmid=vmid)
        assert text.count("\n") == 1
        json.loads(text)


DAMAGED = [
    (column, how) for column in ("node", "name", "severity", "causes", "kernel") for how in ("all", "json", "one")
]


@pytest.mark.parametrize(("column", "how"), [*DAMAGED, ("vmid", "all"), ("vmid", "json")])
def test_a_damaged_row_is_an_error_that_is_told(tmp_path: Path, column: str, how: str) -> None:
    ways: dict[str, dict[str, Any]] = {"all": {}, "json": {"as_json": True}, "one": {"vmid": 101}}
    path = str(tmp_path / "history.db")
    append(path, record(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damage:
        damage.execute(f"UPDATE backups SET {column} = x'00'")
    with pytest.raises(NodeError, match=f"history {path}: damaged: {column} of another kind"):
        run_report(path, io.StringIO(), NOW, **ways[how])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_is_of_one_moment_though_the_daemon_drops_old_nights_meanwhile(
    history: str, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    append(history, record(), now_s=NOW_S)

    def emptied_then_ordered(*given: Any) -> Any:
        found = worst_first(*given)
        with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as daemon:
            daemon.execute("DELETE FROM backups")
        return found

    monkeypatch.setattr("pvehook.report.report.worst_first", emptied_then_ordered)
    assert "web" in report(history, as_json=as_json)
