"""200 guests over 400 nights, suffering beside each other too: the history's bound, and that a page can be mailed."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvehook.records.attempt_history import attempts_between
from pvehook.records.beside_history import beside_between
from pvehook.records.history import reading
from pvehook.report.report import run_report
from tests.records.backups import DAY_S, NOW_S, all_backups, write_long_history

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("history-size")]  # the history is written once

GUESTS, NIGHTS = 200, 400
BOUND_BYTES = 155_000_000
PAGE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("long") / "history.db")
    write_long_history(path, GUESTS, NIGHTS)
    return path


def test_every_night_is_there_and_the_file_stays_within_its_bound(history: str) -> None:
    with reading(history) as database:
        assert len(all_backups(database)) == GUESTS * NIGHTS
        assert len(beside_between(database, 0.0, NOW_S)) == GUESTS * NIGHTS
        assert len(attempts_between(database, 0.0, NOW_S + DAY_S)) == GUESTS * NIGHTS
    size = sum(os.path.getsize(history + journal) for journal in ("", "-wal") if os.path.exists(history + journal))
    assert size < BOUND_BYTES


def test_a_page_of_all_of_it_can_be_mailed(history: str, tmp_path: Path) -> None:
    page, said = tmp_path / "report.html", io.StringIO()
    now = datetime.fromtimestamp(NOW_S, UTC)
    assert run_report(history, said, now, since="400d", html=str(page)) == 0
    assert page.stat().st_size < PAGE_BYTES
    assert "200 guests" in said.getvalue()
