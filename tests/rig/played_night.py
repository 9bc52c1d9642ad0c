"""Plays one night of two guests on the node it runs on, for test_debian_node.py; runs inside that system.

    python3 played_night.py [--stop-at PAUSE COMMAND]...

Prints one JSON object: the UPID, the hook's calls, the task log, vzdump's exit code, what the commands printed.
`--stop-at "before pre-stop 101" "kill ..."` lets the night stand there while the command runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pvehook.rehearsal.vzdump.player import Player
from pvehook.rehearsal.vzdump.run import Guest, Run

HOOK = "/usr/local/lib/pvehook/hooks/vzdump-hook"
GUESTS = (Guest(101, name="web"), Guest(102, kind="lxc", name="mail"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-at", nargs=2, action="append", default=[], metavar=("PAUSE", "COMMAND"))
    stops: dict[str, str] = dict(parser.parse_args().stop_at)
    run = Run(GUESTS, hook=HOOK, root="/", ionice=8, compress="zstd", pauses=tuple(stops))
    with Player(run) as player:
        printed = {}
        for pause, command in stops.items():
            player.wait_for(pause)
            done = subprocess.run(
                ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=30, check=False,
                env={**os.environ, "WORKER": str(player.pid), "PATH": "/usr/sbin:/usr/bin"},
            )  # fmt: skip
            printed[pause] = f"{done.stdout}exit {done.returncode}\n"
            player.go_on()
        played = player.finish()
    calls = [{"argv": call.argv, "exit": call.exit_code, "lines": call.lines} for call in played.calls]
    json.dump(
        {"upid": played.upid, "calls": calls, "log": played.task_log, "exit": played.exit_code, "printed": printed},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
