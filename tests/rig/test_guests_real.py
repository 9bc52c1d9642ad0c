"""`pvehook guests thp` and a start's facts with real guests: an agent as Debian has it, one set up as Red Hat's is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from pvehook.cli import main
from pvehook.contract.huge_pages import ENABLED
from pvehook.daemon import started_guests
from pvehook.daemon.started_guests import StartedGuests
from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_facts import kept_guest_facts
from tests.daemon.test_started_guests import Log
from tests.rig.qemu_guest import QemuGuest
from tests.rig.test_guest_view_real import restart_agent, started

pytestmark = pytest.mark.rig

FORBIDDEN = (
    *("guest-exec", "guest-exec-status", "guest-file-close", "guest-file-flush", "guest-file-open", "guest-file-read"),
    *("guest-file-seek", "guest-file-write"),
)
"""By /etc/sysconfig/qemu-ga of RHEL 7 to 9."""
ALLOWED = (
    *("guest-sync-delimited", "guest-sync", "guest-ping", "guest-info", "guest-get-time", "guest-get-osinfo"),
    *("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw"),
    *("guest-get-fsinfo", "guest-network-get-interfaces", "guest-shutdown"),
)
"""RHEL 9.4 and later names what is allowed; some of its list."""
AGENTS = ("7.2", "10.0")


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def thp(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(guest: QemuGuest, *words: str) -> Done:
        code = main(["guests", "thp", "--root", guest.root, *words])
        return Done(code, *capsys.readouterr())

    return run


def become(guest: QemuGuest, release: str, *files: str) -> None:
    """The guest's distribution, as far as it shows, and VM 101 of a node."""
    config = Path(guest.root, "etc/pve/qemu-server/101.conf")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("agent: 1\nname: web\n")
    guest.run("mkdir -p /etc/default /usr/sbin")
    for line in release.split("\n"):
        guest.run(f"echo '{line}' >>/etc/os-release")
    for file in files:
        guest.run(f"echo >{file}")


@pytest.fixture(params=AGENTS)
def debian(request: pytest.FixtureRequest) -> Iterator[QemuGuest]:
    with started(agent=request.param) as guest:
        release = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"'
        become(guest, release, "/etc/default/grub", "/usr/sbin/update-grub")
        guest.run(f"echo always >{ENABLED}")
        yield guest


def in_the_guest(guest: QemuGuest) -> str:
    return guest.run(f"cat {ENABLED}")


def test_what_is_in_force_is_found_set_and_read_back(debian: QemuGuest, thp: Callable[..., Done]) -> None:
    found = thp(debian)
    assert found.code == 1
    assert found.out.startswith("VM 101 web, Debian GNU/Linux 12 (bookworm): always (defrag: ")
    assert "    update-grub\n" in found.out

    dry = thp(debian, "--apply-now", "101")
    assert dry.out.startswith(f"VM 101 web: would write `never` to {ENABLED}, where `always` is in force\n")
    assert in_the_guest(debian) == "[always] madvise never\n"

    done = thp(debian, "--apply-now", "101", "--yes")
    assert done == Done(0, "VM 101 web: `never` is in force (read back) until its next boot; it was `always`\n", "")
    assert in_the_guest(debian) == "always madvise [never]\n"

    done = thp(debian, "--apply-now", "101", "--to", "madvise", "--yes")
    assert done.out == "VM 101 web: `madvise` is in force (read back) until its next boot; it was `never`\n"
    assert in_the_guest(debian) == "always [madvise] never\n"
    assert thp(debian).code == 0


@pytest.mark.parametrize(
    ("agent", "options"),
    [("7.2", f"-b {','.join(FORBIDDEN)}"), ("10.0", f"-b {','.join(FORBIDDEN)}"), ("10.0", f"-a {','.join(ALLOWED)}")],
)
def test_where_it_is_forbidden_the_sentence_says_where(agent: str, options: str, thp: Callable[..., Done]) -> None:
    sentence = (
        "its administrator does not allow the agent guest-file-open,guest-file-read,guest-file-close: to change that,"
        " in the guest take these out of BLACKLIST_RPC= or BLOCK_RPCS= in /etc/sysconfig/qemu-ga, or add them to"
        " --allow-rpcs= in its FILTER_RPC_ARGS=, whichever it has; then `systemctl restart qemu-guest-agent`"
    )
    with started(agent=agent) as guest:
        become(guest, 'PRETTY_NAME="CentOS Stream 9"\nID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="9"')
        guest.run(f"echo always >{ENABLED}")
        restart_agent(guest, options)
        (seen,) = json.loads(thp(guest, "--json").out)
        assert (seen["enabled"], seen["why"]) == (None, sentence)
        assert seen["system"]["name"] == "CentOS Stream 9"
        assert set(seen["blocked"]) >= set(FORBIDDEN)
        assert seen["remedy"] == ["grubby --update-kernel=ALL --args=transparent_hugepage=madvise"]
        assert thp(guest, "--apply-now", "101", "--yes") == Done(1, "", f"VM 101 web: not changed: {sentence}\n")
        assert in_the_guest(guest) == "[always] madvise never\n"


def test_a_guest_that_boots_is_asked_once_its_agent_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """From before its kernel runs; its agent's socket accepts all the while."""
    monkeypatch.setattr(started_guests, "PAUSE_S", 0.2)
    log = Log()
    with started(wait_for_agent=False) as guest:
        node = Node(guest.root)
        config = Path(guest.root, "etc/pve/qemu-server/101.conf")
        config.parent.mkdir(parents=True)
        config.write_text("agent: 1\nname: web\n")
        StartedGuests(Context(node, SystemClock(), Readers(), cast(Any, log)), lambda: False).add(101)
        log.wait_for("guest-facts")
        facts = kept_guest_facts(node, 101)
    assert facts is not None
    assert facts.agent_version.startswith("7.2")
    assert facts.huge_pages.enabled in ("always", "madvise", "never")
    for each in threading.enumerate():
        if each.name == "started-guests":
            each.join(30)
