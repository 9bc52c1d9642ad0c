"""One look through a guest's agent: what it is, how it boots, what its administrator forbids the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.guest_facts import LOADER_INFO, BootFacts, GuestFacts, GuestOs
from pvehook.contract.huge_pages import ENABLED
from pvehook.contract.measured import Absent
from pvehook.deadline import Deadline
from pvehook.errors import Busy, TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.guest_facts import read_guest_facts
from tests.guest_files import SimulatedGuest

ANSWER_S = 30.0
EL = ("guest-exec", "guest-file-close", "guest-file-flush", "guest-file-open", "guest-file-read", "guest-file-write")


def facts(guest: SimulatedGuest, seconds: float = ANSWER_S) -> GuestFacts:
    with open_agent(guest.qga_path, Deadline.after(ANSWER_S)) as agent:
        return read_guest_facts(agent, 1795312800.0, Deadline.after(seconds))


def simulated(tmp_path: Path, **options: object) -> SimulatedGuest:
    return SimulatedGuest(str(tmp_path), 101, **options)  # type: ignore[arg-type]


def test_a_sound_guest_tells_everything(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents |= {
            ENABLED: "[always] madvise never\n",
            "/etc/os-release": 'NAME="Debian GNU/Linux"\nID=debian\n',
            "/etc/default/grub": "GRUB_DEFAULT=0\n",
            "/usr/sbin/update-grub": "#!/bin/sh\n",
        }
        seen = facts(guest)
        assert (seen.at_s, seen.agent_version, seen.blocked) == (1795312800.0, "7.2.22", ())
        assert seen.os == GuestOs("debian", "debian", "12", "6.1.0-40-amd64")
        assert seen.huge_pages.enabled == "always"
        assert seen.boot == BootFacts(("debian",), ("/etc/default/grub", "/usr/sbin/update-grub"), False)
        assert guest.files.open_paths == ()


def test_the_boot_loader_says_itself_that_it_is_systemds(tmp_path: Path) -> None:
    """Flags of an EFI variable, then UTF-16."""
    with simulated(tmp_path) as guest:
        guest.files.contents |= {
            "/etc/os-release": "ID=arch\n",
            LOADER_INFO: "\x06\0\0\0" + "".join(f"{char}\0" for char in "systemd-boot 257.2\0"),
        }
        assert facts(guest).boot == BootFacts(("arch",), (), True)


@pytest.mark.parametrize("version", ["7.2.22", "10.0.2"])
def test_where_files_are_forbidden_the_rest_is_told_and_what_is_forbidden(tmp_path: Path, version: str) -> None:
    with simulated(tmp_path, os_id="centos", agent_version=version, blocked=EL) as guest:
        seen = facts(guest)
    assert seen.blocked == EL
    assert isinstance(seen.os, GuestOs)
    assert seen.os.id == "centos"
    assert isinstance(seen.huge_pages.enabled, Absent)
    assert isinstance(seen.boot, Absent)


def test_a_guest_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    with simulated(tmp_path, blocked=["guest-get-osinfo"]) as guest:
        assert isinstance(facts(guest).os, Absent)


def test_a_frozen_guest_is_none_of_which_everything_is_forbidden(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    with simulated(tmp_path) as guest, open_agent(guest.qga_path, deadline) as agent:
        agent.fsfreeze_freeze(None, deadline)
        with pytest.raises(Busy, match="frozen"):
            read_guest_facts(agent, 0.0, deadline)


def test_an_agent_that_hangs_costs_the_deadline(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        deadline = Deadline.after(ANSWER_S)
        with open_agent(guest.qga_path, deadline) as agent:
            guest.stick("agent")
            with pytest.raises(TimedOut):
                read_guest_facts(agent, 0.0, Deadline.after(0.2))
            guest.unstick("agent")
