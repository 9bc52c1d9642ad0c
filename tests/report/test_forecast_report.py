"""`pvehook report --forecast`: what an administrator is told of the forecasts that were made."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

from pvehook.records.attempt import Attempt
from pvehook.records.history_writing import append_attempts
from pvehook.report.forecast_report import run_forecast_report

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
DAY_S = 86400.0


def turn(vmid: int, night: int, took_s: float, expected_s: float | None = 600.0) -> Attempt:
    began_s = NOW.timestamp() - night * DAY_S - 6 * 3600 + vmid
    return Attempt(
        vmid=vmid, started_s=began_s, ended_s=began_s + took_s, node="pve1", job=f"UPID:{night}", job_id="nightly",
        trigger="schedule", name="web", vmtype="qemu", mode="snapshot", result="ok", reason="", expected_s=expected_s,
        expected_least_s=expected_s and 0.8 * expected_s, expected_most_s=expected_s and 1.2 * expected_s,
        expected_end_s=began_s + expected_s if expected_s else None,
    )  # fmt: skip


def report(tmp_path: Path, *turns: Attempt, as_json: bool = False) -> str:
    history, out = str(tmp_path / "history.db"), io.StringIO()
    if turns:
        append_attempts(history, turns, now_s=NOW.timestamp())
    assert run_forecast_report(history, out, NOW, since="30d", as_json=as_json) == 0
    return out.getvalue()


def test_it_tells_how_far_off_they_were_the_worst_guest_first(tmp_path: Path) -> None:
    text = report(tmp_path, turn(101, 2, 660), turn(101, 1, 600), turn(102, 2, 1200), turn(102, 1, 1200))
    assert "forecasts since 2026-10-25: 4 backups of 2 guests" in text
    assert "2 of 4 were within their range" in text.replace("\n", " ")
    worst, good = text.splitlines()[-2:]
    assert worst.split() == ["VM", "102", "web", "2", "50%", "0%", "10m00", "(8m00-12m00),", "20m00"]
    assert good.split()[3:6] == ["2", "5%", "100%"]
    assert "The end of 2 runs was off by 10m00." in text
    assert all(len(line) <= 80 for line in text.splitlines()), text


def test_the_same_for_programs(tmp_path: Path) -> None:
    body = json.loads(report(tmp_path, turn(101, 1, 500), as_json=True))
    assert (body["backups"], body["error"], body["within"], body["run_end_errors_s"]) == (1, 0.2, 1.0, [-100.0])
    assert body["guests"][0]["last"] == {"expected_s": 600.0, "from_s": 480.0, "to_s": 720.0, "took_s": 500.0}


def test_without_a_forecast_it_says_when_one_is_made(tmp_path: Path) -> None:
    assert "one is made at the start of a scheduled run" in report(tmp_path)
    assert "no backup since 2026-10-25 had a forecast" in report(tmp_path, turn(101, 1, 500, None))
