"""A real ext4 on a loop device, and the kernel's own account of what it caches of a file.

Needs root; a test that cannot have it is skipped, and says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

MIB = 1 << 20

_CACHESTAT = 451  # the same on every machine; since Linux 6.5
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_libc = ctypes.CDLL(None, use_errno=True)


class Cached(NamedTuple):
    """What the page cache holds of one file, in bytes. What is dirty or in writeback is part of `in_cache`."""

    in_cache: int
    dirty: int
    in_writeback: int


def cached(path: Path, offset: int = 0, length: int = 0) -> Cached:
    """Of a range; a length of 0 is up to the end. cachestat(2): the range goes in, five counts of pages come out."""
    file_range = (ctypes.c_uint64 * 2)(offset, length)
    counts = (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        if _libc.syscall(_CACHESTAT, file.fileno(), file_range, counts, 0) < 0:
            number = ctypes.get_errno()
            if number == errno.ENOSYS:
                pytest.skip("this kernel does not tell what it caches of a file (cachestat, Linux 6.5)")
            raise OSError(number, os.strerror(number))
    return Cached(*(count * _PAGE_BYTES for count in counts[:3]))


@contextlib.contextmanager
def ext4(image: Path, mount_point: Path, size_mib: int) -> Iterator[Path]:
    """A new ext4 of this size, mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    with image.open("wb") as file:
        file.truncate(size_mib * MIB)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    with mounted(str(image), mount_point, "-o", "loop"):
        yield mount_point


@contextlib.contextmanager
def tmpfs(mount_point: Path, size_mib: int) -> Iterator[Path]:
    """Memory that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    with mounted("tmpfs", mount_point, "-t", "tmpfs", "-o", f"size={size_mib}m"):
        yield mount_point


@contextlib.contextmanager
def mounted(source: str, mount_point: Path, *options: str) -> Iterator[None]:
    mount_point.mkdir(parents=True)
    _run("mount", *options, source, str(mount_point))
    try:
        yield
    finally:
        # Lazily: a test that failed may have left somebody in there.
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"{argv[0]} is not installed")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(argv)}: {done.stderr.strip()}")
