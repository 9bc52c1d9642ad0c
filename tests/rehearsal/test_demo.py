"""The demo's night: goes as it must, and reports whether it did."""

from __future__ import annotations

import io
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.rehearsal import demo


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for the night's tree, short enough for its sockets."""
    directory = Path(tempfile.mkdtemp(prefix="n"))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    shutil.rmtree(directory)


def processes_that_name(directory: Path) -> list[str]:
    """Command lines with this directory in them."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                cmdline = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in cmdline:
                found.append(repr(cmdline))
    return found


def children_of(pid: int) -> list[bytes]:
    """Command lines of the children; one that has just ended has an empty one."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    paths = [Path(f"/proc/{child}/cmdline") for child in pids]
    return [path.read_bytes() if path.exists() else b"" for path in paths]


def test_the_night_goes_as_it_must(tmp: Path) -> None:
    out = io.StringIO()
    assert demo.simulated_night(out) == 0, out.getvalue()
    text = out.getvalue()
    table = text.partition("the night in one table")[2].partition("checked")[0].splitlines()
    rows = {line[:14].strip(): line for line in table if line.startswith(("VM", "CT"))}
    assert list(rows) == ["VM 101 build", "CT 102 files", "VM 103 db", "VM 104 web"]
    assert [line.split()[3] for line in rows.values()] == ["ok", "ok", "ok", "refused"]
    assert "FAILED" not in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_is_left_of_it(tmp: Path) -> None:
    demo.simulated_night(io.StringIO())
    assert list(tmp.iterdir()) == []
    assert processes_that_name(tmp) == []


def test_a_night_that_is_ended_leaves_nothing(tmp: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pvehook.rehearsal.demo import simulated_night; "
    code += "simulated_night(sys.stdout)"
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen([sys.executable, "-c", code, str(root)], env={**os.environ, "TMPDIR": str(tmp)}) as process:
        ended = os.pidfd_open(process.pid)
        while not any(b"task UPID:" in cmdline for cmdline in children_of(process.pid)):
            assert select.select([ended], [], [], 0.02) == ([], [], []), "the night ended before its worker began"
        os.close(ended)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert list(tmp.iterdir()) == []
    assert processes_that_name(tmp) == []


def test_a_night_that_goes_otherwise_is_reported(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo.FILES["/etc/pvehook.yaml"].replace("next_guest: refuse", "next_guest: allow")
    monkeypatch.setitem(demo.FILES, "/etc/pvehook.yaml", config)
    out = io.StringIO()
    assert demo.simulated_night(out) == 1
    assert "FAILED  VM 104: refused in backup-start with one line" in out.getvalue()
    assert list(tmp.iterdir()) == []
    assert processes_that_name(tmp) == []
