"""Whoever reads a file sees the old text or the new one, whatever happens to the writer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pvehook.host.regular_file import read_regular_file, replace_file


def test_a_file_is_made_and_replaced_with_nothing_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    replace_file(str(path), "one")
    assert path.read_text() == "one"
    replace_file(str(path), "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    assert os.listdir(path.parent) == ["file"]


def test_the_directory_it_makes_is_its_owners_alone(tmp_path: Path) -> None:
    replace_file(str(tmp_path / "a" / "file"), "")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_who_has_the_old_file_open_reads_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as old:
        replace_file(str(path), "new")
        assert old.read() == "old"
    assert path.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    # A real full disk in small: the kernel stops the process's files at 4 KiB.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from pvehook.host.regular_file import replace_file\n"
        "try: replace_file(sys.argv[1], 'n' * 100_000)\n"
        "except OSError as error: print(error.strerror)"
    )
    top = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=top, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_text_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash of the node leaves an empty file under the right name."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        done.append("fsync")
        fsync(fd)

    def noted_replace(new: str, old: str) -> None:
        done.append("replace")
        replace(new, old)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    replace_file(str(tmp_path / "file"), "text")
    assert done == ["fsync", "replace"]


def test_what_a_writer_that_was_killed_left_goes_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    stays = {"other.new", f"file.{os.getpid()}.1.new", f"{ended.pid}.new", f"file.{ended.pid}.1.new.txt"}
    for name in {*stays, f"file.{ended.pid}.1.new", f"another.{ended.pid}.140001.new"}:
        (tmp_path / name).write_text("half a te")
    replace_file(str(tmp_path / "file"), "text")
    assert set(os.listdir(tmp_path)) == {"file", *stays}


def test_a_directory_in_the_way_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(str(tmp_path / "file"), "text")
    assert os.listdir(tmp_path) == ["file"]


def test_many_writers_and_readers_never_meet_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = {letter: letter * 50_000 for letter in "abcd"}
    path.write_text(texts["a"])
    seen: set[str] = set()

    def write(text: str) -> None:
        for _ in range(25):
            replace_file(str(path), text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts.values()]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    seen.add(path.read_text())
    assert seen <= set(texts.values())
    assert os.listdir(tmp_path) == ["file"]


def test_only_a_regular_file_is_read_and_not_more_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular_file(str(tmp_path / "file"), 2) == b"ab"
    os.mkfifo(tmp_path / "fifo")
    for name in (str(tmp_path / "fifo"), "/dev/zero", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(OSError, match=r"regular|directory|No such"):
            read_regular_file(name, 10)
