"""What every test must leave as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.host.ioprio import read_all_threads
from pvehook.host.node import Node
from tests.node_under_test import NodeUnderTest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/scenarios: pytest asks only the first conftest.py for options."""
    parser.addoption(
        "--update-golden", action="store_true", help="tests/scenarios: write down what the nights show now"
    )


@pytest.fixture(autouse=True)
def own_priority_stays() -> Iterator[None]:
    """A test that runs the hook itself would be taken for vzdump's worker and set to idle, for all tests after it."""
    before = read_all_threads(Node("/"), os.getpid())[os.getpid()]
    yield
    assert read_all_threads(Node("/"), os.getpid())[os.getpid()] == before


@pytest.fixture
def node_without_daemon() -> Iterator[NodeUnderTest]:
    # Short: a unix socket's path has 108 bytes, and pytest's own directories take most of them.
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    under_test = NodeUnderTest(root)
    with under_test.journal:
        try:
            yield under_test
        finally:
            under_test.stop()
    shutil.rmtree(root)


@pytest.fixture
def node(node_without_daemon: NodeUnderTest) -> NodeUnderTest:
    node_without_daemon.start_daemon()
    return node_without_daemon
