"""The 40 recorded call sequences of the real vzdump, and the runs that must bring them about again.

One line of tests/data/vzdump-calls.jsonl:

    {"case": "ghost", "calls": [{"argv": [...], "env": {...}, "exit": 0}, ...]}
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pvehook.rehearsal.vzdump.run import Guest, Mode, Run

FILE = Path(__file__).parent.parent / "data" / "vzdump-calls.jsonl"
RECORDED_AT_S = datetime(2026, 11, 22, 2, 10, tzinfo=UTC).timestamp()


class Recording(NamedTuple):
    case: str
    calls: list[dict[str, Any]]

    @property
    def failing(self) -> dict[tuple[str, ...], int]:
        """Exit codes other than 0, by argv."""
        return {tuple(call["argv"]): call["exit"] for call in self.calls if call["exit"] != 0}


def recordings() -> list[Recording]:
    return [Recording(**json.loads(line)) for line in FILE.read_text().splitlines()]


def run_for(recording: Recording, hook: Path, root: Path) -> Run:
    """The run that was recorded. Facts about guests come from the recording, the job's mode from its name."""
    found = re.search(r"snapshot|suspend|stop", recording.case)
    mode: Mode = found.group() if found else "snapshot"  # type: ignore[assignment]  # one of these words
    clock = root / "recorded-clock"
    clock.write_text(f"@{RECORDED_AT_S}")
    vmids = sorted({int(call["argv"][2]) for call in recording.calls if len(call["argv"]) == 3})
    return Run(
        guests=tuple(_guest(recording, mode, vmid) for vmid in vmids) or (Guest(101),),
        hook=str(hook),
        root=str(root),
        mode=mode,
        storeid="" if recording.case == "dumpdir" else "local",
        clock_file=str(clock),
    )


def hook_text(recording: Recording) -> str:
    """A shell script that fails where the recorded hook failed."""
    cases = "".join(f"'{' '.join(argv)}') exit {code};;\n" for argv, code in recording.failing.items())
    return f'#!/bin/sh\ncase "$*" in\n{cases}*) exit 0;;\nesac\n'


def _guest(recording: Recording, mode: Mode, vmid: int) -> Guest:
    calls = [call for call in recording.calls if call["argv"][2:] == [str(vmid)]]
    started = next((call for call in calls if call["argv"][0] == "backup-start"), None)
    if started is None:  # PVE gave up before it knew anything about the guest
        return Guest(vmid, exists=recording.case != "ghost", is_ha_started=recording.case == "stop-ha")
    came = {call["argv"][0] for call in calls}
    was_down = started["exit"] == 0 and "pre-stop" not in came
    return Guest(
        vmid,
        kind=started["env"]["VMTYPE"],
        name=started["env"].get("HOSTNAME", ""),
        state="stopped" if was_down else "paused" if recording.case.endswith("-paused") else "running",
        can_snapshot=not (mode == "snapshot" and started["argv"][1] == "suspend"),
    )
