"""The phase's deadline in the hook itself: it ends whatever hangs, and what was decided until then counts.

The hook under test is the installed one with some of its lines changed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.hooks.test_loading import zone_in_which_the_built_in_window_is
from tests.node_under_test import AS_WORKER, REPO, NodeUnderTest

HANGS = """
    import time
    while True:
        try:
            time.sleep(60)
        except Exception:
            pass
"""


def change(node: NodeUnderTest, module: str, *changes: tuple[str, str]) -> None:
    """Replaces one module of the node's program, which is a tree of links to the repository."""
    at = Path(node.hook).parent.parent / "pvehook"
    source = REPO / "pvehook"
    for part in Path(module).parts:
        if at.is_symlink():
            at.unlink()
            at.mkdir()
            for entry in source.iterdir():
                if entry.name != "__pycache__":
                    (at / entry.name).symlink_to(entry)
        at, source = at / part, source / part
    text = source.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    at.unlink()
    at.write_text(text)


def call(node: NodeUnderTest, phase: str, **env: str) -> tuple[int, str]:
    change(node, "hook_call.py", (f'    "{phase}": 10,\n', f'    "{phase}": 4,\n'))
    done = subprocess.run(
        [*AS_WORKER, node.hook, phase], env=env, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_what_hangs_after_the_verdict_keeps_no_chained_script_from_running(node_without_daemon: NodeUnderTest) -> None:
    """And no `except Exception` on the way swallows the deadline."""
    node = node_without_daemon
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",)), chain="/chained"))
    (node.root / "chained").write_text("#!/bin/sh\necho it ran\n")
    (node.root / "chained").chmod(0o755)
    head = "def _settle(node: Node, call: HookCall, config: Config) -> Iterator[str]:\n"
    change(node, "rescue/without_daemon.py", (head, head + HANGS))
    code, said = call(node, "job-start")
    assert code == 0
    assert "pvehook: job-start was given up after 4 s" in said
    assert said.endswith("it ran\n")


@pytest.mark.parametrize("is_open", [True, False])
def test_what_hangs_before_the_verdict_leaves_the_built_in_window(
    node_without_daemon: NodeUnderTest, is_open: bool
) -> None:
    store_config(node_without_daemon.node, Config(window=WindowConfig(open=())))
    head = "def _config(node: Node) -> tuple[Config, str]:\n"
    change(node_without_daemon, "rescue/without_daemon.py", (head, head + HANGS))
    code, said = call(node_without_daemon, "job-start", TZ=zone_in_which_the_built_in_window_is(is_open))
    assert code == (0 if is_open else 1)
    ends = "the backup goes on, in this phase without pvehook" if is_open else "the built-in window 02:00-05:00 decides"
    assert f"job-start was given up after 4 s; {ends}" in said


def test_what_hangs_where_no_window_is_asked_costs_no_backup(node_without_daemon: NodeUnderTest) -> None:
    head = "def _config(node: Node) -> tuple[Config, str]:\n"
    change(node_without_daemon, "rescue/without_daemon.py", (head, head + HANGS))
    code, said = call(node_without_daemon, "pre-stop", TZ=zone_in_which_the_built_in_window_is(open_now=False))
    assert code == 0
    assert said.endswith("pre-stop was given up after 4 s; the backup goes on, in this phase without pvehook\n")


@pytest.mark.parametrize("fault", ["raise OSError(24, 'Too many open files')", "raise MemoryError", "1 / 0"])
def test_a_fault_of_the_hook_itself_still_asks_the_window(node_without_daemon: NodeUnderTest, fault: str) -> None:
    store_config(node_without_daemon.node, Config(window=WindowConfig(open=())))
    line = '    marker = run_dir + "/not-taken-up"\n'
    change(node_without_daemon, "hook_call.py", (line, f"    {fault}\n{line}"))
    done = subprocess.run(
        [*AS_WORKER, node_without_daemon.hook, "job-init"], env={}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "fault in the hook" in done.stdout
