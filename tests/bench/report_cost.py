#!/usr/bin/env python3
"""What a report costs with 200 guests over 400 nights.

    python tests/bench/report_cost.py [--json] [--rounds N]

Medians of whole runs, each a Python of its own: `pvehook report --since 400d` (report_s), the same with its default of
30 days (report_30d_s), `--html` of all 400 nights (html_s, html_bytes), `--json` of them (json_s), and one record put
into the history (append_s). db_bytes is the history with its journal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from tests.records.backups import NOW_S, write_long_history  # noqa: E402  (the path above is where it lies)

GUESTS, NIGHTS = 200, 400

REPORT = f"""
import sys
from datetime import UTC, datetime
sys.path.insert(0, {str(TOP)!r})
from pvehook.report.report import run_report
history, options = sys.argv[1], eval(sys.argv[2])
sys.exit(run_report(history, open('/dev/null', 'w'), datetime.fromtimestamp({NOW_S}, UTC), **options))
"""
APPEND = f"""
import sys
sys.path.insert(0, {str(TOP)!r})
from pvehook.records.history import append
from tests.records.backups import NOW_S, charted
append(sys.argv[1], charted(), now_s=NOW_S)
"""


def median_s(rounds: int, code: str, *arguments: str) -> float:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        took.append(time.perf_counter() - began)
    return round(statistics.median(took), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        history, page = str(Path(place) / "history.db"), str(Path(place) / "report.html")
        write_long_history(history, GUESTS, NIGHTS)
        rounds = arguments.rounds
        figures = {
            "report_s": median_s(rounds, REPORT, history, repr({"since": "400d"})),
            "report_30d_s": median_s(rounds, REPORT, history, "{}"),
            "html_s": median_s(rounds, REPORT, history, repr({"since": "400d", "html": page})),
            "json_s": median_s(rounds, REPORT, history, repr({"since": "400d", "as_json": True})),
            "append_s": median_s(rounds, APPEND, history),
            "html_bytes": os.path.getsize(page),
            "db_bytes": sum(
                os.path.getsize(path) for path in Path(place).glob("history.db*") if "template" not in str(path)
            ),
        }
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<14} {value}")


if __name__ == "__main__":
    main()
