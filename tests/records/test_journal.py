"""Events reach the journal as its native protocol wants them, and are never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from pvehook.records.journal import encode_fields, journal_log
from pvehook.rehearsal.journal_receiver import JournalReceiver, parse_event


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalReceiver]:
    with JournalReceiver(str(tmp_path / "socket")) as receiver:
        yield receiver


def until_full(send: Callable[[], object]) -> None:
    try:
        while True:
            send()
    except BlockingIOError:
        return


@pytest.fixture
def full_journal(tmp_path: Path) -> Iterator[socket.socket]:
    """A journald that does not read: its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(str(tmp_path / "full"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            until_full(lambda: filler.sendto(b"MESSAGE=filler\n", socket.MSG_DONTWAIT, str(tmp_path / "full")))
        hung.setblocking(False)
        yield hung


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "stderr").open("w", encoding="utf-8") as file:
        yield file


def lines_of(stderr: TextIO) -> list[str]:
    return Path(stderr.name).read_text(encoding="utf-8").splitlines()


def drained(full: socket.socket) -> list[dict[str, str]]:
    """The events of ours that were in the queue, which is empty afterwards."""
    events = []
    try:
        while True:
            events.append(parse_event(full.recv(65536)))
    except BlockingIOError:
        return [event for event in events if event["MESSAGE"] != "filler"]


def event_of(journal: JournalReceiver, name: str) -> dict[str, str]:
    return journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == name, name)


def test_an_event_is_for_people_and_for_programs(journal: JournalReceiver, tmp_path: Path) -> None:
    log = journal_log(str(tmp_path / "socket")).bind(job="UPID:pve:1:")
    log.warning("window-refused", message="guest 101 is refused", vmid=101, admitted=False, names=["a", "b"])
    assert event_of(journal, "window-refused") == {
        "MESSAGE": "guest 101 is refused",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "pvehook",
        "PVEHOOK_EVENT": "window-refused",
        "PVEHOOK_JOB": "UPID:pve:1:",
        "PVEHOOK_VMID": "101",
        "PVEHOOK_ADMITTED": "no",
        "PVEHOOK_NAMES": "a; b",
    }


def test_absent_is_left_out_and_zero_and_empty_are_not(journal: JournalReceiver, tmp_path: Path) -> None:
    journal_log(str(tmp_path / "socket")).info("x", message="m", absent=None, zero=0, empty="")
    event = event_of(journal, "x")
    assert "PVEHOOK_ABSENT" not in event
    assert event["PVEHOOK_ZERO"] == "0"
    assert event["PVEHOOK_EMPTY"] == ""


