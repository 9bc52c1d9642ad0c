"""Exceptions from the window: in force until their end, then gone; what is no exception of ours lets nobody in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pvehook.host.node import Node
from pvehook.rescue import allowances
from pvehook.rescue.allowances import LONGEST_S
from pvehook.rules.admission import Allowance

NOW_S = 1_795_312_800.0
ONE = Allowance("a1", (101, 102), NOW_S + 60, "restore test", "anna")
GOOD = {"vmids": [101], "until_s": NOW_S + 60, "reason": "r", "who": "w"}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(str(tmp_path))


def names(node: Node) -> list[str]:
    return sorted(path.name for path in Path(allowances.path_of(node, "")).parent.iterdir())


def test_what_was_granted_is_in_force_until_its_end_and_then_gone(node: Node) -> None:
    allowances.grant(node, ONE)
    assert allowances.in_force(node, NOW_S) == [ONE]
    assert allowances.in_force(node, NOW_S + 59.9) == [ONE]
    assert names(node) == ["a1.json"]
    assert allowances.in_force(node, NOW_S + 60) == []
    assert names(node) == ["a1.json"]  # a question about another time, a rehearsal's say, ends nothing
    allowances.drop_expired(node, NOW_S + 59.9)
    assert names(node) == ["a1.json"]
    allowances.drop_expired(node, NOW_S + 60)
    assert names(node) == []


def test_only_its_owner_may_look_at_it(node: Node) -> None:
    allowances.grant(node, ONE)
    assert Path(allowances.path_of(node, "")).parent.stat().st_mode & 0o777 == 0o700


def test_without_any_there_are_none(node: Node) -> None:
    assert allowances.in_force(node, NOW_S) == []


def test_one_is_ended_early(node: Node) -> None:
    allowances.grant(node, ONE)
    allowances.grant(node, ONE._replace(id="b2"))
    assert allowances.revoke(node, "a1")
    assert [each.id for each in allowances.in_force(node, NOW_S)] == ["b2"]
    assert not allowances.revoke(node, "a1")


@pytest.mark.parametrize("identifier", ["", "../a1", "a1.json", "*", "/etc/passwd"])
def test_only_an_exceptions_own_name_ends_it(node: Node, identifier: str) -> None:
    allowances.grant(node, ONE)
    Path(allowances.path_of(node, "a1.json")).write_text(json.dumps(GOOD))
    assert not allowances.revoke(node, identifier)
    assert len(names(node)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "[" * 50_000,
        "\x00\xff",
        *(json.dumps({key: value for key, value in GOOD.items() if key != gone}) for gone in GOOD),
        json.dumps({**GOOD, "vmids": ["web"]}),
        json.dumps({**GOOD, "vmids": "101"}),
        json.dumps({**GOOD, "vmids": ""}),
        json.dumps({**GOOD, "vmids": {}}),
        json.dumps({**GOOD, "vmids": 0}),
        json.dumps({**GOOD, "vmids": [101.0]}),
        json.dumps({**GOOD, "vmids": None}),
        json.dumps({**GOOD, "vmids": [float("inf")]}),
        json.dumps({**GOOD, "until_s": "tomorrow"}),
        json.dumps({**GOOD, "until_s": float("nan")}),
        json.dumps({**GOOD, "until_s": float("inf")}),
        json.dumps({**GOOD, "until_s": NOW_S + LONGEST_S + 1}),
    ],
)
def test_what_pvehook_never_writes_is_no_exception(node: Node, text: str) -> None:
    allowances.grant(node, ONE)
    Path(allowances.path_of(node, "b2")).write_text(text, encoding="latin-1")
    assert allowances.in_force(node, NOW_S) == [ONE]


def test_other_files_there_are_left_alone(node: Node) -> None:
    allowances.grant(node, ONE)
    directory = Path(allowances.path_of(node, "")).parent
    for name in ("note", "a1.json.12.34.new", ".json.swp"):
        (directory / name).write_text(json.dumps(GOOD))
    assert allowances.in_force(node, NOW_S) == [ONE]
    assert len(names(node)) == 4


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_no_exception_and_is_not_waited_for(node: Node, make: Callable[[str], None]) -> None:
    allowances.grant(node, ONE)
    make(allowances.path_of(node, "b2"))
    assert allowances.in_force(node, NOW_S) == [ONE]


def test_the_longest_one_counts(node: Node) -> None:
    longest = ONE._replace(until=NOW_S + LONGEST_S)
    allowances.grant(node, longest)
    assert allowances.in_force(node, NOW_S) == [longest]
