"""One connection: its deadline, its limits, and what it says when nobody is there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.deadline import Deadline
from pvehook.errors import BadReply, Busy, TimedOut, Unreachable
from pvehook.guest.sockets import DEPTH_LIMIT, Connection, connect, fitting_address, parse_document
from tests.guest.hostile import Script, peer

SHORT_S = 0.1

Talk = Callable[[Script], Connection]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    """Connects to a peer that follows the script."""
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> Connection:
            return stack.enter_context(connect(stack.enter_context(peer(str(tmp_path), script))))

        yield start


def test_no_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"101\.qga.*No such file"):
        connect(str(tmp_path / "101.qga"))


def test_no_directory_is_unreachable_also_by_the_long_way(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="No such file"):
        connect(str(tmp_path / ("x" * 120) / "101.qga"))


def test_a_socket_that_qemu_left_behind_is_unreachable(tmp_path: Path) -> None:
    path = str(tmp_path / "101.qga")
    with socket.socket(socket.AF_UNIX) as left_behind, fitting_address(path) as address:
        left_behind.bind(address)
    with pytest.raises(Unreachable, match="refused"):
        connect(path)


def test_a_full_queue_is_busy(tmp_path: Path) -> None:
    path = str(tmp_path / "101.qga")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        with fitting_address(path) as address:
            listener.bind(address)
        listener.listen(1)
        for _ in range(2):  # unix(7) lets one more wait than was asked for
            stack.enter_context(connect(path))
        with pytest.raises(Busy, match=r"101\.qga"):
            connect(path)


def test_a_path_too_long_for_a_socket_address_can_be_bound_and_reached(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    path = str(directory / "101.qga")
    with socket.socket(socket.AF_UNIX) as listener:
        with fitting_address(path) as address:
            listener.bind(address)
        listener.listen(1)
        with connect(path):
            served, _ = listener.accept()
            served.close()


def test_a_peer_that_never_answers_times_out(talk: Talk) -> None:
    connection = talk(lambda client: None)
    with pytest.raises(TimedOut, match=r"does not answer within 0\.1 s"):
        connection.read_line(Deadline.after(SHORT_S))


def test_a_byte_now_and_then_does_not_prolong_the_deadline(talk: Talk) -> None:
    pause = threading.Event()

    def drip(client: socket.socket) -> None:
        while True:
            client.sendall(b"x")
            pause.wait(0.01)

    connection = talk(drip)
    with pytest.raises(TimedOut, match="does not finish"):
        connection.read_line(Deadline.after(SHORT_S))


def test_nothing_is_sent_after_the_deadline(talk: Talk) -> None:
    connection = talk(lambda client: client.sendall(client.recv(100)))
    with pytest.raises(TimedOut):
        connection.send(b"too late\n", Deadline.after(0))
    with pytest.raises(Unreachable, match="0 bytes"):
        connection.read_line(Deadline.after(5))


def test_a_peer_that_reads_nothing_times_out_and_gets_no_second_command(talk: Talk) -> None:
    connection = talk(lambda client: None)
    with pytest.raises(TimedOut, match="does not take"):
        connection.send(bytes(8 * 1024 * 1024), Deadline.after(SHORT_S))
    with pytest.raises(Unreachable):
        connection.send(b"would become part of the first\n", Deadline.after(SHORT_S))


def test_a_peer_that_hangs_up_is_unreachable(talk: Talk) -> None:
    def hang_up(client: socket.socket) -> None:
        client.sendall(b"half")
        client.close()

    connection = talk(hang_up)
    with pytest.raises(Unreachable, match="hung up, 4 bytes"):
        connection.read_line(Deadline.after(5))


def test_a_gigabyte_is_cut_off_at_the_limit(talk: Talk) -> None:
    sent_bytes = 0

    def flood(client: socket.socket) -> None:
        nonlocal sent_bytes
        for _ in range(1024 * 16):
            sent_bytes += client.send(b"x" * 65536)

    connection = talk(flood)
    with pytest.raises(BadReply, match="longer than 1048576 bytes"):
        connection.read_line(Deadline.after(30))
    # The limit, what the kernel holds for a socket, and nothing like a gigabyte.
    assert 1024 * 1024 <= sent_bytes < 8 * 1024 * 1024


def test_a_flood_of_short_lines_counts_as_one_answer(talk: Talk) -> None:
    def flood(client: socket.socket) -> None:
        while True:
            client.sendall(b"{}\n" * 1000)

    connection = talk(flood)
    connection.allow(10_000)
    deadline = Deadline.after(30)
    with pytest.raises(BadReply, match="longer than 10000 bytes"):
        list(iter(lambda: connection.read_line(deadline), b"the end"))


def test_the_limit_starts_anew_with_each_exchange(talk: Talk) -> None:
    connection = talk(lambda client: client.sendall(b"12345678\n" * 3))
    for _ in range(3):
        connection.allow(9)
        assert connection.read_line(Deadline.after(5)) == b"12345678"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":['])
def test_deep_nesting_is_refused_before_it_is_followed(opening: bytes) -> None:
    with pytest.raises(BadReply, match=f"deep, more than {DEPTH_LIMIT}"):
        parse_document(opening * 100_000, source="101.qga")


def test_the_depth_limit_itself_is_still_read() -> None:
    nested: object = "innermost"
    for _ in range(DEPTH_LIMIT - 1):
        nested = [nested]
    document = {"return": nested}
    assert parse_document(json.dumps(document).encode(), source="101.qga") == document
    with pytest.raises(BadReply):
        parse_document(json.dumps({"return": [nested]}).encode(), source="101.qga")


def test_brackets_in_texts_are_not_depth() -> None:
    document = {"return": '\\"' + "[{" * 100}
    assert parse_document(json.dumps(document).encode(), source="101.qga") == document


@pytest.mark.parametrize("data", [b'{"a": "' + b'\\"' * 500_000, b'"' * 1_000_001, b"[]" * 500_000])
def test_a_megabyte_made_to_be_slow_is_refused_like_any_other(data: bytes) -> None:
    # A scan that goes back over what it has read would be at this for hours.
    with pytest.raises(BadReply, match="not JSON"):
        parse_document(data, source="101.qga")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"7", b'"text"', b"null", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1}{"b": 2}'),
        *(b'{"a": "\xff"}', b"\xed\xa0\x80", b'{"a": ' + b"9" * 5000 + b"}"),
    ],
)
def test_what_is_no_json_object_is_a_bad_reply(data: bytes) -> None:
    with pytest.raises(BadReply) as caught:
        parse_document(data, source="101.qga")
    assert str(caught.value).isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_object_or_a_bad_reply_that_can_be_printed(data: bytes) -> None:
    try:
        said = repr(parse_document(data, source="101.qga"))
    except BadReply as error:
        said = str(error)
    assert said.isprintable()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=3))
def test_an_object_within_the_limits_comes_through_unchanged(document: dict[str, object]) -> None:
    for ascii_only in (True, False):
        text = json.dumps(document, ensure_ascii=ascii_only)
        assert parse_document(text.encode("utf-8"), source="101.qga") == document


def test_connecting_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("101.qga", "x" * 120 + "/101.qga"):
        with pytest.raises(Unreachable):
            connect(str(tmp_path / name))
    assert sorted(os.listdir("/proc/self/fd")) == before
