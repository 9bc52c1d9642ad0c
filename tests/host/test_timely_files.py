"""Files that hang, as /etc/pve does on a node in trouble. A FIFO without a writer hangs in open()."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.guest_config import parse_vm
from pvehook.contract.section_config import parse_sections
from pvehook.contract.vzdump_config import parse_vzdump_config
from pvehook.errors import NodeError
from pvehook.host.timely_files import FILE_LIMIT_BYTES, TimelyReader

SOON_S = 0.05
"""A deadline that is meant to pass."""

LATE_S = 60.0
"""A deadline that would make the tests hang, were it waited for."""


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    yield path
    let_go(path)


def let_go(fifo: Path) -> None:
    """Ends what hangs on it: the reader sees an empty file. With nobody there it does nothing."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        pass


def test_a_file_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("grüße\n", encoding="utf-8")
    reader = TimelyReader()
    assert reader.text(str(tmp_path / "file"), LATE_S) == "grüße\n"
    assert reader.text(str(tmp_path / "none"), LATE_S) is None


def test_an_empty_file_is_not_an_absent_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert TimelyReader().text(str(tmp_path / "file"), LATE_S) == ""


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    reader = TimelyReader()
    (tmp_path / "long").write_bytes(b"x" * (FILE_LIMIT_BYTES + 1))
    for name in ("long", "."):
        with pytest.raises(NodeError, match="cannot be read"):
            reader.text(str(tmp_path / name), LATE_S)
    (tmp_path / "long").write_bytes(b"x" * FILE_LIMIT_BYTES)
    assert len(reader.text(str(tmp_path / "long"), LATE_S) or "") == FILE_LIMIT_BYTES


def test_a_file_that_hangs_is_given_up_in_time_and_named(fifo: Path) -> None:
    with pytest.raises(NodeError, match=rf"{fifo} did not answer within 0\.05 s"):
        TimelyReader().text(str(fifo), SOON_S)


def test_while_one_hangs_every_other_question_fails_at_once(fifo: Path, tmp_path: Path) -> None:
    reader = TimelyReader()
    with pytest.raises(NodeError):
        reader.text(str(fifo), SOON_S)
    before = threading.active_count()
    for _ in range(100):
        with pytest.raises(NodeError, match=f"was not asked: {fifo} still does not answer"):
            reader.text(str(tmp_path / "other"), LATE_S)
    assert threading.active_count() == before  # nor do hanging threads pile up


def test_who_waits_behind_a_file_that_hangs_is_told_its_name_and_not_his_own(fifo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reader = TimelyReader()
    asked = threading.Event()

    def hang() -> None:
        asked.set()
        os.close(os.open(fifo, os.O_RDONLY))

    first = threading.Thread(target=reader.within, args=(LATE_S, "/etc/pve/user.cfg", hang))
    first.start()
    assert asked.wait(LATE_S)
    with pytest.raises(NodeError, match=r"file was not asked within 0\.05 s: /etc/pve/user\.cfg does not answer"):
        reader.text(str(tmp_path / "file"), SOON_S)
    while first.is_alive():
        let_go(fifo)


def test_when_the_file_system_is_back_it_is_asked_again(fifo: Path, tmp_path: Path) -> None:
    reader = TimelyReader()
    (tmp_path / "other").write_text("back")
    release = threading.Event()
    with pytest.raises(NodeError, match="the file system did not answer"):
        reader.within(SOON_S, "the file system", lambda: release.wait(LATE_S))
    release.set()
    give_up_s = time.monotonic() + LATE_S
    while time.monotonic() < give_up_s:  # its thread needs a moment to see it
        try:
            assert reader.text(str(tmp_path / "other"), LATE_S) == "back"
            return
        except NodeError:
            continue
    pytest.fail("it was never asked again")


def test_an_error_is_the_askers(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("of the question")

    reader = TimelyReader()
    with pytest.raises(KeyError, match="of the question"):
        reader.within(LATE_S, "it", fail)
    assert reader.within(LATE_S, "it", lambda: 7) == 7  # and the thread lives on


@pytest.mark.parametrize("name", ["101.conf", "jobs.cfg", "vzdump.conf"])
def test_a_byte_that_is_no_utf_8_costs_nothing_but_itself(tmp_path: Path, name: str) -> None:
    """ISO 8859-2 in a comment, as Proxmox takes it: the rest of the file counts."""
    text = {
        "101.conf": b"#p\xf3\xb3noc\nname: a\nagent: 1\nscsi0: local-lvm:vm-101-disk-0,size=8G\n",
        "jobs.cfg": b"vzdump: nightly\n\tcomment p\xf3\xb3noc\n\tenabled 1\n\tvmid 101\n",
        "vzdump.conf": b"# kopia: p\xf3\xb3noc\nscript: /x/p\xf3\xb3noc\nionice: 8\n",
    }[name]
    (tmp_path / name).write_bytes(text)
    read = TimelyReader().text(str(tmp_path / name), 5.0)
    assert read is not None
    assert os.fsencode(read) == text
    if name == "101.conf":
        assert parse_vm(read).agent == "1"
    elif name == "jobs.cfg":
        assert parse_sections(read)[0].properties["vmid"] == "101"
    else:
        assert os.fsencode(parse_vzdump_config(read)["script"]) == b"/x/p\xf3\xb3noc"


def test_without_a_thread_nothing_is_read_and_nothing_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    reader = TimelyReader()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        with pytest.raises(NodeError, match="can't start new thread"):
            reader.text(str(tmp_path / "none"), LATE_S)
    assert reader.text(str(tmp_path / "none"), LATE_S) is None
