"""Every check of the doctor has its page, and every page its check; known faults have one page in common, which is
made from their list (test_generated.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.doctor import fault_checks
from pvehook.doctor.checks import all_checks

DIRECTORY = Path(__file__).parents[2] / "docs" / "checks"
CHECKS = {check.id: check for check in all_checks() if check not in fault_checks.CHECKS}
PARTS = ["What", "Why", "Evidence", "Remedy"]


def test_every_check_has_its_page_and_every_page_its_check() -> None:
    assert sorted(page.stem for page in DIRECTORY.iterdir()) == sorted([*CHECKS, "faults"])
    assert len({check.id for check in all_checks()}) == len(list(all_checks())), "an id that two checks have"


@pytest.mark.parametrize("check", CHECKS)
def test_a_page_has_its_title_and_its_parts(check: str) -> None:
    lines = (DIRECTORY / f"{check}.md").read_text().splitlines()
    assert lines[0] == f"# {check}: {CHECKS[check].title}"
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == PARTS
    assert len(lines) <= 40
