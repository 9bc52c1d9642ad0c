"""install.sh, the socket, the daemon and a night on real Debian 13 and 12 systems under systemd-nspawn.

Each release is booted once with pvehook installed over an admin's own vzdump.conf and pvehook.yaml; the tests
that take the installation away boot a system of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.rig.debian_node import REPO_INSIDE, SUITES, DebianNode, Result, booted, what_is_missing
from tests.rig.tree_entries import Entry, entries

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
]

VZDUMP_CONF = "# our nightly backups\n#tmpdir: DIR\nionice: 5\nscript: /usr/local/bin/theirs\n\n# the end\n"
THEIRS = '#!/bin/sh\necho "$*" >>/root/theirs.log\necho "theirs heard $1"\n'

GUEST_PHASES = ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "log-end")
NIGHT = [
    *("job-init", "job-start"),
    *(f"{phase} snapshot {vmid}" for vmid in (101, 102) for phase in GUEST_PHASES),
    "job-end",
]

STAND_INS = Path(__file__).parent.parent / "data/perl/PVE"

SUITE_WORKERS = 4
"""Of the whole suite inside each Debian, while other tests run outside: they wait more than they compute."""


class Night(NamedTuple):
    upid: str
    calls: list[dict[str, Any]]
    log: list[str]
    exit: int
    printed: dict[str, str]

    @property
    def order(self) -> list[str]:
        return [" ".join(call["argv"]) for call in self.calls]

    @property
    def lines(self) -> list[str]:
        """What the hook printed, all phases."""
        return [line for call in self.calls for line in call["lines"]]


def everything_in_etc(node: DebianNode) -> dict[str, Entry]:
    """No exclusions: systemd writes to /etc at first boot only, which is over when a test gets the system."""
    return entries(Path(node.path("/etc")))


def window_around_now() -> str:
    """A configuration whose window (in UTC, the zone of these systems) is open now and two hours more."""
    now = datetime.now(UTC)
    opens, closes = now - timedelta(hours=2), now + timedelta(hours=2)
    return f'window:\n  open: ["{opens:%H:%M}-{closes:%H:%M}"]\n'


def unanswered(night: Night) -> list[str]:
    """What the hook prints when it has to do without the daemon."""
    return [line for line in night.lines if re.search("fault|given up|daemon", line)]


def installer(node: DebianNode, *arguments: str) -> Result:
    return node.run(f"{REPO_INSIDE}/install.sh", *arguments, timeout_s=120)


def install_empty_package(node: DebianNode, name: str, version: str) -> None:
    node.write(
        "/root/package/DEBIAN/control",
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: rig\nDescription: rig\n",
    )
    node.run("dpkg-deb", "--build", "/root/package", "/root/package.deb")
    node.run("dpkg", "--install", "/root/package.deb")


def play_night(node: DebianNode, **stops: str) -> Night:
    """A night in a unit of its own, as Proxmox's scheduler would run it."""
    played = node.run(
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--setenv=LC_ALL=C.UTF-8"),
        *("python3", f"{REPO_INSIDE}/tests/rig/played_night.py"),
        *(word for pause, command in stops.items() for word in ("--stop-at", pause, command)),
        timeout_s=120,
    )
    return Night(**json.loads(played.out))


@contextmanager
def node_with_theirs(suite: str, scratch: str) -> Iterator[DebianNode]:
    """A booted system whose admin already runs a hook of his own, with this repository beside it."""
    with booted(suite, scratch) as node:
        node.copy_repo_in()
        node.write("/etc/vzdump.conf", VZDUMP_CONF, 0o640)
        node.write("/etc/pvehook.yaml", window_around_now())
        node.write("/usr/local/bin/theirs", THEIRS, 0o755)
        yield node


@pytest.fixture(scope="module", params=SUITES)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianNode]:
    with node_with_theirs(request.param, str(tmp_path_factory.mktemp(request.param))) as node:
        installer(node, "--force")
        yield node


