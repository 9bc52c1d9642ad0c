"""Plays the backup of VM 101 on the node it runs on, for test_neighbours.py; runs inside that system.

    python3 played_neighbours.py DUMPDIR

After job-start it makes DUMPDIR/stands and stands there until somebody makes DUMPDIR/go: so long the other guests are
seen without a backup.
Prints one JSON object: the task log and the worker's exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pvehook.rehearsal.vzdump.player import Played, Player
from pvehook.rehearsal.vzdump.run import Guest, Run
from tests.vm_jobs import STOCK

HOOK = "/usr/local/lib/pvehook/hooks/vzdump-hook"
BEFORE = "after job-start"
GOES_WITHIN_S = 120.0
ENDS_WITHIN_S = 300.0
POLL_EVERY_S = 0.1


def main() -> None:
    (dumpdir,) = sys.argv[1:]
    quiet = Guest(101, name="quiet")
    run = Run((quiet,), hook=HOOK, root="/", dumpdir=dumpdir, ionice=8, vm_job=STOCK, pauses=(BEFORE,))
    with Player(run) as player:
        player.wait_for(BEFORE)
        Path(dumpdir, "stands").touch()
        until_s = time.monotonic() + GOES_WITHIN_S
        while not os.path.exists(f"{dumpdir}/go"):
            if time.monotonic() > until_s:
                raise TimeoutError(f"nobody made {dumpdir}/go within {GOES_WITHIN_S:g} s")
            time.sleep(POLL_EVERY_S)
        player.go_on()
        played = finish(player)
    json.dump({"log": played.task_log, "notification": played.notification, "exit": played.exit_code}, sys.stdout)


def finish(player: Player) -> Played:
    """A backup on a slow disk takes longer than a player waits by itself."""
    until_s = time.monotonic() + ENDS_WITHIN_S
    while True:
        try:
            return player.finish()
        except subprocess.TimeoutExpired:
            if time.monotonic() > until_s:
                raise


if __name__ == "__main__":
    main()
