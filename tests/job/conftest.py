"""A node in a directory, without and with its daemon."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job.node_under_test import NodeUnderTest


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
