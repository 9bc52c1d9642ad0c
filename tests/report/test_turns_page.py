"""Who was backed up, on the page: above the picture, those first who were not."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from pvehook.records.attempt import Attempt
from pvehook.records.history_writing import append, append_attempts
from pvehook.report.report import NOT_ASKED
from pvehook.report.standing import Standing
from pvehook.report.turns_page import ROWS_OPEN
from tests.night.nights import CLOSED, TWO_S, refused_at_boot, turn
from tests.records.backups import NOW_S, record
from tests.report.test_page import EVIL, Page, written


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def section(
    history: str, turns: Sequence[Attempt], standings: Sequence[Standing] = (), *, is_running: bool = False
) -> str:
    """The section's HTML, of a history with these turns and one record."""
    append(history, record(started_s=TWO_S, ended_s=TWO_S + 60), now_s=NOW_S)
    append_attempts(history, turns, now_s=NOW_S)
    page = written(history, standings_of=lambda _: tuple(standings) or NOT_ASKED, is_running=is_running)
    assert page.index('<section id="turns">') < page.index('<section id="night">')
    return page[page.index('<section id="turns">') : page.index("</section>")]


def rows(html: str) -> list[str]:
    texts = (re.sub("<[^>]*>", " ", row) for row in re.findall("<tr>(.*?)</tr>", html))
    return [" ".join(text.split()) for text in texts]


def test_each_guest_has_a_row_those_first_who_were_not_backed_up(history: str) -> None:
    html = section(
        history,
        [
            turn(101, 0, 12),
            turn(102, 180, result="refused"),
            turn(104, 12, 5, result="failed", reason="job failed with err -5"),
            turn(102, age=3),
            turn(105, age=2, job_id="weekly"),
        ],
    )
    assert "1 of 3 guests was backed up, 1 failed, 1 refused, from 02:00 to 02:17 (17m00)." in html
    assert rows(html) == [
        "Guest Result When Last good backup Reason",
        "VM 104 mail failed 02:12, 5m00 none on record job failed with err -5",
        f"VM 102 db refused 05:00 3d04h ago, Sat 2026-11-21 at 05:00 {CLOSED}",
        "Guest Result When Last good backup",
        "VM 101 build backed up 02:00, 12m00 4h00 ago, Tue 2026-11-24",
        "Guest Result When Last good backup",
        "VM 105 win-dc1 no turn 2d04h ago, Sun 2026-11-22",
    ]
    assert "<summary>1 backed up</summary>" in html
    assert "<summary>1 that had no turn in this night</summary>" in html


def test_who_was_passed_over_has_a_row_with_the_reason(history: str) -> None:
    turns = [turn(101), turn(101, age=1), turn(104, 10, age=1)]
    row = "VM 104 mail no turn 1d03h ago, Mon 2026-11-23 the run of job nightly did not come to it, the one before had"
    html = section(history, turns)
    assert rows(html)[1] == row
    assert "had no turn in this night" not in html
    html = section(history, [], is_running=True)
    assert "A backup is running now" in html
    assert row not in rows(html)


def test_how_the_forecast_did(history: str) -> None:
    kept = turn(101, 0, 10, expected_s=660.0, expected_least_s=500.0, expected_most_s=800.0, expected_end_s=TWO_S + 660)
    html = section(history, [kept])
    assert "Forecast: the backup took as long as its range says; off by 10%; the run of job" in html


def test_many_who_were_backed_up_are_folded(history: str) -> None:
    assert "<details open>" in section(history, [turn(vmid) for vmid in range(101, 101 + ROWS_OPEN)])
    assert "<details open>" not in section(history, [turn(101 + ROWS_OPEN)])


def test_runs_are_told_where_there_is_something_to_tell(history: str) -> None:
    assert "<li>" not in section(history, [turn(101), turn(102, 10)])
    html = section(history, refused_at_boot(101, 102))
    assert "<li>02:00 job nightly, by its schedule: 2 backed up</li>" in html
    assert (
        "06:30 job nightly, started at boot because it was missed while the node was off (repeat-missed): all 2" in html
    )


def test_overdue_guests_are_loud_with_cause_and_commands(history: str) -> None:
    ways = ("to back it up now: vzdump 102", "to widen the window: window.open in /etc/pvehook.yaml")
    late = Standing(102, "VM 102 db", NOW_S - 4 * 86400, True, 3, True, "refused 3 times: the window was closed", ways)
    kept, new = Standing(101, "VM 101 web", NOW_S, True), Standing(900, "CT 900 dns", None, False)
    html = section(history, [turn(101), turn(800, age=2)], [late, kept, new])
    text = Page(html + "</section>").text
    assert "VM 102 db is overdue: last good backup 4d00h ago, Fri 2026-11-20 06:00. Refused 3 times: the" in text
    assert "to back it up now: vzdump 102" in text
    assert (
        "<code>window.open in /etc/pvehook.yaml</code>" in html[html.index("<summary>what helps for good</summary>") :]
    )
    assert [row.split(" no turn ")[0] for row in rows(html) if " no turn " in row] == ["CT 900 dns", "VM 102 db"]


def test_names_reasons_and_jobs_are_text_and_nothing_else(history: str) -> None:
    append_attempts(history, [turn(101), turn(102, result="failed", reason="x", job="y")], now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        theirs.execute("UPDATE attempts SET node = ?1, name = ?1, reason = ?1, job_id = ?1, vmtype = ?1", (EVIL,))
    odd = Standing(103, EVIL, None, True, 3, True, EVIL, (EVIL,))
    page = Page(section(history, [], [odd]) + "</section>")
    assert {"script", "img"} & {tag for tag, _ in page.elements} == set()
    assert "<script>alert(1)</script>" in page.text


def test_a_night_that_was_refused_as_a_whole_is_told_above_the_picture_of_the_one_before(history: str) -> None:
    html = section(history, [turn(101), *refused_at_boot(101, 102, minute=24 * 60)])
    assert "Night of Tue 2026-11-24 to Wed 2026-11-25" in html
    assert "None of 2 guests were backed up, 2 refused." in html
