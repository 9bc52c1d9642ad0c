"""Debian's versions, held against dpkg itself where there is one."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest

from pvehook.contract.debian_version import VersionRange, compare, parse_range, version_of_kernel

IN_ORDER = (
    "0~",
    "0",
    "1.0~~",
    "1.0~~a",
    "1.0~",
    "1.0~rc7+1",
    "1.0",
    "1.0-1~bpo12+1",
    "1.0-1",
    "1.0-1+deb13u1",
    "1.0-1.1",
    "1.0-2",
    "1.0-10",
    "1.0a",
    "1.0b",
    "1.0+git",
    "1.0.1",
    "1.2-3-1",
    "1.10",
    "6.8.12-43",
    "6.17",
    "6.17.0-1",
    "6.17.4-2",
    "7.0.0-1~rc7+1",
    "7.0.0-1",
    "10.0.2-1~bpo12+1",
    "10.0.2-1",
    "1:0.1~",
    "1:0.1",
    "2:0",
)
"""The lowest first."""
SAME = (("1.0", "1.0-0"), ("1.0", "1.00"), ("1.0", "0:1.0"), ("1.a", "1.a0"), ("1.0-1", "1.0-01"))


def test_versions_are_in_debians_order() -> None:
    pairs = [(a, b) for a, b in itertools.combinations(IN_ORDER, 2) if (compare(a, b), compare(b, a)) != (-1, 1)]
    assert pairs == []


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_version_may_be_written_in_two_ways(one: str, other: str) -> None:
    assert (compare(one, other), compare(other, one)) == (0, 0)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg here")
def test_dpkg_compares_them_so_too() -> None:
    """In one shell: a process for each of the 435 pairs of versions takes a second."""
    pairs = [*((a, "lt", b) for a, b in itertools.combinations(IN_ORDER, 2)), *((a, "eq", b) for a, b in SAME)]
    script = "".join(f"dpkg --compare-versions {a!r} {how} {b!r} || echo {a} {how} {b}\n" for a, how, b in pairs)
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == []


@pytest.mark.parametrize("text", ["", "a:1", "1 2", ":1", "6.8/1", "1.0\n"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no version of Debian"):
        compare(text, "1")


def test_a_range_has_its_lower_bound_and_not_its_upper_one() -> None:
    affected = parse_range(">= 6.17, < 6.17.4-2")
    assert affected == VersionRange("6.17", "6.17.4-2")
    versions = ("6.14.11-5", "6.17", "6.17.4-1", "6.17.4-2~1", "6.17.4-2", "7.0.2-1")
    assert [each for each in versions if affected.includes(each)] == ["6.17", "6.17.4-1", "6.17.4-2~1"]


@pytest.mark.parametrize("text", [">= 6.17, < 6.17.4-2", ">= 11.0", "< 9.0.23"])
def test_a_range_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_range(text)) == text


def test_a_range_may_have_one_bound() -> None:
    assert parse_range("< 9.0.23").includes("8.4.10")
    assert parse_range(">= 11.0").includes("11.0.0-2")
    assert not parse_range(">= 11.0").includes("10.2.1-2")


@pytest.mark.parametrize("text", ["", "6.17", "> 6.17", "< 1, < 2", ">= 2, < 1", ">= 2, < 2", "< a b", ">= 1 < 2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no (version|range)"):
        parse_range(text)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.8.12-4-pve", "6.8.12-4"),
        ("6.14.11-9-bpo12-pve", "6.14.11-9"),
        ("6.12.57+deb13-amd64", None),
        ("6.8.0-88-generic", None),
        ("", None),
    ],
)
def test_a_kernel_of_proxmox_has_its_packages_version(release: str, version: str | None) -> None:
    assert version_of_kernel(release) == version
