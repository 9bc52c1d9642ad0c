"""The limits of pvehook.service hold in the rig as they do on a node: what would end the daemon there ends it here."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest

from tests.rig.debian_node import REPO_INSIDE, SUITES, DebianNode, booted, what_is_missing

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
]

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
        "/etc/systemd/system/pvehook.service.d/rig.conf",
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
