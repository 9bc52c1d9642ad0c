"""What a run starts ends with it: threads, descriptors and memory of the daemon do not grow with runs and guests.

Calls are made by a process of its own, without the hook: a child of the worker that it names, as the daemon demands.
Set PVEHOOK_FULL_SIZE to play 100 runs and 300 guests, as a node does in a bad week.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.node_under_test import NodeUnderTest

FULL = "PVEHOOK_FULL_SIZE" in os.environ
RUNS = 100 if FULL else 30
GUESTS = 300 if FULL else 60
MEMORY_KIB = 4 * 1024
"""What the allocator may keep between two measurements of a daemon that does not grow."""

GUEST_PHASES = ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "log-end")

CALLER = """
import json, os, socket, sys, time
path, phases = sys.argv[1], sys.argv[2:]
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
for phase in phases:
    argv = phase.split("/")
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(path)
        line = {"v": 1, "argv": argv, "env": {"STOREID": "local", "VMTYPE": "qemu", "HOSTNAME": "web"},
                "worker": os.getppid(), "until": time.monotonic() + 60}
        call.sendall(json.dumps(line).encode() + b"\\n")
        reply = b""
        while chunk := call.recv(65536):
            reply += chunk
    assert b"exit 0" in reply, (phase, reply)
"""


class Usage(NamedTuple):
    """Of the daemon's process."""

    threads: int
    descriptors: int
    memory_kib: int


def usage(node: NodeUnderTest) -> Usage:
    proc = Path(f"/proc/{node.daemon.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Usage(int(status["Threads"]), len(os.listdir(proc / "fd")), int(status["VmRSS"].split()[0]))


def call(node: NodeUnderTest, *phases: str) -> None:
    subprocess.run([sys.executable, "-IS", "-c", CALLER, node.node.hook_socket, *phases], check=True, timeout=300)


def a_run(vmid: int) -> list[str]:
    return ["job-init", "job-start", *(f"{phase}/snapshot/{vmid}" for phase in GUEST_PHASES), "job-end"]


def grows_not(before: Usage, after: Usage) -> None:
    assert after.threads <= before.threads + 1, (before, after)  # one may be on its way out
    assert after.descriptors <= before.descriptors + 1, (before, after)
    assert after.memory_kib <= before.memory_kib + MEMORY_KIB, (before, after)


def test_run_after_run_takes_no_more_than_the_first_ones(node: NodeUnderTest) -> None:
    for _ in range(RUNS // 10):
        call(node, *a_run(101))
    before = usage(node)
    for _ in range(RUNS - RUNS // 10):
        call(node, *a_run(101))
    grows_not(before, usage(node))
    assert node.event_names().count("guest-done") == RUNS
    assert "fault" not in node.event_names()
    assert os.listdir(node.root / "run/pvehook/jobs") == []


def test_guest_after_guest_takes_no_more_than_the_first_ones(node: NodeUnderTest) -> None:
    phases = [f"{phase}/snapshot/{vmid}" for vmid in range(101, 101 + GUESTS) for phase in GUEST_PHASES]
    call(node, "job-init", "job-start", *phases[: len(phases) // 10 * 1], *a_run(100)[2:])
    before = usage(node)
    call(node, "job-init", "job-start", *phases, "job-end")
    grows_not(before, usage(node))
    assert "fault" not in node.event_names()
