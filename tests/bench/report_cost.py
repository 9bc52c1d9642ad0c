#!/usr/bin/env python3
"""What a report costs with 500 guests over 400 nights.

    python tests/bench/report_cost.py [--json] [--rounds N] [--guests N]

Whole runs, each a Python of its own: `pvehook report --since 400d` (report), the same with its default of 30 days
(report_30d), `--html` of all 400 nights (html), `--json` of them (json), and one record put into the history (append):
medians of the seconds (_s) and of the CPU seconds (_cpu_s), and the most memory (_mb). textfile_cpu_s is what writing
node_exporter's file takes at each guest's end, without the disk. db_bytes is the history with its journal.
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

from pvehook.records.history import append  # noqa: E402
from tests.records.backups import NOW_S, a_nodes_backups, write_long_history  # noqa: E402  (the path above is where it lies)

NIGHTS = 400

PEAK = """
print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
REPORT = f"""
import sys
from datetime import UTC, datetime
sys.path.insert(0, {str(TOP)!r})
from pvehook.report.report import run_report
history, options = sys.argv[1], eval(sys.argv[2])
run_report(history, open('/dev/null', 'w'), datetime.fromtimestamp({NOW_S}, UTC), **options)
{PEAK}"""
APPEND = f"""
import sys
sys.path.insert(0, {str(TOP)!r})
from pvehook.records.history import append
from tests.records.backups import NOW_S, charted
append(sys.argv[1], charted(), now_s=NOW_S)
{PEAK}"""


TEXTFILE = f"""
import sys
sys.path.insert(0, {str(TOP)!r})
from pvehook.records.history import last_samples
from pvehook.records.textfile import exposition
import time
began_s = time.process_time()
samples = last_samples(sys.argv[1], 0.0)
text = exposition(samples, set(samples))
print(time.process_time() - began_s)
"""


def cost(rounds: int, code: str, *arguments: str) -> tuple[float, float, float]:
    """Medians of the seconds and the CPU seconds, and the most MB, of whole runs."""
    took_s, cpu_s, most_kib = [], [], 0
    for _ in range(rounds):
        began_s = time.perf_counter()
        running = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        most_kib = max(most_kib, int(running.stdout.readlines()[-1]))  # getrusage's counts the parent before its exec
        running.stdout.close()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise SystemExit(f"a run failed: {arguments}")
        took_s.append(time.perf_counter() - began_s)
        cpu_s.append(usage.ru_utime + usage.ru_stime)
    return round(statistics.median(took_s), 3), round(statistics.median(cpu_s), 3), round(most_kib / 1024, 1)


def textfile_cpu_s(rounds: int, history: str) -> float:
    runs = [subprocess.check_output([sys.executable, "-c", TEXTFILE, history]) for _ in range(rounds)]
    return round(statistics.median(map(float, runs)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guests", type=int, default=500)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        history, page = str(Path(place) / "history.db"), str(Path(place) / "report.html")
        write_long_history(history, arguments.guests, NIGHTS)
        append(history, *a_nodes_backups(arguments.guests, 1, charts_for_days=0), now_s=NOW_S)
        runs: dict[str, tuple[str, tuple[str, ...]]] = {
            "report": (REPORT, (repr({"since": "400d"}),)),
            "report_30d": (REPORT, ("{}",)),
            "html": (REPORT, (repr({"since": "400d", "html": page}),)),
            "json": (REPORT, (repr({"since": "400d", "as_json": True}),)),
            "append": (APPEND, ()),
        }
        for name, (code, options) in runs.items():
            found = cost(arguments.rounds, code, history, *options)
            figures |= dict(zip((f"{name}_s", f"{name}_cpu_s", f"{name}_mb"), found, strict=True))
        figures["textfile_cpu_s"] = textfile_cpu_s(arguments.rounds, history)
        figures["html_bytes"] = os.path.getsize(page)
        figures["db_bytes"] = sum(
            os.path.getsize(path) for path in Path(place).glob("history.db*") if "template" not in str(path)
        )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<16} {value}")


if __name__ == "__main__":
    main()
