#!/usr/bin/env python3
"""Makes docs/report.png: the top of `pvehook report --html`, of invented nights of seven guests, in Debian's chromium.

    .venv/bin/python scripts/report_picture.py [FILE]

The demo's own history has one night only, in which there is nothing to compare; so the nights are those of the tests.
"""

from __future__ import annotations

import io
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from pvehook.records.history_writing import append, append_attempts, append_beside  # noqa: E402  (this repository's, wherever the script is called from)
from pvehook.report.report import run_report  # noqa: E402
from pvehook.report.standing import Standing  # noqa: E402
from tests.night.nights import CLOSED, turn, turn_of  # noqa: E402
from tests.records.backups import DAY_S, NOW_S, a_nodes_backups, neighbours, one_after_the_other  # noqa: E402
from tests.rig.browser import CHROMIUM, Page, Screen, running_browser  # noqa: E402

SCREEN = Screen("picture", width=1000, height=1600, scheme="light")
"""High enough for who was backed up, the night's picture, and the table of guests."""

GUESTS, NIGHTS = 7, 40
REFUSED = 108
"""In the last night; its last good backup is of the night before."""


def main() -> int:
    """Writes the picture. Exits 2 without chromium."""
    if CHROMIUM is None:
        print("chromium is not installed: apt-get install chromium fonts-dejavu-core", file=sys.stderr)
        return 2
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "docs" / "report.png"
    with tempfile.TemporaryDirectory(prefix="pvehook-picture-") as directory:
        history, page = f"{directory}/history.db", Path(directory, "report.html")
        last_night = one_after_the_other(GUESTS)
        append(history, *a_nodes_backups(GUESTS, NIGHTS)[:-GUESTS], *last_night, now_s=NOW_S)
        append_beside(history, neighbours(last_night), now_s=NOW_S)
        refused = turn(REFUSED, 185, result="refused", reason=f"at 05:05 {CLOSED}")
        turns = [turn_of(each, job=refused.job) for each in last_night]
        append_attempts(history, [*turns, refused, turn(REFUSED, 160, age=1)], now_s=NOW_S)
        kept = [Standing(each.vmid, f"VM {each.vmid} {each.name}", each.started_s, in_job=True) for each in turns]
        missed = Standing(REFUSED, f"VM {REFUSED} {refused.name}", NOW_S - DAY_S, in_job=True, missed_turns=1)
        now = datetime.fromtimestamp(NOW_S, UTC)
        run_report(history, io.StringIO(), now, html=str(page), standings_of=lambda _: (*kept, missed))
        with running_browser() as browser:
            Page(browser, page, SCREEN).screenshot(picture, whole=False)
    print(f"{picture}: {picture.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
