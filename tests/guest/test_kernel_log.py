"""A guest's kernel log where the guest restarts, forbids, keeps its clock badly, or lies."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.errors import TimedOut
from pvehook.guest.agent import AgentConnection, open_agent
from pvehook.guest.kernel_log import (
    KernelLog,
    KernelLogHandle,
    close_kernel_log,
    open_kernel_log,
    read_kernel_log,
)
from tests.guest.hostile import NASTY, agent_that_answers, peer
from tests.guest_files import SimulatedGuest

ANSWER_S = 30.0
SHORT_S = 0.3
IN_FLIGHT = 16
"""Reads that are asked for at once."""
HOUR_S = 3600.0

NO_MORE = b'{"error": {"class": "GenericError", "desc": "failed to read file: Resource temporarily unavailable"}}\n'
OVERWRITTEN = b'{"error": {"class": "GenericError", "desc": "failed to read file: Broken pipe"}}\n'
TOO_LONG = b'{"error": {"class": "GenericError", "desc": "failed to read file: Invalid argument"}}\n'
BOOT_ID = "9688c618-ad14-4d06-8478-11cdec2ec5b1"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        yield guest


@pytest.fixture
def deadline() -> Deadline:
    return Deadline.after(ANSWER_S)


@pytest.fixture
def agent(guest: SimulatedGuest, deadline: Deadline) -> Iterator[AgentConnection]:
    with open_agent(guest.qga_path, deadline) as agent:
        yield agent


def opened(agent: AgentConnection, deadline: Deadline) -> KernelLogHandle:
    handle = open_kernel_log(agent, deadline)
    assert isinstance(handle, KernelLogHandle)
    return handle


def look(agent: AgentConnection, handle: KernelLogHandle, deadline: Deadline) -> KernelLog:
    seen = read_kernel_log(agent, handle, deadline)
    assert isinstance(seen, KernelLog)
    return seen


def content(data: bytes) -> dict[str, object]:
    return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": False}


def shown(tmp_path: Path, *answers: object, limit_bytes: int = 100_000, seconds: float = ANSWER_S) -> object:
    """The look at an agent that answers the reads so, and with "no more" from then on."""
    deadline = Deadline.after(ANSWER_S)
    reads = [*answers, *[NO_MORE] * (-len(answers) % IN_FLIGHT or IN_FLIGHT)]
    script = agent_that_answers(1000, content(BOOT_ID.encode()), {}, *reads)
    handle = KernelLogHandle(1001, BOOT_ID, time.time() - HOUR_S, time.time())
    with peer(str(tmp_path), script) as path, open_agent(path, deadline) as agent:
        return read_kernel_log(agent, handle, Deadline.after(seconds), limit_bytes=limit_bytes)


# Another guest than it was


def test_after_a_restart_nothing_is_read_from_a_file_that_only_has_the_number(
    guest: SimulatedGuest, agent: AgentConnection, deadline: Deadline
) -> None:
    handle = opened(agent, deadline)
    guest.files.start_anew()
    somebodys = [agent.file_open("/proc/stat", deadline) for _ in range(10)]
    assert handle.handle in somebodys
    seen = read_kernel_log(agent, handle, deadline)
    assert seen == Broken("the guest was started anew since its kernel log was opened")
    close_kernel_log(agent, handle, deadline)
    assert len(guest.files.open_paths) == len(somebodys)
    assert agent.file_read(handle.handle, 5, deadline) == b"cpu  "


def test_a_handle_that_the_agent_does_not_know_any_more_is_broken(agent: AgentConnection, deadline: Deadline) -> None:
    handle = opened(agent, deadline)
    agent.file_close(handle.handle, deadline)
    assert read_kernel_log(agent, handle, deadline) == Broken(
        "the guest's agent was started anew since the kernel log was opened"
    )


@pytest.mark.parametrize(
    ("options", "reason"), [({"blocked": ["guest-file-open"]}, "administrator"), ({"os_id": "mswindows"}, "Windows")]
)
def test_a_guest_that_gives_no_log_is_absent(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    deadline = Deadline.after(ANSWER_S)
    simulated = SimulatedGuest(str(tmp_path), 101, **options)  # type: ignore[arg-type]
    with simulated as guest, open_agent(guest.qga_path, deadline) as agent:
        seen = open_kernel_log(agent, deadline)
    assert isinstance(seen, Absent)
    assert reason in seen.why


def test_a_log_that_cannot_be_opened_at_its_end_is_closed_again(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    simulated = SimulatedGuest(str(tmp_path), 101, blocked=["guest-file-seek"])
    with simulated as guest, open_agent(guest.qga_path, deadline) as agent:
        assert isinstance(open_kernel_log(agent, deadline), Absent)
        assert guest.files.open_paths == ()


def test_an_agent_that_hangs_is_broken(guest: SimulatedGuest, agent: AgentConnection, deadline: Deadline) -> None:
    handle = opened(agent, deadline)
    guest.stick("agent")
    short = Deadline.after(SHORT_S)
    assert isinstance(read_kernel_log(agent, handle, short), Broken)
    with pytest.raises(TimedOut):
        close_kernel_log(agent, handle, short)
    guest.unstick("agent")


# Times


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S, 0.0])
def test_a_kernels_clock_that_is_off_is_put_right_by_when_it_was_looked_at(
    guest: SimulatedGuest, agent: AgentConnection, deadline: Deadline, off_s: float
) -> None:
    handle = opened(agent, deadline)
    before_s = time.time()
    guest.files.log("first", clock_off_s=off_s)
    guest.files.log("second", clock_off_s=off_s + 0.001)
    first, second = look(agent, handle, deadline).lines
    assert before_s - 0.1 <= first.at_s <= second.at_s <= time.time()
    assert (first.text, second.text) == ("first", "second")


# Bounds


def test_what_the_deadline_left_unread_is_said_and_read_the_next_time(
    guest: SimulatedGuest, agent: AgentConnection, deadline: Deadline
) -> None:
    handle = opened(agent, deadline)
    for number in range(50):
        guest.files.log(f"line {number}")
    seen = read_kernel_log(agent, handle, Deadline.after(0.5))  # the whole of it is kept in reserve
    assert isinstance(seen, KernelLog)
    assert len(seen.lines) < 50
    assert "not read to its end" in " ".join(seen.missing)
    rest = look(agent, seen.handle, deadline)
    assert [line.text for line in (*seen.lines, *rest.lines)] == [f"line {number}" for number in range(50)]


def test_a_guest_that_writes_for_ever_is_cut_off(tmp_path: Path) -> None:
    record = content(b"3,1,1,-;x\n" * 100)
    seen = shown(tmp_path, *[record] * IN_FLIGHT * 10, limit_bytes=20_000)
    assert isinstance(seen, KernelLog)
    assert 2_000 <= len(seen.lines) <= 2_000 + IN_FLIGHT * 100
    assert "more than 20000 bytes" in " ".join(seen.missing)


def test_a_record_without_an_end_is_not_kept_for_the_next_look(tmp_path: Path) -> None:
    seen = shown(tmp_path, *[content(b"3,1,1,-;" + b"x" * 2000)] * IN_FLIGHT, limit_bytes=20_000)
    assert isinstance(seen, KernelLog)
    assert seen.handle.rest == ""
    assert "none of a kernel's log" in " ".join(seen.missing)


def test_a_look_that_an_answer_of_nonsense_ends_gives_what_it_had(tmp_path: Path) -> None:
    seen = shown(tmp_path, content(b"3,1,1,-;x\n"), 7)
    assert isinstance(seen, KernelLog)
    assert [line.text for line in seen.lines] == ["x"]
    assert "not read to its end" in " ".join(seen.missing)


@pytest.mark.parametrize("answer", [7, {}, {"buf-b64": 7}, NASTY, b"\n", b'{"error": 7}\n'])
def test_a_first_answer_of_nonsense_is_broken(tmp_path: Path, answer: object) -> None:
    seen = shown(tmp_path, answer)
    assert isinstance(seen, Broken)
    assert seen.why.isprintable()


# Records


def test_a_record_that_comes_between_two_reads_of_one_flight_is_read_whole(tmp_path: Path) -> None:
    text = [content(bytes([byte])) for byte in b"3,1,1,-;a line\n"]
    seen = shown(tmp_path, NO_MORE, *text[:9], NO_MORE, *text[9:], NO_MORE)
    assert isinstance(seen, KernelLog)
    assert [line.text for line in seen.lines] == ["a line"]
    assert seen.missing == ()


def test_the_number_of_overwritten_records_is_told_where_it_is_known(tmp_path: Path) -> None:
    seen = shown(tmp_path, content(b"3,4,1,-;a\n"), OVERWRITTEN, content(b"3,9,1,-;b\n"))
    assert isinstance(seen, KernelLog)
    assert [line.text for line in seen.lines] == ["a", "b"]
    assert seen.missing == ("records overwritten before they were read: 4",)


def test_numbers_that_the_kernel_left_out_are_no_loss(tmp_path: Path) -> None:
    seen = shown(tmp_path, content(b"3,4,1,-;a\n"), content(b"3,9,1,-;b\n"))
    assert isinstance(seen, KernelLog)
    assert seen.missing == ()


def test_a_record_longer_than_the_agents_buffer_is_told_of(tmp_path: Path) -> None:
    seen = shown(tmp_path, TOO_LONG, content(b"3,9,1,-;b\n"))
    assert isinstance(seen, KernelLog)
    assert [line.text for line in seen.lines] == ["b"]
    assert seen.missing == ("a record that is longer than the agent can read",)


def test_a_dictionary_is_no_text(tmp_path: Path) -> None:
    seen = shown(tmp_path, content(b"6,1,1,-;sda: read\n SUBSYSTEM=scsi\n DEVICE=+scsi:0:0:0:0\n6,2,1,-;b\n"))
    assert isinstance(seen, KernelLog)
    assert [line.text for line in seen.lines] == ["sda: read", "b"]


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"no record",
            b"3,1,-;x",
            b"a,b,c,d;x",
            b"3,1,-5,-;x",
            b"3,x,1,-;x",
            b"3,-1,1,-;x",
            b"3," + b"9" * 30 + b",1,-;x",
            b"\xff\xfe\x00",
        ),
        *(
            b"3,1," + b"9" * 30 + b",-;x",
            b"3,1," + b"9" * 5000 + b",-;x",
            b"3,1,1e5,-;x",
            NASTY.encode("utf-8", "ignore"),
        ),
    ],
)
def test_a_line_that_is_no_record_is_counted_and_the_others_are_read(tmp_path: Path, line: bytes) -> None:
    whole = line.replace(b"\n", b"") + b"\n" + b"3,1,1,-;x\n"
    pieces = [content(whole[start : start + 2000]) for start in range(0, len(whole), 2000)]
    seen = shown(tmp_path, *pieces)
    assert isinstance(seen, KernelLog)
    assert [each.text for each in seen.lines] == ["x"]
    assert seen.missing == ("lines that are none of a kernel's log: 1",)


def test_times_that_no_kernel_has_stay_between_the_looks(tmp_path: Path) -> None:
    before_s = time.time()
    seen = shown(tmp_path, content(b"3,1,9223372036854775807,-;a\n3,2,0,-;b\n3,3,5,-;c\n"))
    assert isinstance(seen, KernelLog)
    assert len(seen.lines) == 3
    assert all(before_s <= line.at_s <= time.time() for line in seen.lines)
