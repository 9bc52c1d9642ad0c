"""One folder per night: what goes in (night.yaml), what an administrator sees of it (the other files)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.scenarios.night import play

NIGHTS = sorted(path.parent for path in Path(__file__).parent.glob("*/night.yaml"))


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """As `diff -u` shows it, file by file."""
    return "".join(
        line
        for name in sorted({*before, *after})
        for line in difflib.unified_diff(
            before.get(name, "").splitlines(True), after.get(name, "").splitlines(True), name, name
        )
    )


@pytest.mark.parametrize("folder", NIGHTS, ids=lambda path: path.name)
def test_a_night_shows_what_its_folder_says(folder: Path, request: pytest.FixtureRequest) -> None:
    shown, again = play(folder), play(folder)
    if found := difference(shown, again):
        pytest.fail(f"two playings of this night differ: does `normalised` miss something?\n{found}")
    if request.config.getoption("update_golden"):
        for name, text in shown.items():
            (folder / name).write_text(text)
    golden = {path.name: path.read_text() for path in folder.glob("*.txt")}
    if found := difference(golden, shown):
        pytest.fail(f"what this night shows has changed; if it is meant, run with --update-golden\n{found}")
