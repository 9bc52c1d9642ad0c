"""SIGKILL to daemon, hook and worker at every step of a freeze: the guest is thawed, whatever was killed.

The steps come from the code (pvehook.freeze.open_freezes.STEPS), so a new step joins the matrix by itself. `--halt-at`
makes the daemon stop itself (SIGSTOP) there; the test kills its victim then, and plays systemd's part: ExecStopPost's
thaw and a new daemon where the daemon was killed, SIGCONT where it was not.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from pvehook.freeze.open_freezes import STEPS
from pvehook.rehearsal.vzdump.player import Player
from pvehook.rescue.freeze_record import freeze_records
from tests.freeze.test_freeze import WEB, running_vm
from tests.node_under_test import REPO, NodeUnderTest

THAWED_WITHIN_S = 11.0
"""10 s at most frozen, and one more (design/freeze.md)."""


def thaw_left_over(node: NodeUnderTest) -> None:
    """What ExecStopPost= of the unit does, with nothing but the standard library."""
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from pvehook.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-I", "-S", "-c", code, "thaw", "--left-over", "--root", str(node.root)]
    subprocess.run(command, check=False, timeout=30)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["daemon", "hook", "worker"])
def test_whatever_is_killed_at_whatever_step_the_guest_is_thawed(
    node_without_daemon: NodeUnderTest, victim: str, step: str
) -> None:
    node = node_without_daemon
    daemon = node.start_daemon("--halt-at", step)
    with running_vm(node) as guest, Player(node.run(WEB)) as player:
        _, status = os.waitpid(daemon.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the daemon ended before step {step}"
        hooks = [each for each in psutil.Process(player.pid).children() if each.name() == "vzdump-hook"]
        if victim == "daemon":
            node.kill_daemon()
            thaw_left_over(node)
            node.start_daemon()
        elif victim == "worker":
            player.send_signal(signal.SIGKILL)
            daemon.send_signal(signal.SIGCONT)
        else:
            for hook in hooks:  # none is left after post-restart has returned; then this is an undisturbed run
                hook.send_signal(signal.SIGKILL)
            daemon.send_signal(signal.SIGCONT)
        player.finish()
        assert guest.wait_until(lambda: not guest.is_frozen, THAWED_WITHIN_S)
        freezes = guest.frozen_intervals
        longest_s = max((each.until_s - each.asked_at_s for each in freezes if each.until_s), default=0.0)
        assert longest_s <= THAWED_WITHIN_S
        if victim != "worker":  # PVE lives and thaws its own freezes: nobody else may
            foreign_jobs = [
                each for each in freezes if each.frozen_by.pid == player.pid != getattr(each.thawed_by, "pid", 0)
            ]
            assert foreign_jobs == []
        by_pve = sum(each.frozen_by.pid == player.pid for each in freezes)
        print(f"| {victim:<6} | {step:<11} | {len(freezes)} ({by_pve} by PVE) | {longest_s * 1000:6.0f} ms | thawed |")
        done = node.wait_for_event("guest-done", vmid="101")
        ours = [each for each in freezes if each.frozen_by.pid != player.pid]
        ours_s = [each.until_s - each.asked_at_s for each in ours if each.until_s]
        if victim == "daemon" and ours_s:  # the summary says for how long it was frozen, and who thawed it
            assert done["PVEHOOK_CONSISTENCY"] in ("crash-consistent", "filesystem-consistent")
            already = re.search(
                r"it was thawed already when (systemd|the hook).*, ([\d.]+) s after its freeze", done["MESSAGE"]
            )
            if already:  # by the daemon's last breath
                assert float(already[2]) > sum(ours_s) - 0.1
            else:
                assert "frozen for " in done["MESSAGE"]
                assert abs(int(done["PVEHOOK_FROZEN_MS"]) / 1000 - sum(ours_s)) < 0.5
                left_over = "the daemon ended during its freeze; thawed by (systemd|the hook|it)"
                assert re.search(f"frozen when the backup began|{left_over}", done["MESSAGE"])
    node.stop()
    assert [each for each in freeze_records(node.node) if each.state != "thawed"] == []
    assert list((node.root / "run/pvehook/frozen").glob("*.thawed")) == []
