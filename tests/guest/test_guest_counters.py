"""A guest's own view where something is missing, forbidden or a lie: absent, zero and broken stay three results."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.contract.pressure import PressureTotals
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.guest_counters import GuestCounters, read_guest_counters, read_start
from tests.guest.hostile import NASTY, agent_that_answers, peer
from tests.guest_files import SimulatedGuest

ANSWER_S = 30.0
SHORT_S = 0.2

PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"


def look(guest: SimulatedGuest, seconds: float = ANSWER_S) -> GuestCounters:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga_path, deadline) as agent:
        return read_guest_counters(agent, Deadline.after(seconds))


def simulated(tmp_path: Path, **options: object) -> SimulatedGuest:
    return SimulatedGuest(str(tmp_path), 101, **options)  # type: ignore[arg-type]


def content(text: str | bytes) -> dict[str, object]:
    data = text if isinstance(text, bytes) else text.encode()
    return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": True}


def shown(tmp_path: Path, file: object) -> GuestCounters:
    """By an agent whose every file is this one."""
    deadline = Deadline.after(ANSWER_S)
    with peer(str(tmp_path), agent_that_answers(*(1000, file, {}) * 5)) as path, open_agent(path, deadline) as agent:
        return read_guest_counters(agent, deadline)


def test_a_guest_that_waits_says_for_what_and_how_long(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.set_pressure("io", 2_500_000, 1_500_000)
        guest.files.set_steal(ticks=250)
        seen = look(guest)
        assert (seen.cpu, seen.io, seen.memory) == ((0, 0), (2_500_000, 1_500_000), (0, 0))
        assert seen.steal_s == 2.5
        assert guest.files.open_paths == ()


@pytest.mark.parametrize("path", ["/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory", "/proc/stat"])
def test_a_file_that_the_guest_does_not_have_is_absent_and_the_others_are_there(tmp_path: Path, path: str) -> None:
    with simulated(tmp_path) as guest:
        del guest.files.contents[path]
        seen = look(guest)
    absent = [each for each in seen if isinstance(each, Absent)]
    assert len(absent) == 1
    assert f"the guest has no {path}" in absent[0].why
    assert ("psi=1" in absent[0].why) == ("pressure" in path)


def test_pressure_that_is_compiled_in_and_off_is_absent(tmp_path: Path) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents["/proc/pressure/io"] = OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        seen = look(guest)
        assert isinstance(seen.io, Absent)
        assert "psi=1" in seen.io.why
        assert isinstance(seen.cpu, PressureTotals)
        assert guest.files.open_paths == ()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_broken_with_the_guests_reason(tmp_path: Path, error: int) -> None:
    with simulated(tmp_path) as guest:
        guest.files.contents["/proc/pressure/io"] = OSError(error, os.strerror(error))
        seen = look(guest)
        assert isinstance(seen.io, Broken)
        assert os.strerror(error) in seen.io.why
        assert guest.files.open_paths == ()


@pytest.mark.parametrize("version", ["7.2.22", "10.0.2"])
@pytest.mark.parametrize("blocked", ["guest-file-open", "guest-file-read"])
def test_file_commands_that_are_blocked_are_absent_with_the_reason(tmp_path: Path, version: str, blocked: str) -> None:
    with simulated(tmp_path, agent_version=version, blocked=[blocked]) as guest:
        for each in look(guest):
            assert isinstance(each, Absent)
            assert "administrator" in each.why
            assert f"{blocked} has been disabled" in each.why
        assert guest.files.open_paths == ()


@pytest.mark.parametrize("version", ["7.2.22", "10.0.2"])
def test_a_frozen_guest_is_broken_and_not_blocked(tmp_path: Path, version: str) -> None:
    deadline = Deadline.after(ANSWER_S)
    with simulated(tmp_path, agent_version=version) as guest, open_agent(guest.qga_path, deadline) as agent:
        agent.fsfreeze_freeze(None, deadline)
        seen = read_guest_counters(agent, deadline)
    assert all(isinstance(each, Broken) and "frozen" in each.why for each in seen)


def test_windows_has_none_of_it(tmp_path: Path) -> None:
    with simulated(tmp_path, os_id="mswindows") as guest:
        assert all(isinstance(each, Absent) and "Windows" in each.why for each in look(guest))


def test_an_agent_that_hangs_is_broken_and_costs_one_deadline(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    with simulated(tmp_path) as guest, open_agent(guest.qga_path, deadline) as agent:
        guest.stick("agent")
        seen = read_guest_counters(agent, Deadline.after(SHORT_S))
        guest.unstick("agent")
    assert all(isinstance(each, Broken) and f"within {SHORT_S:g} s" in each.why for each in seen)


def test_what_was_opened_is_closed_also_when_the_agent_hung_before_it_was_read(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    with simulated(tmp_path) as guest, open_agent(guest.qga_path, deadline) as agent:
        handle = agent.file_open("/proc/uptime", deadline)
        guest.stick("agent")
        with pytest.raises(TimedOut):
            agent.file_read(handle, 100, Deadline.after(SHORT_S))
        with pytest.raises(TimedOut):
            agent.file_close(handle, Deadline.after(0))
        guest.unstick("agent")
        agent.ping(deadline)
        assert guest.files.open_paths == ()


NONSENSE = [
    *("", "\0", "some total=\n", "some avg10=0 total=-1\n", "some total=1e3\n", "full total=1\n", NASTY),
    *(f"some total={2**63}\n", f"some total={'9' * 1900}\n", "cpu  1 2 3\n", "12 13\n", "1e99 1e99\n", "nan nan\n"),
    "x" * 2048,
]


@pytest.mark.parametrize("text", NONSENSE)
def test_a_file_full_of_nonsense_is_broken_on_one_line(tmp_path: Path, text: str) -> None:
    for each in shown(tmp_path, content(text.encode("utf-8", "surrogatepass"))):
        assert isinstance(each, Broken)
        assert each.why.isprintable()


def test_the_right_text_of_a_pressure_file_is_no_uptime(tmp_path: Path) -> None:
    seen = shown(tmp_path, content(PRESSURE))
    assert seen[:3] == ((7, 5), (7, 5), (7, 5))
    assert isinstance(seen.steal_s, Broken)
    assert isinstance(seen.uptime_s, Broken)


@pytest.mark.parametrize(
    "reply",
    [
        *(7, None, [], "x", {}, {"buf-b64": 7}, {"buf-b64": "%%%"}, {"buf-b64": "A"}, {"buf-b64": "\u00e9"}),
        *({"buf-b64": "A" * 4100}, {"buf-b64": None, "count": 5}, NASTY),
    ],
)
def test_an_answer_of_a_wrong_shape_is_broken(tmp_path: Path, reply: object) -> None:
    for each in shown(tmp_path, reply):
        assert isinstance(each, Broken)
        assert "guest-file-read" in each.why
        assert each.why.isprintable()


@pytest.mark.parametrize("handle", [-1, 2**63, None, "1000", [1000], True])
def test_a_handle_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, handle: object) -> None:
    deadline = Deadline.after(ANSWER_S)
    with (
        peer(str(tmp_path), agent_that_answers(handle)) as path,
        open_agent(path, deadline) as agent,
        pytest.raises(BadReply, match="guest-file-open"),
    ):
        read_start(agent, "/proc/stat", deadline)
