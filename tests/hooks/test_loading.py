"""How hooks/vzdump-hook finds and loads the rest of the program: whatever lies there in whatever state, the window is
asked as long as the source can be read, and nothing else fails a phase."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pvehook.contract.phases import PHASES, REFUSABLE_PHASES
from pvehook.host.node import INSTALLED_UNDER
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.node_under_test import AS_WORKER, REPO, NodeUnderTest

NODE_PYTHON = "/usr/bin/python3"


@pytest.fixture
def installed(node_without_daemon: NodeUnderTest) -> Path:
    """A copy of the program with its bytecode, as install.sh makes it; the window is closed."""
    program = node_without_daemon.root / INSTALLED_UNDER.lstrip("/")
    for part in ("hooks", "pvehook"):
        (program / part).unlink()
        shutil.copytree(REPO / part, program / part, ignore=shutil.ignore_patterns("__pycache__"))
    compile_all = ("-IS", "-m", "compileall", "-q", "--invalidation-mode", "checked-hash")
    subprocess.run([NODE_PYTHON, *compile_all, str(program / "pvehook")], check=True)
    store_config(node_without_daemon.node, Config(window=WindowConfig(open=())))
    return program


def call(script: Path | str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_WORKER, str(script), *argv],
        env={"LC_ALL": "C", **env}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def zone_in_which_the_built_in_window_is(open_now: bool) -> str:
    """02:00-05:00: `TZ` of a place where it is now past 03:00, or past 13:00."""
    west_of_utc_h = time.gmtime().tm_hour - (3 if open_now else 13)
    return f"HERE{west_of_utc_h}"


def assert_refuses(script: Path | str) -> None:
    done = call(script, "job-init")
    assert (done.returncode, done.stderr) == (1, "")
    assert "is refused: it is" in done.stdout


def bytecode_of(program: Path, module: str) -> Path:
    tag = subprocess.check_output([NODE_PYTHON, "-ISc", "import sys; print(sys.implementation.cache_tag)"], text=True)
    source = program / "pvehook" / module
    return source.parent / "__pycache__" / f"{source.stem}.{tag.strip()}.pyc"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])  # the header with the source's hash is whole


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def of_another_python(path: Path) -> None:
    path.write_bytes(b"\x00\x00\r\n" + path.read_bytes()[4:])


def make_stale(path: Path) -> None:
    other = path.with_name("other.py")
    other.write_text("raise SystemExit(7)\n")
    py_compile.compile(str(other), str(path), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


def be_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [Path.unlink, truncate, fill_with_zeros, of_another_python, make_stale, be_a_directory]


@pytest.mark.parametrize("module", ["__init__.py", "hook_call.py", "rescue/without_daemon.py", "settings.py"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bytecode_in_any_state_costs_time_only(installed: Path, module: str, damage: Callable[[Path], None]) -> None:
    damage(bytecode_of(installed, module))
    assert_refuses(installed / "hooks/vzdump-hook")


def test_the_installed_bytecode_is_what_is_loaded(installed: Path) -> None:
    """Else every phase compiles it anew, and nobody notices."""
    source = installed / "pvehook/hook_call.py"
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import pvehook.hook_call as m; print(m.__cached__)"
    cached = subprocess.check_output([NODE_PYTHON, "-ISc", code], text=True).strip()
    assert os.path.exists(cached)
    data = Path(cached).read_bytes()
    assert data[4:16] == b"\x03\0\0\0" + importlib.util.source_hash(source.read_bytes())


@pytest.mark.parametrize("kind", ["absolute", "relative", "file"])
def test_by_a_symbolic_link_it_finds_the_program_that_it_leads_to(
    node_without_daemon: NodeUnderTest, installed: Path, kind: str
) -> None:
    link = node_without_daemon.root / "link"
    if kind == "file":
        link.symlink_to(installed / "hooks/vzdump-hook")
        assert_refuses(link)
        return
    link.symlink_to(installed if kind == "absolute" else os.path.relpath(installed, link.parent))
    assert_refuses(link / "hooks/vzdump-hook")


@pytest.mark.parametrize("source", ["", "this is half an upgra", "raise OSError(5)", "\0", "main = None\n"])
def test_a_program_that_cannot_be_loaded_fails_nothing(installed: Path, source: str) -> None:
    (installed / "pvehook/hook_call.py").write_text(source)
    done = call(installed / "hooks/vzdump-hook", "job-init")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pvehook: the hook cannot run (")
    assert done.stdout.endswith("; the backup goes on without pvehook\n")


def test_a_program_that_is_gone_fails_nothing(installed: Path) -> None:
    shutil.rmtree(installed / "pvehook")
    done = call(installed / "hooks/vzdump-hook", "job-init")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the hook cannot run (ModuleNotFoundError(" in done.stdout


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("phase", REFUSABLE_PHASES)
def test_a_degraded_path_that_cannot_be_loaded_goes_by_the_built_in_window(
    installed: Path, phase: str, is_open: bool
) -> None:
    (installed / "pvehook/settings.py").write_text("this is half an upgra")
    done = call(installed / "hooks/vzdump-hook", phase, TZ=zone_in_which_the_built_in_window_is(is_open))
    assert (done.returncode, done.stderr) == (0 if is_open else 1, "")
    assert done.stdout.startswith("pvehook: the daemon does not answer (No such file or directory), and without it: Sy")
    ends = "; the backup goes on, in this phase without pvehook\n" if is_open else ": this is refused, as it is "
    assert ends in done.stdout


def test_a_degraded_path_that_cannot_be_loaded_fails_no_other_phase(installed: Path) -> None:
    (installed / "pvehook/settings.py").write_text("this is half an upgra")
    for phase in set(PHASES) - set(REFUSABLE_PHASES):
        done = call(installed / "hooks/vzdump-hook", phase, TZ=zone_in_which_the_built_in_window_is(open_now=False))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("; the backup goes on, in this phase without pvehook\n")


@pytest.mark.parametrize("is_open", [True, False])
def test_a_last_good_configuration_that_breaks_its_reader_leaves_the_built_in_window(
    installed: Path, is_open: bool
) -> None:
    """A fault of ours behind it: what can be foreseen is a ConfigError, and asks the built-in window too."""
    source = installed / "pvehook/rescue/last_good.py"
    source.write_text(source.read_text() + "\n\ndef stored_config(node):\n    raise KeyError('window')\n")
    done = call(installed / "hooks/vzdump-hook", "job-init", TZ=zone_in_which_the_built_in_window_is(is_open))
    assert (done.returncode, done.stderr) == (0 if is_open else 1, "")
    assert "and without it: KeyError('window')" in done.stdout
