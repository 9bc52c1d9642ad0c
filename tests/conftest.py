"""What every test must leave as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pvehook.host.ioprio import read_all_threads
from pvehook.host.node import Node


@pytest.fixture(autouse=True)
def own_priority_stays() -> Iterator[None]:
    """A test that rings the hook itself would be taken for vzdump's worker and put to idle, for all tests after it."""
    before = read_all_threads(Node("/"), os.getpid())[os.getpid()]
    yield
    assert read_all_threads(Node("/"), os.getpid())[os.getpid()] == before
