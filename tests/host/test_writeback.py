"""Writing back what another process writes: on a real ext4, seen through the kernel's own account of its cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pvehook.host.writeback import GrowingFile, NotTheFile
from tests.host.loop_disk import MIB, Cached, cached, ext4, tmpfs


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path / "image", tmp_path / "mounted", 64) as mount_point:
        yield mount_point


def written(path: Path, size: int) -> bytes:
    """Some bytes, just written and still dirty."""
    data = os.urandom(size)
    path.write_bytes(data)
    return data


def test_one_range_is_written_back_and_dropped_and_the_rest_left_dirty(disk: Path) -> None:
    data = written(disk / "dump.dat", 8 * MIB)
    with closing(GrowingFile(str(disk), "dump.dat")) as file:
        file.start_writeback(0, 4 * MIB)
        file.wait_for_writeback(0, 4 * MIB)
        assert cached(disk / "dump.dat", 0, 4 * MIB) == Cached(4 * MIB, 0, 0)
        file.drop_from_cache(0, 4 * MIB)
        assert cached(disk / "dump.dat", 0, 4 * MIB).in_cache == 0
        assert cached(disk / "dump.dat", 4 * MIB).dirty == 4 * MIB
    assert hashlib.sha256((disk / "dump.dat").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_what_is_dirty_is_not_dropped(disk: Path) -> None:
    written(disk / "dump.dat", MIB)
    with closing(GrowingFile(str(disk), "dump.dat")) as file:
        file.wait_for_writeback(0, MIB)  # none was begun
        assert cached(disk / "dump.dat").in_cache == MIB


def test_it_is_open_for_reading_only(disk: Path) -> None:
    written(disk / "dump.dat", MIB)
    before = set(os.listdir("/proc/self/fd"))
    with closing(GrowingFile(str(disk), "dump.dat")):
        for fd in map(int, set(os.listdir("/proc/self/fd")) - before):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
    assert (disk / "dump.dat").stat().st_size == MIB


def test_all_is_closed_again_after_use_and_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "dump.dat").touch()
    (tmp_path / "link.dat").symlink_to("dump.dat")
    before = sorted(os.listdir("/proc/self/fd"))
    with closing(GrowingFile(str(tmp_path), "dump.dat")) as file:
        file.close()
    with pytest.raises(NotTheFile):
        GrowingFile(str(tmp_path), "link.dat")
    with pytest.raises(NotTheFile):
        GrowingFile(str(tmp_path.parent), tmp_path.name)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_its_growth_its_new_name_and_its_end_are_seen(tmp_path: Path) -> None:
    dump = tmp_path / "dump.dat"
    dump.touch()
    with closing(GrowingFile(str(tmp_path), "dump.dat")) as file:
        assert (file.size_bytes(), file.place()) == (0, "here")
        dump.write_bytes(b"x" * 1000)
        assert (file.size_bytes(), file.place()) == (1000, "here")
        dump.rename(tmp_path / "dump.zst")
        assert (file.size_bytes(), file.place()) == (1000, "elsewhere")
        (tmp_path / "dump.dat").touch()  # the next backup's: another file of the same name
        assert file.place() == "elsewhere"
        (tmp_path / "dump.zst").unlink()
        assert file.place() == "deleted"


def test_a_file_that_is_not_there_yet_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GrowingFile(str(tmp_path), "dump.dat")
    with pytest.raises(FileNotFoundError):
        GrowingFile(str(tmp_path / "nowhere"), "dump.dat")


def test_a_link_is_refused_and_a_link_to_the_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "dump.dat").touch()
    (tmp_path / "dump").symlink_to("real")
    with closing(GrowingFile(str(tmp_path / "dump"), "dump.dat")) as file:
        assert file.place() == "here"
    (tmp_path / "real" / "link.dat").symlink_to("dump.dat")
    with pytest.raises(NotTheFile, match=r"link\.dat is a symbolic link"):
        GrowingFile(str(tmp_path / "dump"), "link.dat")


def test_what_is_no_plain_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.dat")
    (tmp_path / "directory.dat").mkdir()
    for name in ("fifo.dat", "directory.dat"):
        with pytest.raises(NotTheFile, match="no plain file"):
            GrowingFile(str(tmp_path), name)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dump.dat").touch()
    os.chown(tmp_path / "dump.dat", 65534, 65534)
    with pytest.raises(NotTheFile, match="user 65534"):
        GrowingFile(str(tmp_path), "dump.dat")


def test_what_the_disk_could_not_take_is_an_error_and_the_writer_hears_of_it_too(tmp_path: Path) -> None:
    # The image is larger than the memory that it lies in: what is written beyond it, the disk refuses.
    with tmpfs(tmp_path / "memory", 8) as memory, ext4(memory / "image", tmp_path / "mounted", 64) as disk:
        dump = disk / "dump.dat"
        with dump.open("wb") as writer, closing(GrowingFile(str(disk), "dump.dat")) as file:
            writer.write(os.urandom(24 * MIB))
            writer.flush()
            file.start_writeback(0, 24 * MIB)
            with pytest.raises(OSError, match="No space left on device"):
                file.wait_for_writeback(0, 24 * MIB)
            # Each open file is told once: ours does not use up the writer's.
            with pytest.raises(OSError, match="No space left on device"):
                os.fsync(writer.fileno())


def test_a_file_system_without_writeback_is_no_error(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", 8) as memory:
        written(memory / "dump.dat", MIB)
        with closing(GrowingFile(str(memory), "dump.dat")) as file:
            file.start_writeback(0, MIB)
            file.wait_for_writeback(0, MIB)
            file.drop_from_cache(0, MIB)
        assert (memory / "dump.dat").stat().st_size == MIB


def test_the_writer_of_a_locked_file_is_not_disturbed(tmp_path: Path) -> None:
    with (tmp_path / "dump.dat").open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with closing(GrowingFile(str(tmp_path), "dump.dat")) as file:
            assert file.place() == "here"
