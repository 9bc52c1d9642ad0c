"""What an administrator reads uses the field's words: none of these, which a native speaker would stop at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
TEXTS = [
    TOP / "README.md",
    TOP / "hooks" / "pvehook.example.yaml",
    TOP / "install.sh",
    *sorted((TOP / "docs").rglob("*.md")),
]
"""Not the changelog, which names what has been renamed."""
AVOIDED = re.compile(
    r"""\b(
    shuts?(?!\ down) | (put|set)\ back\ to\ normal | (put|puts)\ to\ idle | at\ idle\ on | heeds? | looked\ at |
    looks\ at
    | on\ (its|their)\ way | mended? | no\ question | regression\ is\ called | looking\ costs | let\ go
    | by\ hand\ keeps | account\ of\ a\ guest | guest's\ account | lies\ at | whatever\ dies | blindly
    | tonight\ would\ do | a\ line\ a\ guest | wants?\ to\ be\ looked | doorbell | ring(s|ing)? | rung
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(TOP)))
def test_it_is_written_in_the_fields_words(text: Path) -> None:
    lines = text.read_text().splitlines()
    found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if AVOIDED.search(line)]
    assert found == []
