"""What the daemon reads and does beside freezing, in the unit's own sandbox under real systemd.

nspawn puts a FIFO in the kernel log's place, so the system gets this machine's own log as a node has it. It takes
CAP_SYSLOG from the whole system as well: that the unit's capabilities are enough is in tests/host/test_kernel_log.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.debian_node import REPO_INSIDE, SUITES, DebianNode, booted, what_is_missing

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
]

DROP_IN = "/etc/systemd/system/pvehook.service.d/rig.conf"
TEXTFILES = "/var/lib/prometheus/node-exporter"
ARCHIVE = "/var/lib/vz/dump/vzdump-qemu-101.dat"

TRY = f"""\
import ctypes, json, os, sys
sys.path.insert(0, "/usr/local/lib/pvehook")
from pvehook.host.node import Node
from pvehook.host.pressure import host_pressure
from pvehook.host.run_delay import run_delay_ns
from pvehook.host.versions import read_versions

def attempt(what):
    try:
        return what()
    except OSError as error:
        return error.strerror

def write_back():
    archive = os.open("{ARCHIVE}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sync_file_range(archive, ctypes.c_int64(0), ctypes.c_int64(4096), 7):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.posix_fadvise(archive, 0, 4096, os.POSIX_FADV_DONTNEED)
    return "done"

node = Node()
print("SEEN " + json.dumps({{
    "kernel log": attempt(lambda: os.stat("/dev/kmsg").st_rdev),
    "syslog(2)": ctypes.CDLL(None).klogctl(10, None, 0),
    "pressure": [type(each).__name__ for each in host_pressure(node).values()],
    "run delay": type(run_delay_ns(node, os.getpid(), [os.getpid()])).__name__,
    "kernel": attempt(lambda: read_versions(node).kernel),
    "writeback": attempt(write_back),
    "textfile": attempt(lambda: open("{TEXTFILES}/pvehook.prom", "w").write("")),
    "archive, to write": attempt(lambda: os.open("{ARCHIVE}", os.O_WRONLY)),
}}))
"""


@pytest.fixture(scope="module", params=SUITES)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a process of the unit, with all of its restrictions, could do."""
    with booted(request.param, str(tmp_path_factory.mktemp(request.param))) as node:
        node.run("sh", "-c", "umount -q /dev/kmsg; rm -f /dev/kmsg; mknod -m 644 /dev/kmsg c 1 11")
        node.run("mkdir", "-p", TEXTFILES)
        node.write(ARCHIVE, "x" * 4096)
        node.copy_repo_in()
        node.run(f"{REPO_INSIDE}/install.sh", "--force", timeout_s=120)
        yield by_a_process_of_the_unit(node)


def by_a_process_of_the_unit(node: DebianNode) -> dict[str, Any]:
    node.write("/usr/local/lib/try.py", TRY)
    node.write(DROP_IN, "[Service]\nExecStartPost=/usr/bin/python3 -I /usr/local/lib/try.py\n")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", "pvehook.service")
    messages = [str(entry["MESSAGE"]) for entry in node.journal("--unit=pvehook.service")]
    (line,) = [line.removeprefix("SEEN ") for line in messages if line.startswith("SEEN ")]
    result: dict[str, Any] = json.loads(line)
    return result


def test_what_a_record_needs_is_let_through(seen: dict[str, Any]) -> None:
    assert seen["kernel log"] == os.makedev(1, 11)  # ProtectKernelLogs would put something else in its place
    assert set(seen["pressure"]) <= {"PressureTotals", "Absent"}
    assert seen["run delay"] in ("dict", "Absent")
    assert "." in seen["kernel"]


def test_what_the_pacer_and_the_textfile_need_is_let_through(seen: dict[str, Any]) -> None:
    assert seen["writeback"] == "done"
    assert seen["textfile"] == 0


def test_nothing_more_is(seen: dict[str, Any]) -> None:
    assert seen["syslog(2)"] == -1  # it would say how large the log is, or clear it
    assert seen["archive, to write"] == "Read-only file system"
