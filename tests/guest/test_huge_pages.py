"""A guest's huge pages through its agent: found, or the reason why they are not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.huge_pages import DEFRAG, ENABLED, HugePages
from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.guest.huge_pages import read_huge_pages, set_huge_pages
from tests.guest_files import SimulatedGuest

ANSWER_S = 30.0


def shown(guest: SimulatedGuest) -> HugePages:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga_path, deadline) as agent:
        return read_huge_pages(agent, deadline)


def simulated(tmp_path: Path, **options: object) -> SimulatedGuest:
    return SimulatedGuest(str(tmp_path), 101, **options)  # type: ignore[arg-type]


def test_what_is_in_force_is_found_and_every_file_is_closed(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents[ENABLED] = "[always] madvise never\n"
        guest.files.contents[DEFRAG] = "always defer defer+madvise [madvise] never\n"
        assert shown(guest) == HugePages("always", "madvise")
        assert guest.files.open_paths == ()


def test_a_kernel_without_them_has_none(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        assert all(isinstance(each, Absent) and "the guest has no /sys" in each.why for each in shown(guest))


@pytest.mark.parametrize("version", ["7.2.22", "10.0.2"])
def test_an_agent_that_may_read_no_files_says_so(tmp_path: Path, version: str) -> None:
    with simulated(tmp_path, agent_version=version, blocked=["guest-file-open"]) as guest:
        assert all(isinstance(each, Absent) and "administrator" in each.why for each in shown(guest))


def test_a_file_that_is_not_the_kernels_is_broken(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents[ENABLED] = "yes\x1b[2J\n"
        enabled = shown(guest).enabled
        assert isinstance(enabled, Broken)
        assert enabled.why == rf"the guest's {ENABLED}: no choice in brackets: 'yes\x1b[2J\n'"


def put(guest: SimulatedGuest, choice: str) -> object:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga_path, deadline) as agent:
        return set_huge_pages(agent, choice, deadline)


def test_what_was_set_is_in_force_and_read_back(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents[ENABLED] = "[always] madvise never\n"
        assert put(guest, "never") == "never"
        assert guest.files.contents[ENABLED] == "always madvise [never]\n"
        assert guest.files.open_paths == ()


def test_a_kernel_that_does_not_take_the_word_is_broken_and_keeps_what_it_had(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents[ENABLED] = "[always] madvise\n"
        after = put(guest, "never")
        assert isinstance(after, Broken)
        assert "Invalid argument" in after.why
        assert guest.files.contents[ENABLED] == "[always] madvise\n"
        assert guest.files.open_paths == ()


@pytest.mark.parametrize("blocked", ["guest-file-open", "guest-file-write", "guest-file-flush"])
def test_an_agent_that_may_not_write_writes_nothing(tmp_path: Path, blocked: str) -> None:
    with simulated(tmp_path, blocked=[blocked]) as guest:
        guest.files.contents[ENABLED] = "[always] madvise never\n"
        assert isinstance(put(guest, "never"), Absent)
        assert guest.files.contents[ENABLED] == "[always] madvise never\n"
        assert guest.files.open_paths == ()


def test_an_agent_whose_guest_forbids_it_that_file_says_so(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents[ENABLED] = "[always] madvise never\n"
        guest.files.read_only.add(ENABLED)
        after = put(guest, "never")
        assert isinstance(after, Broken)
        assert "Permission denied" in after.why
