"""What every test must leave as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pvehook.host.ioprio import read_all_threads
from pvehook.host.node import Node
from tests.node_under_test import NodeUnderTest

# Tests run side by side on a few cores, so how long an example takes says nothing about it.
settings.register_profile(
    "side-by-side", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("side-by-side")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/scenarios: pytest asks only the first conftest.py for options."""
    parser.addoption(
        "--update-golden", action="store_true", help="tests/scenarios, tests/doctor: write down what is shown now"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (pytest-xdist), tests that share a booted system or guest run on one, the rigs first."""
    for item in items:
        if item.get_closest_marker("rig") and isinstance(item, pytest.Function):
            item.add_marker(pytest.mark.xdist_group(_shared_by(item) or item.nodeid))
    items.sort(key=lambda item: item.get_closest_marker("rig") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """xdist adds the group to a test's name. By that name `--last-failed` does not find it again: scripts/test would
    take a failed test that it never repeated for one that passed. Its workers need the name as it is."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        report.nodeid = report.nodeid.partition("@tests/")[0]


def _shared_by(item: pytest.Function) -> str:
    """The fixtures that the test shares with others, each with where it is defined and its parameter."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    shared = [
        f"{fixtures[-1].baseid}:{name}:{parameters.get(name, '')}"
        for name, fixtures in item._fixtureinfo.name2fixturedefs.items()  # pytest has no public way to ask
        if fixtures[-1].baseid and fixtures[-1].scope in ("module", "session")
    ]
    return " ".join(sorted(shared))


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