def test_the_socket_waits_and_a_second_installation_changes_nothing(node: DebianNode) -> None:
    assert node.run("systemctl", "is-active", "pvehook.socket").out == "active\n"
    assert node.run("systemctl", "is-enabled", "pvehook.socket").out == "enabled\n"
    assert node.run("systemctl", "is-active", "pvehook-notify.socket").out == "active\n"
    before = everything_in_etc(node)
    assert "nothing to change" in installer(node, "--force").out
    assert "nothing to change" in installer(node, "--force", "--check").out
    assert everything_in_etc(node) == before


def test_a_notice_reaches_proxmox_through_the_units_sandbox(node: DebianNode) -> None:
    """PVE::Notify is a stand-in that writes down its arguments (tests/data/perl), below /var as a mailer would."""
    for name in ("Notify.pm", "INotify.pm"):
        node.write(f"/usr/share/perl5/PVE/{name}", (STAND_INS / name).read_text())
    node.run("systemctl", "set-environment", "PVEHOOK_TEST_GIVEN=/var/lib/given")
    notice = json.dumps({"severity": "error", "event": "guest-frozen", "vmid": "101", "data": {"title": "t"}})
    ask = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect('/run/pvehook/notify.sock')\n"
        f"s.sendall({notice.encode()!r}); s.shutdown(socket.SHUT_WR); print(s.makefile().read(), end='')"
    )
    assert node.run("python3", "-c", ask).out == "sent\n"
    node.run("systemctl", "unset-environment", "PVEHOOK_TEST_GIVEN")
    node.run("rm", "-r", "/usr/share/perl5/PVE")  # the others are to find no Proxmox
    severity, template, _, fields = json.loads(node.read("/var/lib/given"))
    assert (severity, template, fields["pvehook-event"], fields["vmid"]) == ("error", "pvehook", "guest-frozen", "101")
    assert not node.run("systemctl", "--failed", "--no-legend", "--plain").out


def test_only_proxmox_8_and_9_are_taken_without_force(node: DebianNode) -> None:
    def check() -> Result:
        return node.run(f"{REPO_INSIDE}/install.sh", "--check", ok=(0, 2))

    assert "pve-manager is not installed: Proxmox VE 8 or 9 was expected" in check().out
    for version, code in (("7.4-20", 2), ("8.4.14", 0), ("9.2.11", 0), ("10.0.1", 2)):
        install_empty_package(node, "pve-manager", version)
        assert check().code == code, version
    node.run("dpkg", "--purge", "pve-manager")


def test_the_first_phase_wakes_the_daemon(node: DebianNode) -> None:
    node.run("systemctl", "stop", "pvehook.service")
    assert play_night(node).exit == 0
    assert node.run("systemctl", "is-active", "pvehook.service").out == "active\n"


def test_a_night_runs_and_the_journal_is_found_by_guest(node: DebianNode) -> None:
    night = play_night(node)
    assert night.exit == 0, night.log
    assert night.order == NIGHT
    assert not unanswered(night)
    for vmid in ("101", "102"):
        found = node.journal("-t", "pvehook", f"PVEHOOK_JOB={night.upid}", f"PVEHOOK_VMID={vmid}")
        assert found
        assert {(entry["SYSLOG_IDENTIFIER"], entry["PVEHOOK_VMID"]) for entry in found} == {("pvehook", vmid)}
        assert all(entry["MESSAGE"] and entry["PVEHOOK_EVENT"] for entry in found)
    assert node.journal("-t", "pvehook", "PVEHOOK_VMID=103") == []


def test_the_backup_processes_are_idle_in_the_kernels_own_words(node: DebianNode) -> None:
    show_priorities = "for t in $(ls /proc/$WORKER/task); do ionice -p $t; done"
    night = play_night(node, **{"archive 101": show_priorities, "before log-end 101": show_priorities})
    assert night.printed["before log-end 101"] == "idle\nexit 0\n"


def test_the_script_that_was_there_hears_every_phase(node: DebianNode) -> None:
    node.write("/root/theirs.log", "")
    night = play_night(node)
    assert node.read("/root/theirs.log").splitlines() == night.order
    assert "theirs heard job-init" in night.lines


