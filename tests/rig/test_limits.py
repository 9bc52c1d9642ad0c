"""The limits of pvehook.service hold in the rig as they do on a node: what would end the daemon there ends it here."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.debian_node import REPO_INSIDE, SUITES, DebianNode, booted, what_is_missing

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
]

DROP_IN = "/etc/systemd/system/pvehook.service.d/rig.conf"
FAIL_WITHIN_S = 60.0

GREEDY = """\
import os, signal, socket, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
    systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.sigwait({signal.SIGUSR1})  # by then the limits are in force
held = []
if sys.argv[1] == "threads":
    try:
        for _ in range(200):
            held.append(threading.Thread(target=signal.pause, daemon=True))
            held[-1].start()
    except RuntimeError:
        held.pop()
    try:
        os.fork()
    except OSError as error:
        print("FORK", error.errno)
    print("THREADS", len(held) + 1, flush=True)
    os._exit(0)
for mib in range(0, 512, 8):
    print("MIB", mib, flush=True)
    held.append(bytearray(b"x" * (8 << 20)))
"""


@pytest.fixture(scope="module", params=SUITES)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianNode]:
    with booted(request.param, str(tmp_path_factory.mktemp(request.param))) as node:
        node.copy_repo_in()
        node.run(f"{REPO_INSIDE}/install.sh", "--force", timeout_s=120)
        node.write("/usr/local/lib/greedy.py", GREEDY)
        yield node


def printed_by_a_greedy_daemon(node: DebianNode, wants: str) -> list[str]:
    """What a process in the daemon's place printed that takes what it can get, and systemd's own lines about it."""
    node.write(
        DROP_IN,
        "[Service]\nRestart=no\nExecStart=\n"
        f"ExecStart=/usr/bin/python3 -I /usr/local/lib/greedy.py {wants}\n"
        "ExecStartPost=+/bin/sh -c 'kill -USR1 ${MAINPID}'\n",
    )
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "stop", "pvehook.service")
    before = node.journal("--lines=1")[-1]["__CURSOR"]
    node.run("systemctl", "start", "--wait", "pvehook.service", ok=(0, 1))
    return [str(entry["MESSAGE"]) for entry in node.journal(f"--after-cursor={before}")]


def test_more_threads_than_the_unit_may_have_fail_with_eagain(node: DebianNode) -> None:
    printed = printed_by_a_greedy_daemon(node, "threads")
    limit = node.run("systemctl", "show", "--value", "--property=TasksMax", "pvehook.service").out.strip()
    assert f"THREADS {limit}" in printed, printed
    assert f"FORK {errno.EAGAIN}" in printed


def test_more_memory_than_the_unit_may_have_ends_it(node: DebianNode) -> None:
    printed = printed_by_a_greedy_daemon(node, "memory")
    assert any("code=killed, status=9/KILL" in line for line in printed), printed
    limit = int(node.run("systemctl", "show", "--value", "--property=MemoryMax", "pvehook.service").out)
    taken = max(int(line.split()[1]) for line in printed if re.fullmatch(r"MIB \d+", line)) << 20
    assert limit - (32 << 20) < taken <= limit


def test_a_daemon_that_cannot_start_is_tried_seldom_and_the_socket_stays(node: DebianNode) -> None:
    broken = "/usr/local/lib/pvehook/structlog.py"
    node.write(broken, "raise ModuleNotFoundError(\"No module named 'structlog'\")\n")
    node.run("rm", "-f", DROP_IN)
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "stop", "pvehook.service")
    node.run("rm", "-f", "/run/pvehook/failures")  # the greedy daemon's end was one
    before = str(node.journal("--lines=1")[-1]["__CURSOR"])
    node.run("systemctl", "start", "--no-block", "pvehook.service")
    entries = entries_until_it_pauses(node, before)
    assert len(entries) <= 20, entries
    assert sum("Main process exited" in str(entry["MESSAGE"]) for entry in entries) == 2
    (critical,) = [str(entry["MESSAGE"]) for entry in entries if entry["PRIORITY"] == "2"]
    assert "systemctl restart pvehook.service" in critical
    assert any("No module named 'structlog'" in str(entry["MESSAGE"]) for entry in entries)
    assert node.run("systemctl", "is-active", "pvehook.socket").out == "active\n"

    node.run("rm", broken)
    node.run("systemctl", "restart", "pvehook.service")  # it does not wait out the pause
    assert node.run("systemctl", "is-active", "pvehook.service").out == "active\n"
    assert node.run("ls", "/run/pvehook/failures", ok=(2,)).code == 2  # nor are the failures remembered


def entries_until_it_pauses(node: DebianNode, cursor: str) -> list[dict[str, Any]]:
    """The journal until the unit does nothing but wait, for a minute."""
    until = time.monotonic() + FAIL_WITHIN_S
    while time.monotonic() < until:
        pid = node.run("systemctl", "show", "--value", "--property=ControlPID", "pvehook.service").out.strip()
        read = f"for c in $(cat /proc/{pid}/task/*/children); do tr '\\0' ' ' </proc/$c/cmdline; done"
        if node.run("sh", "-c", read, ok=(0, 1, 2)).out == "sleep 60 ":
            return node.journal(f"--after-cursor={cursor}", "--unit=pvehook.service")
    raise AssertionError(f"no pause within {FAIL_WITHIN_S} s: {node.journal(f'--after-cursor={cursor}')}")
