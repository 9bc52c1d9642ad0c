"""The rehearsal's journal understands what journald understands, and hides no mistake."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path

import pytest

from pvehook.rehearsal.journal_receiver import JournalReceiver, parse_event

TWO_LINES = b"two\nlines = really"
EVENT = b"MESSAGE=done\nPVEHOOK_NOTE\n" + struct.pack("<Q", len(TWO_LINES)) + TWO_LINES + b"\nPRIORITY=6\n"
FIELDS = {"MESSAGE": "done", "PVEHOOK_NOTE": "two\nlines = really", "PRIORITY": "6"}


def test_both_forms_of_a_field() -> None:
    assert parse_event(EVENT) == FIELDS


@pytest.mark.parametrize(
    "broken",
    [
        b"MESSAGE=done",
        b"MESSAGE\nabc",
        b"MESSAGE\n" + struct.pack("<Q", 9) + b"short\n",
        b"message=lower case\n",
        b"=no name\n",
    ],
)
def test_what_journald_would_drop_is_an_error(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"line feed|length|as long|name of a field"):
        parse_event(broken)


def test_a_broken_event_is_raised_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with (
        pytest.raises(ValueError, match="no line feed after"),
        JournalReceiver(path),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        client.sendto(b"MESSAGE", path)


def test_a_datagram_and_a_file_are_received(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "socket")
    large = os.memfd_create("event")
    os.write(large, b"MESSAGE=large\n")
    with JournalReceiver(path, now_s=lambda: 17.0) as journal:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(EVENT, path)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [large]))]
            client.sendmsg([b""], rights, 0, path)
        assert journal.wait_for(lambda event: event["MESSAGE"] == "done", "done") == FIELDS
        journal.wait_for(lambda event: event["MESSAGE"] == "large", "large")
        assert [event.at_s for event in journal.events] == [17.0, 17.0]
    os.close(large)
    assert not os.path.exists(path)