def test_a_daemon_killed_in_the_night_comes_back_and_knows_the_job(node: DebianNode) -> None:
    kill = "ls /run/pvehook/jobs | wc -l; systemctl kill --kill-whom=main --signal=KILL pvehook.service"
    night = play_night(node, **{"before pre-stop 101": kill})
    assert night.printed["before pre-stop 101"] == "1\nexit 0\n"
    assert night.exit == 0, night.log
    assert night.order == NIGHT
    assert not unanswered(night)
    mine = node.journal("-t", "pvehook", f"PVEHOOK_JOB={night.upid}")
    assert len({entry["_PID"] for entry in mine}) == 2
    assert node.run("ls", "/run/pvehook/jobs").out == ""


def test_systemd_finds_nothing_in_the_units(node: DebianNode, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("pvehook.socket", "pvehook.service", "pvehook-notify.socket", "pvehook-notify@.service")
    units = [f"/usr/local/lib/systemd/system/{name}" for name in names]
    assert node.run("systemd-analyze", "verify", *units).out == ""
    exposure = node.run("systemd-analyze", "security", "--no-pager", "pvehook.service").out
    with capsys.disabled():
        print(f"\n{node.suite}: {exposure.strip().splitlines()[-1]}")
    assert float(re.findall(r"Overall exposure level.*?([0-9.]+) ", exposure)[-1]) < 3


@pytest.mark.parametrize("suite", SUITES)
def test_uninstalling_leaves_etc_byte_for_byte_as_before(suite: str, tmp_path: Path) -> None:
    with node_with_theirs(suite, str(tmp_path)) as node:
        before = everything_in_etc(node)
        installer(node, "--force")
        assert everything_in_etc(node) != before
        assert play_night(node).exit == 0
        printed = installer(node, "--uninstall").out
        assert everything_in_etc(node) == before, printed
        assert node.run("find", "/usr/local", "/run", "-name", "*pvehook*").out == ""
        assert node.run("systemctl", "is-active", "pvehook.socket", "pvehook.service", ok=(3, 4)).out == (
            "inactive\ninactive\n"
        )
        assert "nothing to change" in installer(node, "--uninstall").out


@pytest.mark.parametrize("suite", SUITES)
def test_uninstalling_in_a_running_night_fails_no_guest(suite: str, tmp_path: Path) -> None:
    with node_with_theirs(suite, str(tmp_path)) as node:
        installer(node, "--force")
        night = play_night(node, **{"before pre-stop 101": f"{REPO_INSIDE}/install.sh --uninstall"})
        assert "a backup is running" in night.printed["before pre-stop 101"]
        assert night.exit == 0, night.log
        assert night.order == NIGHT
        installer(node, "--uninstall")
        assert node.run("find", "/usr/local", "-name", "*pvehook*").out == ""


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_missing_comes_from_debians_packages(suite: str, tmp_path: Path) -> None:
    with node_with_theirs(suite, str(tmp_path)) as node:
        node.run("dpkg", "--purge", "--force-depends", "python3-structlog")
        printed = installer(node, "--force").out
        assert "install Debian packages: python3-structlog\n" in printed
        assert play_night(node).exit == 0
        assert node.journal("-t", "pvehook", "PVEHOOK_VMID=101")


@pytest.mark.parametrize(
    ("suite", "which"),
    [("trixie", "not rig"), ("bookworm", "not rig and not long")],  # its Python runs the long ones outside, too
)
def test_the_unit_tests_pass_with_debians_own_packages(suite: str, which: str, tmp_path: Path) -> None:
    with booted(suite, str(tmp_path)) as node:
        node.copy_repo_in()
        pytest_inside = ("env", f"--chdir={REPO_INSIDE}", "python3", "-m", "pytest", "-q", "-m", which)
        cache = ("-o", "cache_dir=/tmp/pytest-cache")
        done = node.run(
            *pytest_inside, *cache, "-n", str(SUITE_WORKERS), "--dist", "loadgroup", timeout_s=1800, ok=(0, 1)
        )
        if done.code == 1:  # as in scripts/test: what failed beside others is run again, one at a time
            print(f"{suite}, beside others:\n{done.out[-2000:]}")
            done = node.run(*pytest_inside, *cache, "-n", "0", "--last-failed", timeout_s=900, ok=(0, 1))
        assert done.code == 0, done.out[-8000:]
        assert " passed" in done.out
