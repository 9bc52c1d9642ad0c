"""Somebody else's script in `post-restart` may talk to the guest's agent; the freeze comes after it."""

from __future__ import annotations

import sys

import pytest

from pvehook.rehearsal.vzdump.player import play
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.freeze.test_freeze import WEB, commands, running_vm
from tests.node_under_test import ALWAYS, NodeUnderTest

ASKS_THE_AGENT = f"""#!{sys.executable} -IS
import socket, sys
if sys.argv[1] == "post-restart":
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(60)
        agent.connect("AGENT")
        agent.sendall(b'{{"execute":"guest-ping"}}\\n')
        print("agent:", agent.recv(100).decode(), flush=True)
"""


def chain(node: NodeUnderTest, text: str) -> None:
    script = node.root / "chained"
    script.write_text(text.replace("AGENT", f"{node.root}/var/run/qemu-server/101.qga"))
    script.chmod(0o755)
    node.configure(ALWAYS + "chain: /chained\n")


def test_a_chained_script_is_answered_by_the_agent_and_the_guest_frozen_after_it(node: NodeUnderTest) -> None:
    chain(node, ASKS_THE_AGENT)
    with running_vm(node) as guest:
        played = play(node.run(WEB))
        assert node.wait_for_event("freeze-done", vmid="101")["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
        assert commands(guest) == ["guest-fsfreeze-freeze", "backup", "guest-fsfreeze-thaw"]
    assert played.exit_code == 0
    (call,) = [call for call in played.calls if call.argv[0] == "post-restart"]
    assert [line for line in call.lines if line.startswith("agent: ")] == ['agent: {"return": {}}']


@pytest.mark.parametrize(("ends", "seen"), [("exit 3", 3), ("kill -15 $$", -15), ("kill -13 $$", -13)])
def test_its_end_is_what_vzdump_sees(node: NodeUnderTest, ends: str, seen: int) -> None:
    chain(node, f'#!/bin/sh\ntest "$1" != post-restart || {ends}\n')
    with running_vm(node) as guest:
        played = play(node.run(WEB))
        assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "failed"
        assert commands(guest) == []
    assert [call.exit_code for call in played.calls if call.argv[0] == "post-restart"] == [seen]


def test_a_daemon_that_dies_while_it_runs_costs_nothing_but_our_freeze(node: NodeUnderTest) -> None:
    """And the script is run once."""
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",)), chain="/chained"))
    kill = f"kill -9 {node.daemon.pid}"
    chain(node, f'#!/bin/sh\ntest "$1" != post-restart || {{ echo it ran; {kill}; }}\n')
    with running_vm(node) as guest:
        played = play(node.run(WEB))
        assert not guest.is_frozen
    assert played.exit_code == 0
    (call,) = [call for call in played.calls if call.argv[0] == "post-restart"]
    assert call.lines.count("it ran") == 1
    assert any("the daemon does not answer" in line for line in call.lines)
