"""What guests told of themselves when they were last started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pvehook.contract.guest_facts import BootFacts, GuestFacts, GuestOs
from pvehook.contract.huge_pages import HugePages
from pvehook.contract.measured import Absent, Broken
from pvehook.host.node import Node
from pvehook.records import guest_facts
from pvehook.records.guest_facts import keep_guest_facts, kept_guest_facts

FULL = GuestFacts(
    1795312800.0,
    "7.2.22",
    ("guest-exec",),
    GuestOs("debian", "Debian GNU/Linux 12 (bookworm)", "12", None),
    HugePages("always", Broken("it broke")),
    BootFacts(("debian",), ("/etc/default/grub",), by_systemd_boot=False),
)
LITTLE = FULL._replace(os=Absent("it does not say"), huge_pages=HugePages(Absent("a"), Absent("b")), boot=Absent("c"))


@pytest.mark.parametrize("facts", [FULL, LITTLE])
def test_what_was_kept_is_read_again(tmp_path: Path, facts: GuestFacts) -> None:
    node = Node(str(tmp_path))
    keep_guest_facts(node, 101, facts)
    assert kept_guest_facts(node, 101) == facts
    assert kept_guest_facts(node, 102) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"at_s": "soon"}', "\0"])
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "var/lib/pvehook/guests").mkdir(parents=True)
    (tmp_path / "var/lib/pvehook/guests/101.json").write_text(text)
    assert kept_guest_facts(Node(str(tmp_path)), 101) is None


def test_of_too_many_guests_the_oldest_facts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_facts, "GUESTS_KEPT", 2)
    node = Node(str(tmp_path))
    for age_s, vmid in ((300, 103), (100, 101), (0, 102)):
        keep_guest_facts(node, vmid, FULL)
        os.utime(tmp_path / f"var/lib/pvehook/guests/{vmid}.json", (1795312800 - age_s,) * 2)
    keep_guest_facts(node, 102, FULL)
    assert [vmid for vmid in (101, 102, 103) if kept_guest_facts(node, vmid)] == [101, 102]
