"""scripts/test runs once more what failed beside other tests: it must find every one of them again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")

pytestmark = pytest.mark.long

REPO = Path(__file__).parents[1]

TESTS = """
import os, pytest

@pytest.fixture(scope="module", params=["trixie"])
def node(request):
    return request.param

@pytest.mark.rig
def test_that_shares_a_system(node):
    assert "FAIL" not in os.environ

@pytest.mark.rig
def test_beside_it(node):
    pass

def test_of_its_own():
    assert "FAIL" not in os.environ
"""


def printed(directory: Path, *arguments: str, **more: str) -> str:
    """The last line of pytest."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-o", "markers=rig", *arguments, "tests"]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**own, "PYTHONPATH": str(REPO), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


def test_what_failed_beside_others_is_found_again_whether_or_not_it_shares_a_system(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_some.py").write_text(TESTS)
    once_more = ("-n", "0", "--last-failed", "--last-failed-no-failures", "none")
    assert "2 failed, 1 passed" in printed(tmp_path, "-n", "2", "--dist", "loadgroup", FAIL="1")
    assert "2 failed" in printed(tmp_path, *once_more, FAIL="1")
    assert "2 passed" in printed(tmp_path, *once_more)
