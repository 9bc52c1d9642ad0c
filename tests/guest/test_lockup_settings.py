"""When a guest's kernel takes itself for locked up, as its agent reads it."""

from __future__ import annotations

from pathlib import Path

from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.guest.lockup_settings import SOFTLOCKUP_PANIC, WATCHDOG_THRESH, LockupSettings, read_lockup_settings
from tests.guest_files import SimulatedGuest


def seen(guest: SimulatedGuest) -> LockupSettings:
    deadline = Deadline.after(30)
    with open_agent(guest.qga_path, deadline) as agent:
        return read_lockup_settings(agent, deadline)


def test_numbers_are_read_and_what_is_none_is_broken_or_absent(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        guest.files.contents[WATCHDOG_THRESH] = "10\n"
        assert seen(guest).watchdog_thresh_s == 10
        assert isinstance(seen(guest).softlockup_panic, Absent)
        guest.files.contents[SOFTLOCKUP_PANIC] = "yes\n"
        assert isinstance(seen(guest).softlockup_panic, Broken)
        assert guest.files.open_paths == ()
