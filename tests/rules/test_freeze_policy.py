"""Which entry of the configuration counts for a guest."""

from __future__ import annotations

import pytest

from pvehook.rules.freeze_policy import FreezePolicy, policy_for
from pvehook.settings import FreezeConfig, FreezeRule

BY_GUEST = FreezeRule(guests=(101, 102), mode="mountpoints", mountpoints=("/",), leave_out=("/backup",))
BY_TAG = FreezeRule(tags=("db",), mode="never")
BY_NAME = FreezeRule(names=("cpanel-*", "win?"), mode="off")
CONFIG = FreezeConfig(windows="never", slow_after_s=2.5, slow_freezes=2, rules=(BY_GUEST, BY_TAG, BY_NAME))


def test_without_a_rule_the_section_counts() -> None:
    assert policy_for(CONFIG, 200, "web", ("prod",)) == FreezePolicy("auto", (), (), "never", 2500, 2, "freeze.mode")
    assert policy_for(FreezeConfig(mode="never"), 200, None, ()).mode == "never"


def test_a_rule_brings_everything_it_sets() -> None:
    assert policy_for(CONFIG, 102, None, ()) == FreezePolicy(
        "mountpoints", ("/",), ("/backup",), "never", 2500, 2, "freeze.rules[0] (guest 102)"
    )


@pytest.mark.parametrize(
    ("vmid", "name", "tags", "because"),
    [
        (101, None, (), "freeze.rules[0] (guest 101)"),
        (101, "cpanel-1", ("db",), "freeze.rules[0] (guest 101)"),  # the first rule that matches, and only it
        (200, "cpanel-1", ("x", "db"), "freeze.rules[1] (tag db)"),
        (200, None, ("DB",), "freeze.rules[1] (tag db)"),
        (200, "cpanel-1", (), "freeze.rules[2] (name cpanel-*)"),
        (200, "CPanel-", (), "freeze.rules[2] (name cpanel-*)"),
        (200, "win7", (), "freeze.rules[2] (name win?)"),
        (200, "win10", (), "freeze.mode"),
        (200, "old-cpanel-1", (), "freeze.mode"),
        (200, None, ("dbx", "cpanel-1"), "freeze.mode"),
        (200, "db", (), "freeze.mode"),
    ],
)
def test_who_is_matched_by_what(vmid: int, name: str | None, tags: tuple[str, ...], because: str) -> None:
    assert policy_for(CONFIG, vmid, name, tags).because == because


def test_a_guest_without_a_name_matches_no_pattern() -> None:
    assert policy_for(FreezeConfig(rules=(FreezeRule(names=("*",), mode="never"),)), 101, None, ()).mode == "auto"
