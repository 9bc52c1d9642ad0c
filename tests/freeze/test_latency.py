"""A slow host is just where a freeze must stay short: agent latency x monitor latency, against PVE's own sequence of
commands with the same guest."""

from __future__ import annotations

import pytest

from pvehook.hook_call import DEADLINE_S
from pvehook.rehearsal.vzdump.player import Played, play
from tests.freeze.test_freeze import WEB, running_vm
from tests.node_under_test import ALWAYS, NodeUnderTest

AGENT_S = (0.0, 0.05, 0.1, 0.4, 1.0, 1.9, 3.0)
MONITOR_S = (0.0, 0.05, 0.1, 0.3)

QUICK = ((0.0, 0.0), (0.1, 0.1), (1.0, 0.0))

MACHINE_S = 0.6
"""What a test machine adds to a freeze that runs six tests at a time on two cores."""

PRE_STOP_S = 3.0
"""More than the facts may take, and less than its deadline: vzdump waits, and nothing is frozen yet."""

ATTEMPTS = 5
"""A busy machine only ever adds to a freeze, at times more than that, or answers too late for the facts."""


def frozen_s(node: NodeUnderTest, agent_s: float, monitor_s: float) -> tuple[float, Played]:
    """How long the guest was frozen in one backup; 0: it was not."""
    with running_vm(node, agent_latency_s=agent_s, monitor_latency_s=monitor_s, backup_s=1.0) as guest:
        played = play(node.run(WEB))
        assert played.exit_code == 0
        assert not guest.is_frozen
        freezes = guest.frozen_intervals
    return sum(each.until_s - each.since_s for each in freezes if each.until_s is not None), played


@pytest.mark.parametrize(
    ("agent_s", "monitor_s"),
    [
        pytest.param(agent_s, monitor_s, marks=() if (agent_s, monitor_s) in QUICK else pytest.mark.long)
        for agent_s in AGENT_S
        for monitor_s in MONITOR_S
    ],
)
def test_a_slow_guest_is_frozen_hardly_longer_than_by_pve(
    node: NodeUnderTest, agent_s: float, monitor_s: float
) -> None:
    seen = []
    for _ in range(ATTEMPTS):
        wrong = what_is_wrong(node, agent_s, monitor_s)
        if not wrong:
            return
        seen.append(wrong)
    raise AssertionError(seen)


def within_s(phase: str) -> float:
    """How long the hook may keep vzdump waiting in this phase."""
    return PRE_STOP_S if phase == "pre-stop" else DEADLINE_S[phase]


def what_is_wrong(node: NodeUnderTest, agent_s: float, monitor_s: float) -> str:
    """Of one backup with the hook and one without; empty: nothing."""
    before = len(node.journal.events)
    node.configure(ALWAYS)
    ours_s, played = frozen_s(node, agent_s, monitor_s)
    done = node.wait_for_event("freeze-done", before, vmid="101")
    verdict = node.wait_for_event("freeze-verdict", before, vmid="101")
    node.configure(ALWAYS + "freeze: {mode: off}\n")
    native_s, _ = frozen_s(node, agent_s, monitor_s)
    seen = f"{ours_s:.3f} s, native {native_s:.3f} s; {verdict['MESSAGE']}; {done['MESSAGE']}"
    late = [(each.argv, each.took_s) for each in played.calls if each.took_s > within_s(each.argv[0]) + MACHINE_S]
    if late:
        return f"{late}; {seen}"
    if verdict["PVEHOOK_ACTION"] != "freeze":
        slow, silent = f"takes {agent_s:.1f} s for each answer", "does not answer"
        said = slow in verdict["MESSAGE"] or (agent_s > 1.0 and silent in verdict["MESSAGE"])
        return "" if ours_s == 0 and agent_s >= 0.5 and said else seen
    limit_s = native_s + 2 * (agent_s + monitor_s) + MACHINE_S
    return "" if done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent" and 0 < ours_s <= limit_s else seen
