"""How long `pvehook doctor` takes on a node with many guests.

    .venv/bin/python tests/bench/doctor_cost.py [GUESTS]

Once with agents that answer, once with agents that are silent behind a socket that accepts, the worst case.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.doctor.fixture_nodes import busy_node


def main() -> None:
    guests = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for what, has_agent in (("answer", True), ("are silent", False)):
        patch = pytest.MonkeyPatch()
        with tempfile.TemporaryDirectory(prefix="pvehook-doctor-") as root:
            with busy_node(Path(root), patch, guests=guests, running=guests, has_agent=has_agent) as node:
                began_s, cpu_s = time.monotonic(), time.process_time()
                diagnosis = node.diagnose()
                took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
            patch.undo()
        found, not_checked = len(diagnosis.found), len(diagnosis.not_checked)
        print(f"{guests} guests whose agents {what}: {took_s:.1f} s, {cpu_s:.1f} s of CPU; ", end="")
        print(f"{found} findings, {not_checked} lines not checked")


if __name__ == "__main__":
    main()
