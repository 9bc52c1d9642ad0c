"""Pressure of the node and of a guest: zero, absent and broken are told apart; a VM's disks are never judged by it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.contract.pressure import RESOURCES, PressureTotals
from pvehook.host import pressure
from pvehook.host.node import Node
from pvehook.host.pressure import guest_pressure, host_pressure, recent_io_share, recent_memory_share

TEXT = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"
)  # fmt: skip


def write(node: Node, path: str, text: str) -> None:
    file = Path(node.path(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose VM 101 and container 102 run."""
    node = Node(str(tmp_path))
    cgroups = ("/sys/fs/cgroup/qemu.slice/101.scope/{}.pressure", "/sys/fs/cgroup/lxc/102/{}.pressure")
    for path in ("/proc/pressure/{}", *cgroups):
        for number, resource in enumerate(RESOURCES):
            write(node, path.format(resource), TEXT.format(some=number * 1000 + 500, full=number * 1000))
    return node


def test_the_node(node: Node) -> None:
    assert host_pressure(node) == {
        "cpu": PressureTotals(500, 0),
        "io": PressureTotals(1500, 1000),
        "memory": PressureTotals(2500, 2000),
    }


def test_a_container(node: Node) -> None:
    assert guest_pressure(node, 102, "lxc") == host_pressure(node)


@pytest.mark.parametrize("vmtype", ["qemu", None])
def test_a_vms_disks_are_not_judged_by_its_cgroup(node: Node, vmtype: str | None) -> None:
    found = guest_pressure(node, 101, vmtype)
    assert found["io"] == Absent("a VM's cgroup does not see what QEMU waits for its disks")
    assert found["cpu"] == PressureTotals(500, 0)
    assert found["memory"] == PressureTotals(2500, 2000)


def test_a_guest_that_does_not_run_is_absent(node: Node) -> None:
    for each in guest_pressure(node, 103, "qemu").values():
        assert each == Absent("guest 103 has no cgroup /sys/fs/cgroup/qemu.slice/103.scope: it does not run")


def test_a_kernel_without_pressure_is_absent(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    for each in host_pressure(Node(str(tmp_path))).values():
        assert isinstance(each, Absent)
        assert "psi=1" in each.why


def test_a_cgroup_without_pressure_is_absent(node: Node) -> None:
    for resource in RESOURCES:
        os.unlink(node.path(f"/sys/fs/cgroup/lxc/102/{resource}.pressure"))
    for each in guest_pressure(node, 102, "lxc").values():
        assert isinstance(each, Absent)
        assert "No such file" in each.why


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENODEV])
def test_what_a_kernel_says_that_has_it_switched_off_is_absent(
    node: Node, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No file of a tree answers so."""

    def refuse(*_: object) -> io.BytesIO:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pressure, "open", refuse, raising=False)
    for each in host_pressure(node).values():
        assert isinstance(each, Absent)
        assert os.strerror(number) in each.why


@pytest.mark.parametrize(
    "text", ["", "some total=soon\n", "full total=1\n", "some total=-1\n", "\xff" * 5000]
)
def test_what_is_no_pressure_is_broken(node: Node, text: str) -> None:
    write(node, "/proc/pressure/io", text)
    found = host_pressure(node)
    assert isinstance(found["io"], Broken)
    assert found["cpu"] == PressureTotals(500, 0)


def test_what_cannot_be_read_is_broken(node: Node) -> None:
    os.unlink(node.path("/proc/pressure/io"))
    os.mkdir(node.path("/proc/pressure/io"))
    assert host_pressure(node)["io"] == Broken(f"{node.path('/proc/pressure/io')} cannot be read: Is a directory")


# The kernel of this machine


def kernels_own(path: str) -> PressureTotals:
    some_us, full_us = re.findall(r"^(?:some|full) .* total=(\d+)$", Path(path).read_text(), re.MULTILINE)
    return PressureTotals(int(some_us), int(full_us))


@pytest.mark.skipif(not os.path.isdir("/proc/pressure"), reason="this kernel keeps no pressure information")
def test_this_machine() -> None:
    for resource in RESOURCES:
        before = kernels_own(f"/proc/pressure/{resource}")
        found = host_pressure(Node())[resource]
        after = kernels_own(f"/proc/pressure/{resource}")
        assert isinstance(found, PressureTotals)
        assert before.some_us <= found.some_us <= after.some_us
        assert before.full_us <= found.full_us <= after.full_us


@contextlib.contextmanager
def cgroup_of_its_own() -> Iterator[Path]:
    """An empty cgroup of this machine's."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    try:
        directory = Path(mounts[0][4], f"pvehook-test-{os.getpid()}")
        directory.mkdir()
    except (IndexError, OSError) as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if not (directory / "cgroup.pressure").exists():
            pytest.skip("this kernel's cgroups keep no pressure information, or it cannot be switched off (before 6.1)")
        yield directory
    finally:
        directory.rmdir()


def test_a_real_cgroup_tells_zero_and_switched_off_it_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/lxc").mkdir(parents=True)
    node = Node(str(tmp_path))
    with cgroup_of_its_own() as cgroup:
        (tmp_path / "sys/fs/cgroup/lxc/102").symlink_to(cgroup)
        assert guest_pressure(node, 102, "lxc") == dict.fromkeys(RESOURCES, PressureTotals(0, 0))
        (cgroup / "cgroup.pressure").write_text("0")
        assert {type(each) for each in guest_pressure(node, 102, "lxc").values()} == {Absent}


def test_the_share_of_the_last_minutes(node: Node) -> None:
    text = TEXT.replace("avg300=0.00", "avg300=12.50", 1).replace("avg300=0.00", "avg300=3.00")
    write(node, "/sys/fs/cgroup/lxc/102/io.pressure", text.format(some=1, full=1))
    assert recent_io_share(node, 102) == (0.125, 0.03)
    assert recent_io_share(node, 999) == (0.0, 0.0)
    assert recent_memory_share(node) == (0.0, 0.0)
    write(node, "/proc/pressure/memory", text.format(some=1, full=1))
    assert recent_memory_share(node) == (0.125, 0.03)
