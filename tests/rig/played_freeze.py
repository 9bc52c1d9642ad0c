"""Plays the backup of VM 101 on the node it runs on, for test_freeze_systemd.py; runs inside that system.

    python3 played_freeze.py DUMPDIR [VICTIM STEP]

With a victim (daemon, hook, worker) it waits until the daemon has stopped itself at that step of the freeze (its unit
says `serve --halt-at STEP`), sends SIGKILL to the victim, and lets a daemon that was not the victim go on.
Prints one JSON object: the task log and the worker's exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import psutil

from pvehook.rehearsal.vzdump.player import Player
from pvehook.rehearsal.vzdump.run import Guest, Run
from tests.native_freeze import NATIVE_FREEZE
from tests.vm_jobs import STOCK

HOOK = "/usr/local/lib/pvehook/hooks/vzdump-hook"
UNIT = "pvehook.service"
HALTED_WITHIN_S = 30.0
POLL_EVERY_S = 0.02


def main() -> None:
    dumpdir, *kill = sys.argv[1:]
    run = Run(
        (Guest(101, name="web", agent=True),),
        hook=HOOK,
        root="/",
        dumpdir=dumpdir,
        ionice=8,
        vm_job=STOCK,
        freeze=NATIVE_FREEZE,
    )
    with Player(run) as player:
        if kill:
            strike(kill[0], player.pid)
        played = player.finish()
    json.dump({"log": played.task_log, "exit": played.exit_code}, sys.stdout)


def strike(victim: str, worker: int) -> None:
    daemon = halted_daemon()
    if victim == "daemon":
        subprocess.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT], check=True, timeout=30)
        return
    if victim == "worker":
        os.kill(worker, signal.SIGKILL)
    else:
        (hook,) = (each for each in psutil.Process(worker).children() if each.name() == "vzdump-hook")
        hook.kill()
    os.kill(daemon, signal.SIGCONT)


def halted_daemon() -> int:
    """The daemon's pid, once it has stopped itself."""
    until_s = time.monotonic() + HALTED_WITHIN_S
    while time.monotonic() < until_s:
        shown = subprocess.run(
            ["systemctl", "show", "--property=MainPID", "--value", UNIT],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
        pid = int(shown)
        if pid and psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return pid
        time.sleep(POLL_EVERY_S)
    raise TimeoutError(f"the daemon did not stop itself within {HALTED_WITHIN_S:g} s")


if __name__ == "__main__":
    main()
