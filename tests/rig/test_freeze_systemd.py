"""The freeze of a real guest by the installed pvehook: under real systemd, in the unit's own sandbox.

QEMU runs on this machine; its sockets are bind-mounted to where Proxmox has them in a booted Debian, which shares this
machine's network namespace, and so what sock_diag shows. A sample of tests/freeze/test_kill_matrix.py, where nobody
plays systemd's part: ExecStopPost, the restart and the journal are the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.rig.debian_node import REPO_INSIDE, SUITES, DebianNode, booted, what_is_missing
from tests.rig.guest_on_node import CONFIG, DISKS, Witness, ask, assert_alive, witnessed
from tests.rig.qemu_guest import DISK_BYTES, CannotStart, QemuGuest, qemu_guest

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
]

THAWED_WITHIN_S = 11.0
"""10 s at most frozen, and one more (design/freeze.md)."""

RESTARTED_WITHIN_S = 20.0

DROP_IN = "/etc/systemd/system/pvehook.service.d/rig.conf"
SERVE = "/usr/bin/python3 -I /usr/local/lib/pvehook/bin/pvehook serve"
COUNT_WAITERS = """\
import sys
sys.path.insert(0, "/usr/local/lib/pvehook")
from pvehook.host.node import Node
from pvehook.host.waiters import watch_waiters
with watch_waiters(Node("/"), "/var/run/qemu-server/101.qga") as watch:
    print(f"sees {watch.waiters_alive()} waiters via {watch.via}")
"""


class Node(NamedTuple):
    """The system and its one VM."""

    debian: DebianNode
    vm: QemuGuest
    dumpdir: str

    def restart(self, *service_lines: str) -> None:
        """The next phase starts a daemon whose unit holds these lines too."""
        self.debian.write(DROP_IN, "\n".join(["[Service]", *service_lines, ""]))
        self.debian.run("systemctl", "daemon-reload")
        self.debian.run("systemctl", "stop", "pvehook.service")

    def play(self, *victim_and_step: str) -> dict[str, Any]:
        """A night in a unit of its own, as Proxmox's scheduler would run it."""
        played = self.debian.run(
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--setenv=LC_ALL=C.UTF-8"),
            *("python3", f"{REPO_INSIDE}/tests/rig/played_freeze.py", self.dumpdir, *victim_and_step),
            timeout_s=120,
        )
        result: dict[str, Any] = json.loads(played.out)
        return result

    def state_after_restart(self) -> str:
        """The service's, once systemd has started it again or given up."""
        until = time.monotonic() + RESTARTED_WITHIN_S
        while True:
            state = self.debian.run("systemctl", "is-active", "pvehook.service", ok=(0, 3)).out.strip()
            if state != "activating" or time.monotonic() > until:
                return state

    def cursor(self) -> str:
        """The end of the journal now."""
        return str(self.debian.journal("--lines=1")[-1]["__CURSOR"])

    def events(self, after: str, name: str) -> list[dict[str, Any]]:
        return [each for each in self._entries(after) if each.get("PVEHOOK_EVENT") == name]

    def said_by_unit(self, after: str) -> list[str]:
        """What the unit's processes printed, ExecStopPost among them."""
        ours = [each for each in self._entries(after) if each.get("_SYSTEMD_UNIT") == "pvehook.service"]
        return [str(each["MESSAGE"]) for each in ours]

    def _entries(self, after: str) -> list[dict[str, Any]]:
        # Without matches: systemd 252 then takes the first that matches for the cursor's own entry, and skips it.
        return self.debian.journal(f"--after-cursor={after}")


@pytest.fixture(scope="module")
def vm() -> Iterator[QemuGuest]:
    try:
        with qemu_guest(101, disks=DISKS) as guest:
            yield guest
    except CannotStart as reason:
        pytest.skip(f"a real guest: {reason}")