@pytest.mark.parametrize(
    ("level", "number"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")]
)
def test_levels_are_syslogs_numbers(journal: JournalReceiver, tmp_path: Path, level: str, number: str) -> None:
    getattr(journal_log(str(tmp_path / "socket")), level)("x", message="m")
    assert event_of(journal, "x")["PRIORITY"] == number


def test_what_others_named_cannot_forge_a_line_or_a_field(journal: JournalReceiver, tmp_path: Path) -> None:
    evil = "web\nPRIORITY=0\x1b[2J\u202e\udcff"
    journal_log(str(tmp_path / "socket")).info("x", message=evil, guest=evil)
    event = event_of(journal, "x")
    assert event["PRIORITY"] == "6"
    for text in (event["MESSAGE"], event["PVEHOOK_GUEST"]):
        assert text == "web\\nPRIORITY=0\\x1b[2J\\u202e\\udcff"


def test_a_value_of_several_lines_arrives_whole(journal: JournalReceiver, tmp_path: Path) -> None:
    """The protocol's second form. Our own values have no line feeds left, the encoder does not rely on it."""
    fields = {"MESSAGE": "first\nsecond\n", "PVEHOOK_EVENT": "lines", "PVEHOOK_NOTE": "a=b", "PVEHOOK_NONE": ""}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(encode_fields(fields), str(tmp_path / "socket"))
    assert event_of(journal, "lines") == fields


def test_a_value_without_end_is_cut(journal: JournalReceiver, tmp_path: Path) -> None:
    journal_log(str(tmp_path / "socket")).info("x", message="m" * 1_000_000, note="n" * 1_000_000)
    event = event_of(journal, "x")
    assert 1000 < len(event["MESSAGE"]) < 10_000
    assert 1000 < len(event["PVEHOOK_NOTE"]) < 10_000


def test_without_a_journal_an_event_is_a_line_with_its_priority(tmp_path: Path, stderr: TextIO) -> None:
    journal_log(str(tmp_path / "none"), stderr).warning("window-refused", message="guest 101 is refused", vmid=101)
    assert lines_of(stderr) == ["<4>pvehook: guest 101 is refused [window-refused vmid=101]"]


def test_without_a_journal_nobody_elses_terminal_is_changed(tmp_path: Path) -> None:
    """O_NONBLOCK belongs to the open file: set on an administrator's terminal it would outlive `pvehook allow`."""
    shell_s, ours = os.openpty()
    with os.fdopen(ours, "w", encoding="utf-8") as terminal:
        journal_log(str(tmp_path / "none"), terminal).info("x", message="m")
        assert os.get_blocking(terminal.fileno())
        assert b"<6>pvehook: m [x]" in os.read(shell_s, 1000)
    os.close(shell_s)


def test_a_journal_that_comes_later_is_found(tmp_path: Path, stderr: TextIO) -> None:
    log = journal_log(str(tmp_path / "socket"), stderr)
    log.info("early", message="m")
    with JournalReceiver(str(tmp_path / "socket")) as journal:
        log.info("late", message="m")
        event_of(journal, "late")
    with JournalReceiver(str(tmp_path / "socket")) as journal:  # journald was restarted
        log.info("later", message="m")
        event_of(journal, "later")
    assert lines_of(stderr) == ["<6>pvehook: m [early]"]


def test_a_journal_that_does_not_read_is_not_waited_for(
    full_journal: socket.socket, tmp_path: Path, stderr: TextIO
) -> None:
    log = journal_log(str(tmp_path / "full"), stderr)
    log.info("x", message="while it was full")
    assert lines_of(stderr) == ["<6>pvehook: while it was full [x]"]
    assert drained(full_journal) == []
    log.info("y", message="afterwards")
    (event,) = drained(full_journal)
    assert event["PVEHOOK_EVENT"] == "y"
    assert "PVEHOOK_EVENTS_LOST_BEFORE" not in event  # stderr had it


def test_what_neither_takes_is_counted_and_told_with_the_next_event(
    full_journal: socket.socket, tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    until_full(lambda: os.write(write, b"x" * 4096))
    os.set_blocking(write, True)
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w", encoding="utf-8") as full_stderr:
        log = journal_log(str(tmp_path / "full"), full_stderr)
        for number in range(3):
            log.info("lost", message=f"lost {number}")
        drained(full_journal)
        log.info("found", message="found")
        (event,) = drained(full_journal)
        assert event["PVEHOOK_EVENTS_LOST_BEFORE"] == "3"
        log.info("again", message="again")
        (event,) = drained(full_journal)
        assert "PVEHOOK_EVENTS_LOST_BEFORE" not in event
        full_stderr.close()
        # What was counted as lost must not come after all, in pieces, when stderr is read again.
        assert b"lost" not in reader.read()


def test_a_stderr_that_is_closed_is_no_fault(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as closed:
        pass
    log = journal_log(str(tmp_path / "socket"), closed)
    log.info("x", message="m")
    with JournalReceiver(str(tmp_path / "socket")) as journal:
        log.info("y", message="m")
        assert event_of(journal, "y")["PVEHOOK_EVENTS_LOST_BEFORE"] == "1"
