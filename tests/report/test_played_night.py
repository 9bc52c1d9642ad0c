"""A night that the real daemon has seen, in terminal and page: a guest that was in no job suffered beside a backup."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path

from pvehook.report.report import run_report
from tests.node_under_test import NodeUnderTest
from tests.report.test_page import Page
from tests.watch.test_guest_monitor import running_vm
from tests.watch.test_node_watch import neighbour, night, wait_for_stats


def test_a_neighbour_that_suffered_is_in_the_report_and_in_the_picture(node: NodeUnderTest, tmp_path: Path) -> None:
    with running_vm(node) as web, neighbour(node) as db:

        def during() -> None:
            wait_for_stats(db)
            db.serve_requests("write", 2.0, 200)
            db.serve_requests("write", 2600.0, 1)
            wait_for_stats(db, 2)

        night(node, web, during)
        node.wait_for_event("guest-suffered", vmid="105")
    history, page = str(node.root / "var/lib/pvehook/history.db"), tmp_path / "report.html"
    out = io.StringIO()
    assert run_report(history, out, datetime.now(UTC)) == 0
    assert re.search(r"\nVM 105 db +- +2\.6s +2\.6s +.*VM 101 2\.6s\n", out.getvalue())
    assert run_report(history, out, datetime.now(UTC), html=str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert "VM 105 db: beside the backups of others stalled 2.6 s" in Page(text).text
    picture = text[text.index('<svg class="chart wide"') : text.index("</svg>")]
    bar = re.search(r'class="bar" d="M([\d.]+) \d+H([\d.]+)', picture)
    stall = re.search(r'class="stall" d="M([\d.]+) \d+v-12H([\d.]+)', picture)
    assert bar is not None
    assert stall is not None
    (began, ended), (from_x, to_x) = (map(float, each.groups()) for each in (bar, stall))
    assert from_x < ended
    assert began < to_x