@pytest.fixture(scope="module", params=SUITES)
def node(request: pytest.FixtureRequest, vm: QemuGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    # QEMU writes its archive here, so the path must be the same on both sides.
    dumpdir = Path(vm.root, "dump")
    dumpdir.mkdir(exist_ok=True)
    binds = {f"{vm.root}/run/qemu-server": "/run/qemu-server", str(dumpdir): str(dumpdir)}
    with booted(request.param, str(tmp_path_factory.mktemp(request.param)), binds) as debian:
        debian.copy_repo_in()
        debian.write("/etc/pvehook.yaml", 'window: {open: ["00:00-24:00"]}\n')
        debian.write("/etc/pve/qemu-server/101.conf", CONFIG)
        debian.run(f"{REPO_INSIDE}/install.sh", "--force", timeout_s=120)
        yield Node(debian, vm, str(dumpdir))


@pytest.fixture
def witness(vm: QemuGuest) -> Iterator[Witness]:
    with witnessed(vm) as looking_on:
        yield looking_on


def test_a_night_freezes_the_guest_out_of_the_sandbox(
    node: Node, witness: Witness, capsys: pytest.CaptureFixture[str]
) -> None:
    node.restart()
    before = node.cursor()
    played = node.play()
    assert played["exit"] == 0, played["log"]
    (done,) = node.events(before, "freeze-done")
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent", done["MESSAGE"]
    assert done["PVEHOOK_FILESYSTEMS_FROZEN"] == done["PVEHOOK_FILESYSTEMS_THAWED"] == str(len(DISKS))
    assert any("VM 101 (web): filesystem-consistent" in line for line in played["log"])
    assert node.events(before, "fault") == []
    assert_alive(node.vm)
    with capsys.disabled():
        waited_ms = round(witness.longest_write_s() * 1000)
        print(f"\n{node.debian.suite}: frozen {done['PVEHOOK_FROZEN_MS']} ms, a writer waited {waited_ms} ms")


def test_the_sandbox_lets_it_see_who_waits_by_sock_diag(node: Node) -> None:
    """In a process of the unit, so with all of its restrictions."""
    node.debian.write("/usr/local/lib/count_waiters.py", COUNT_WAITERS)
    node.restart("ExecStartPost=/usr/bin/python3 -I /usr/local/lib/count_waiters.py")
    before = node.cursor()
    node.debian.run("systemctl", "start", "pvehook.service")
    assert "sees 0 waiters via sock_diag" in node.said_by_unit(before)


@pytest.mark.parametrize(
    ("victim", "step"),
    [("daemon", "frozen"), ("daemon", "released"), ("daemon", "freezing"), ("worker", "frozen"), ("hook", "held")],
)
def test_whatever_is_killed_the_guest_is_thawed(
    node: Node, witness: Witness, victim: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node.restart("ExecStart=", f"ExecStart={SERVE} --halt-at {step}")
    before = node.cursor()
    played = node.play(victim, step)
    witness.wait_for_a_write(THAWED_WITHIN_S)
    longest_s = witness.longest_write_s()
    assert longest_s < THAWED_WITHIN_S
    assert_alive(node.vm)
    assert (played["exit"] == 0) is (victim == "daemon"), played["log"]
    by_stop_post = [line for line in node.said_by_unit(before) if "a freeze by pvehook was left over; now" in line]
    by_daemon = [each["MESSAGE"] for each in node.events(before, "freeze-left-over")]
    shown = [each["MESSAGE"] for each in node.events(before, "freeze-done")]
    if victim == "daemon":
        assert len(by_stop_post) + len(by_daemon) == 1
        assert shown == []  # nobody is left who knows how that freeze ended; the summary says so
        assert node.state_after_restart() == "active"
    else:
        assert by_stop_post + by_daemon == []
        assert len(shown) == 1
    assert ".freeze" not in node.debian.run("ls", "/run/pvehook/frozen").out
    with capsys.disabled():
        who, waited_ms = (by_stop_post + by_daemon + shown)[0], round(longest_s * 1000)
        print(f"\n| {node.debian.suite:<8} | {victim:<6} | {step:<8} | a writer waited {waited_ms:6} ms | {who}")


def test_the_guests_night_is_in_the_journal_the_mail_and_the_report(node: Node) -> None:
    """Read from the sandbox: QEMU's counters, the guest's own through its agent, and the history that keeps them."""
    node.restart()
    before = node.cursor()
    played = node.play()
    assert played["exit"] == 0, played["log"]
    found = node.debian.journal("-t", "pvehook", "PVEHOOK_VMID=101", "PVEHOOK_EVENT=guest-done")
    done = found[-1]
    assert done["__CURSOR"] != before
    figures = ("STALLED_S", "SLOWED_S", "OVER_1S", "GUEST_IO_SOME_S", "GUEST_STEAL_S", "QMP_SILENCE_MS")
    assert all(float(done[f"PVEHOOK_{name}"]) >= 0 for name in figures), done
    assert done["PVEHOOK_SEVERITY"] in ("none", "slowed", "stalled")
    assert done["PVEHOOK_GUEST_LOCKUPS"] == "0"
    assert node.events(before, "history-not-kept") == []
    table = [line for line in played["log"] if "VM 101 web" in line]
    assert table
    assert all(len(line.removeprefix("INFO: ")) <= 80 for line in table)
    report = node.debian.run("pvehook", "report").out
    assert "101" in report
    assert "web" in report


def test_a_backup_that_a_killed_daemon_had_slowed_gets_its_speed_back(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd runs `thaw --left-over` the moment the daemon has died."""
    slow, path = 1024 * 1024, f"{node.dumpdir}/slowed.raw"
    Path(path).write_bytes(b"")
    os.truncate(path, DISK_BYTES)
    target = {"driver": "raw", "node-name": "slowed", "file": {"driver": "file", "filename": path}}
    ask(node.vm.events, "blockdev-add", **target)
    job = {"job-id": "drive-scsi0", "device": "drive-scsi0", "target": "slowed", "sync": "full", "speed": slow}
    ask(node.vm.events, "blockdev-backup", **job)
    try:
        node.restart()
        left = {"vmid": 101, "qmp": "/var/run/qemu-server/101.qmp", "daemon": 1}
        node.debian.run("mkdir", "-p", "/run/pvehook/speeds")
        node.debian.run("systemctl", "start", "pvehook.service")
        record = json.dumps({**left, "original": {"drive-scsi0": 0}, "ours": [slow]})
        node.debian.run("sh", "-c", f"echo '{record}' >/run/pvehook/speeds/101.json")
        killed_s = time.monotonic()
        node.debian.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pvehook.service")
        speed = slow
        while speed == slow and time.monotonic() - killed_s < 30:
            jobs = ask(node.vm.events, "query-block-jobs")
            speed = jobs[0]["speed"] if jobs else 0
        took_s = time.monotonic() - killed_s
        with capsys.disabled():
            print(f"\n{node.debian.suite}: the original speed was back {took_s * 1000:.0f} ms after SIGKILL")
        assert speed == 0
        assert took_s < 5  # the promise of issue and README
    finally:
        while ask(node.vm.events, "query-block-jobs"):
            with contextlib.suppress(AssertionError):
                ask(node.vm.events, "block-job-cancel", device="drive-scsi0", force=True)
        ask(node.vm.events, "blockdev-del", **{"node-name": "slowed"})
        os.unlink(path)
