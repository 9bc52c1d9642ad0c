"""The node's night as one picture: who has a row, in which order, and what is drawn where."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pvehook.contract.measured import Absent
from pvehook.records.beside_record import BesideRecord, Mark
from pvehook.records.history import reading
from pvehook.records.history_writing import append, append_beside
from pvehook.records.stall_record import StallRecord
from pvehook.report.beside import night_of
from pvehook.report.last_night import beside_of, read_night
from pvehook.report.night_svg import night_in_words, night_svg
from pvehook.report.node_night import ROWS_MOST, NodeNight, limits, rates
from pvehook.report.report import run_report
from tests.records.backups import DAY_S, NOW_S, beside, charted, container, neighbours, one_after_the_other, record
from tests.report.test_page import EVIL, Page

NOW = datetime.fromtimestamp(NOW_S, UTC)
BEGAN_S = NOW_S - 4 * 3600
"""02:00 UTC."""


def backup(vmid: int, minute: float, lasted: float = 30, **changes: object) -> StallRecord:
    """It began at 02:00 and so many minutes, and lasted so many."""
    started_s = BEGAN_S + minute * 60
    return record(vmid=vmid, name=f"n{vmid}", started_s=started_s, ended_s=started_s + lasted * 60, **changes)


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def night(history: str, backups: Sequence[StallRecord], others: Sequence[BesideRecord] = ()) -> NodeNight:
    append(history, *backups, now_s=NOW_S)
    append_beside(history, others, now_s=NOW_S)
    with reading(history) as database:
        found = read_night(database, beside_of(database, NOW_S - 3600, UTC), NOW_S - 3600, UTC)
    assert found is not None
    return found


def page(history: str) -> str:
    file = Path(history).parent / "report.html"
    assert run_report(history, io.StringIO(), NOW, html=str(file)) == 0
    return file.read_text(encoding="utf-8")


# Who has a row


def test_guests_are_in_the_order_of_their_backups_and_those_in_no_job_follow(history: str) -> None:
    found = night(
        history,
        [backup(105, 0), backup(101, 35), backup(103, 70)],
        [
            *(beside(vmid=900, stalled_s=2.0), beside(vmid=901, stalled_s=200.0)),
            *(beside(vmid=800, stalled_s=0.0, slowed_s=0.0), beside(vmid=101)),
        ],
    )
    assert [row.vmid for row in found.rows] == [105, 101, 103, 901, 900]
    assert [bool(row.backups) for row in found.rows] == [True, True, True, False, False]


def test_of_many_guests_the_worst_have_rows_and_the_others_are_counted(history: str) -> None:
    quiet = [backup(100 + number, number * 2, 1.9) for number in range(ROWS_MOST + 8)]
    quiet[3] = backup(103, 6, 1.9, stalled_s=5.0)
    found = night(history, quiet, [beside(vmid=900), beside(vmid=107)])
    assert (len(found.rows), found.left_out, found.guests) == (ROWS_MOST, 9, ROWS_MOST + 8)
    assert {103, 107, 900} <= {row.vmid for row in found.rows}
    assert "9 more guests with better nights are left out." in Page(page(history)).text


def test_the_night_before_and_the_one_after_are_others(history: str) -> None:
    early = replace(backup(104, 0), started_s=BEGAN_S - DAY_S, ended_s=BEGAN_S - DAY_S + 60)
    yesterday = beside(vmid=900, started_s=BEGAN_S - DAY_S, ended_s=BEGAN_S - DAY_S + 600)
    found = night(history, [early, backup(101, 0)], [yesterday])
    assert [row.vmid for row in found.rows] == [101]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Warsaw", "America/New_York"])
def test_a_night_is_from_noon_to_noon_of_the_node(zone: str) -> None:
    late, early = (
        datetime(2026, 11, day, hour, tzinfo=ZoneInfo(zone)).timestamp() for day, hour in ((23, 23), (24, 5))
    )
    assert night_of(late, ZoneInfo(zone)) == night_of(early, ZoneInfo(zone))
    assert night_of(late, ZoneInfo(zone))[0] == datetime(2026, 11, 23, 12, tzinfo=ZoneInfo(zone)).timestamp()
    assert night_of(late - DAY_S / 2, ZoneInfo(zone)) != night_of(late, ZoneInfo(zone))


def test_a_guest_that_was_in_two_runs_has_one_row(history: str) -> None:
    runs = [
        beside(vmid=101, job="one", stalled_s=3.0, started_s=BEGAN_S, ended_s=BEGAN_S + 600),
        beside(vmid=101, job="two", stalled_s=4.0, started_s=BEGAN_S + 3600, ended_s=BEGAN_S + 4200),
    ]
    (row, _) = night(history, [backup(101, 0), backup(101, 60), backup(103, 100)], runs).rows
    assert (len(row.backups), row.beside and row.beside.stalled_s) == (2, 7.0)
    assert row.beside is not None
    assert [(each.vmid, each.stalled_s) for each in row.beside.backups] == [(103, 24.0), (110, 10.0)]


# Marks, rates, limits, the window


def test_marks_are_where_the_guest_suffered(history: str) -> None:
    marks = (Mark(600.0, 60.0, 3.0, 5.0), Mark(1200.0, 60.0, 0.0, 2.0), Mark(1800.0, 60.0, 0.0, 0.0))
    own = charted(number=12, vmid=103, started_s=BEGAN_S, ended_s=BEGAN_S + 3600)
    found = night(history, [own], [beside(vmid=900, started_s=BEGAN_S, ended_s=BEGAN_S + 3600, marks=marks)])
    by_vmid = {row.vmid: row for row in found.rows}
    assert by_vmid[900].marks == ((BEGAN_S + 540, BEGAN_S + 600, True), (BEGAN_S + 1140, BEGAN_S + 1200, False))
    stalled = [point for point in own.points if point.stalled_s > 0]
    assert [mark.to_s for mark in by_vmid[103].marks if mark.stalled] == [BEGAN_S + point.at_s for point in stalled]


def test_what_was_read_in_all_is_what_the_charts_have(history: str) -> None:
    backups = [charted(number=40, vmid=101, started_s=BEGAN_S, ended_s=BEGAN_S + 1800)]
    backups.append(charted(number=40, vmid=102, started_s=BEGAN_S + 1800, ended_s=BEGAN_S + 3600))
    found = night(history, backups)
    read = sum(point.backup_bytes for each in backups for point in each.points)
    assert sum(rates(found, 97)) * found.duration_s / 97 == pytest.approx(read, rel=1e-6)


def test_limits_are_the_governors_while_it_set_them(history: str) -> None:
    slowed = charted(number=100, started_s=BEGAN_S, ended_s=BEGAN_S + 3600)
    found = night(history, [slowed, backup(102, 60, 60)])
    governor = slowed.governor
    assert governor is not None
    shown = limits(found, 100)
    assert shown[:27] == [None] * 27  # it began after 55 % of the first half
    assert shown[51:] == [None] * 49
    assert min(limit for limit in shown if limit is not None) == min(each.speed_bytes_per_s for each in governor.speeds)


def test_the_window_closes_where_it_is_known_and_near(history: str) -> None:
    closes_s = BEGAN_S + 3 * 3600
    assert night(history, [backup(101, 0, 170, window_closes_s=closes_s)]).window_ends_s == (closes_s,)
    assert "window closes 05:00" in page(history)
    short = night(history, [backup(101, 0, 30, window_closes_s=closes_s)])
    assert short.window_ends_s == ()  # two and a half hours of nothing would be no picture


def test_a_night_dated_by_a_wrong_clock_does_not_stretch_the_picture(history: str) -> None:
    found = night(history, [backup(101, 0), backup(102, 40, 60 * 24 * 300)])
    assert found.ended_s <= BEGAN_S + 2 * DAY_S


# The drawing


def test_what_is_drawn_stays_inside(history: str) -> None:
    backups = one_after_the_other(14)
    drawn = night_svg(night(history, backups, neighbours(backups)), UTC, "x")
    for width, text in re.findall(r'viewBox="0 0 (\d+) \d+"(.*?)</svg>', drawn, re.DOTALL):
        for path in re.findall(r' d="([^"]*)"', text):
            across = [float(x) for x in re.findall(r"[MH](-?[\d.]+)", path)]
            assert min(across) >= 0.0, path
            assert max(across) <= float(width), path
    assert "nan" not in drawn


def test_words_say_what_it_shows(history: str) -> None:
    others = [beside(vmid=900, name="router"), beside(vmid=102, name="n102", stalled_s=3.0, slowed_s=9.0)]
    found = night(history, [backup(101, 0), backup(102, 35, stalled_s=12.0), backup(103, 70)], others)
    assert night_in_words(found, UTC).startswith(
        "Picture of the night, 02:00 to 03:50: 3 guests were backed up. "
        "Suffered in their own backup: 1; beside the backups of others: 2. "
        "VM 900 router: beside the backups of others stalled 17 s, slowed 41 s, p99 15 > 2405 ms, most beside "
        "VM 103 (12 s), CT 110 (5 s). "
        "VM 102 n102: backup ok 02:35 to 03:05, stalled 12 s; beside the backups of others stalled 3 s, "
    )


def test_the_page_has_the_picture_at_its_top_and_as_a_table(history: str) -> None:
    append(history, backup(101, 0), backup(102, 35, result="failed"), container(started_s=BEGAN_S), now_s=NOW_S)
    append_beside(history, [beside(vmid=900, name="router"), beside(vmid=101, name="n101", stalled_s=0.0)], now_s=NOW_S)
    text = page(history)
    shown = Page(text)
    assert text.index("The node’s night of 2026-11-24") < text.index("guests that stalled in their own last backup")
    assert "2 guests suffered beside the backups of others" in shown.text
    assert "most beside VM 103 (12 s), CT 110 (5 s); backups were slowed for it for 8s" in shown.text
    table = text[text.index('<table class="rows">') : text.index("</table>", text.index('<table class="rows">'))]
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert len(rows) == 4
    assert "02:35, 30m00, failed" in rows[2]
    assert rows[3].startswith("|VM 900 router||not backed up|")
    assert "15 → 2405" in rows[3]
    assert "backup that did not end well" in shown.text


def test_a_guests_own_night_tells_what_it_suffered_beside_others(history: str) -> None:
    append(history, backup(101, 0), backup(102, 35), now_s=NOW_S)
    append_beside(history, [beside(vmid=101)], now_s=NOW_S)
    own, other = re.findall(r'<article class="card" id="g\d+">.*?</article>', page(history), re.DOTALL)
    assert (
        "Beside the backups of others: stalled 17 s, slowed 41 s, p99 15 → 2405 ms; most beside VM 103" in own + other
    )
    assert ("Beside the backups of others" in own) != ("Beside the backups of others" in other)


def test_the_guests_table_has_what_they_suffered_beside_others(history: str) -> None:
    append(history, backup(101, 0), backup(102, 35), now_s=NOW_S)
    assert "Beside others" not in Page(page(history)).texts  # nobody was watched
    append_beside(history, [beside(vmid=101)], now_s=NOW_S)
    text = page(history)
    assert "Beside others" in Page(text).texts
    cells = re.findall(r'data-label="beside others" data-sort="([\d.]+)"', text)
    assert sorted(cells) == ["0.00", "17.00"]


def test_names_of_others_are_text_and_nothing_else(history: str) -> None:
    append(history, backup(101, 0), now_s=NOW_S)
    append_beside(
        history,
        [beside(vmid=900, name=EVIL, node=EVIL, unknown=(EVIL,), p99_ms=Absent(EVIL), baseline_p99_ms=Absent(EVIL))],
        now_s=NOW_S,
    )
    text = page(history)
    shown = Page(text)
    assert [tag for tag, _ in shown.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in shown.elements]
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_picture_of_the_largest_node_stays_small(history: str) -> None:
    backups = one_after_the_other(ROWS_MOST)
    drawn = night_svg(night(history, backups, neighbours(backups)), UTC, "x")
    assert len(drawn) < 300_000


def test_whose_backup_it_was_is_known_without_the_record_too(history: str) -> None:
    """Records are kept for a shorter time than their rows."""
    append(history, backup(101, 0), now_s=NOW_S)
    append_beside(history, [beside(vmid=900)], now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as later:
        later.execute("DELETE FROM beside_details")
    assert "most beside VM 103" in Page(page(history)).text
