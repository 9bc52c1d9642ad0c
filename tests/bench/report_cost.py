#!/usr/bin/env python3
"""What a report costs with 500 guests over 400 nights.

    python tests/bench/report_cost.py [--json] [--rounds N] [--guests N] [--against DIR]

Whole runs, each a Python of its own: `pvehook report --since 400d` (report), the same with its default of 30 days
(report_30d), `--html` of all 400 nights (html), `--json` of them (json), and one record put into the history (append):
medians of the seconds (_s) and of the CPU seconds (_cpu_s), and the most memory (_mb). textfile_cpu_s is what writing
node_exporter's file takes at each guest's end, without the disk. db_bytes is the history with its journal.

DIR is another checkout of pvehook, also one from before its rooms (pvehook/report/) were made: its own code writes its
own history, and its rounds take turns with ours.
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
from typing import Final, NamedTuple

TOP = Path(__file__).parent.parent.parent
NIGHTS = 400

_NAMES: Final = {"REPORT": "report.report", "BACKUPS": "backups", "MADE": "a_nodes_backups"}
_NAMES_BEFORE_ROOMS: Final = {"REPORT": "records.report", "BACKUPS": "nights", "MADE": "a_nodes_nights"}

_PEAK = """
print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
_CODE: Final = {
    "write": """
from tests.records.BACKUPS import NOW_S, MADE, write_long_history
from pvehook.records.WRITING import append
guests, nights = map(int, sys.argv[2:])
write_long_history(sys.argv[1], guests, nights)
append(sys.argv[1], *MADE(guests, 1, charts_for_days=0), now_s=NOW_S)
""",
    "report": f"""
from datetime import UTC, datetime
from pvehook.REPORT import run_report
now = datetime.fromtimestamp(1_795_500_000.0, UTC)  # the NOW_S of the nights
run_report(sys.argv[1], open('/dev/null', 'w'), now, **eval(sys.argv[2]))
{_PEAK}""",
    "append": f"""
from pvehook.records.WRITING import append
from tests.records.BACKUPS import NOW_S, charted
append(sys.argv[1], charted(), now_s=NOW_S)
{_PEAK}""",
    "textfile": """
from pvehook.records import history, textfile
import time
began_s = time.process_time()
if hasattr(history, 'last_samples'):
    last = history.last_samples(sys.argv[1], 0.0)
    if isinstance(last, tuple):
        text = textfile.exposition(*last, dict.fromkeys(last[0].keys() | last[1].keys(), 'qemu'))
    else:
        text = textfile.exposition(last, set(last))
else:
    with history.reading(sys.argv[1]) as database:
        records = history.last_records(database, 0.0)
    text = textfile.exposition(records, {record.vmid for record in records})
print(time.process_time() - began_s)
""",
}


class Cost(NamedTuple):
    """Of one whole run."""

    took_s: float
    cpu_s: float
    printed: float


class Checkout:
    """One state of pvehook, and a history that its own code has written."""

    def __init__(self, top: Path, place: Path) -> None:
        self._top = top
        self.history, self.page = place / "history.db", place / "report.html"
        place.mkdir()

    def run(self, code: str, *arguments: str) -> Cost:
        began_s = time.perf_counter()
        words = [sys.executable, "-c", self._code(code), str(self.history), *arguments]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        printed = running.stdout.read().split()  # getrusage's memory counts the parent before its exec
        running.stdout.close()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise SystemExit(f"a run of {self._top} failed: {code} {arguments}")
        took_s = time.perf_counter() - began_s
        return Cost(took_s, usage.ru_utime + usage.ru_stime, float(printed[-1]) if printed else 0.0)

    def _code(self, name: str) -> str:
        code = f"import sys\nsys.path.insert(0, {str(self._top)!r})\n{_CODE[name]}"
        has_rooms = (self._top / "pvehook" / "report").is_dir()
        for word, meant in (_NAMES if has_rooms else _NAMES_BEFORE_ROOMS).items():
            code = code.replace(word, meant)
        is_apart = (self._top / "pvehook" / "records" / "history_writing.py").exists()
        return code.replace("WRITING", "history_writing" if is_apart else "history")


def measured(checkouts: list[Checkout], rounds: int, guests: int) -> list[dict[str, float]]:
    """Each checkout's figures."""
    for checkout in checkouts:
        checkout.run("write", str(guests), str(NIGHTS))
    found: list[dict[str, float]] = [{} for _ in checkouts]
    for name in ("report", "report_30d", "html", "json", "append", "textfile"):
        runs: list[list[Cost]] = [[] for _ in checkouts]
        for _ in range(rounds):
            for checkout, own in zip(checkouts, runs, strict=True):
                options = {
                    "report": {"since": "400d"},
                    "html": {"since": "400d", "html": str(checkout.page)},
                    "json": {"since": "400d", "as_json": True},
                }
                code = name if name in _CODE else "report"
                own.append(checkout.run(code, repr(options.get(name, {}))))
        for figures, own in zip(found, runs, strict=True):
            took_s, cpu_s, printed = zip(*own, strict=True)
            if name == "textfile":
                figures["textfile_cpu_s"] = round(statistics.median(printed), 4)
                continue
            figures[f"{name}_s"] = round(statistics.median(took_s), 3)
            figures[f"{name}_cpu_s"] = round(statistics.median(cpu_s), 3)
            figures[f"{name}_mb"] = round(max(printed) / 1024, 1)
    for checkout, figures in zip(checkouts, found, strict=True):
        figures["html_bytes"] = checkout.page.stat().st_size
        journals = ("", "-wal", "-shm")
        files = (Path(f"{checkout.history}{journal}") for journal in journals)
        figures["db_bytes"] = sum(file.stat().st_size for file in files if file.exists())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guests", type=int, default=500)
    parser.add_argument("--against", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    tops = {"this": TOP} | ({"against": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as place:
        checkouts = [Checkout(top, Path(place) / name) for name, top in tops.items()]
        found = dict(zip(tops, measured(checkouts, arguments.rounds, arguments.guests), strict=True))
    if arguments.json:
        print(json.dumps(found if arguments.against else found["this"]))
        return
    print(f"{'':<16}", *(f"{name:>12}" for name in found))
    for name in found["this"]:
        print(f"{name:<16}", *(f"{figures[name]:>12}" for figures in found.values()))


if __name__ == "__main__":
    main()
