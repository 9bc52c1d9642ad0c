"""What the README and the pages of docs/ say can be followed: links, the configuration they show, the commands."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.cli import parser
from pvehook.config import parse
from pvehook.rules import freeze_safety, freeze_selection
from scripts.generate_docs import anchor_of

TOP = Path(__file__).parents[2]
MAP = TOP / "docs" / "architecture.md"
PAGES = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]
IDS = [page.name for page in PAGES]
MOST_LINES = 200
"""Of the README: it is read once, at night."""


def code_of(page: Path) -> Iterator[str]:
    """Lines that are indented as code; a command's comment is left out."""
    for line in page.read_text().splitlines():
        if line.startswith("    ") and line.strip():
            yield line[4:].split("  #")[0].rstrip()


def commands_of(page: Path, *names: str) -> list[list[str]]:
    lines = [line for line in code_of(page) if line.split()[0] in names]
    return [shlex.split(line.removesuffix(" &&").replace("...", "TEXT")) for line in lines]


def test_the_readme_is_read_once() -> None:
    assert len((TOP / "README.md").read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, titles), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_ones_that_the_program_has(page: Path) -> None:
    for command in commands_of(page, "pvehook"):
        assert parser().parse_args(command[1:]).run, command


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_programs_of_the_repository_exist(page: Path) -> None:
    for command in commands_of(page, ".venv/bin/python", "./install.sh"):
        program = command[1] if command[0] == ".venv/bin/python" else command[0]
        assert (TOP / program).exists(), command


def test_the_readmes_configuration_can_be_used() -> None:
    lines = (TOP / "README.md").read_text().splitlines()
    first = lines.index("    window:")
    block = lines[first : lines.index("", first)]
    parsed = parse("\n".join(line[4:] for line in block), "README.md")
    assert parsed.errors == ()
    assert len(parsed.values) == 5


def test_every_rule_of_the_verdict_is_explained() -> None:
    explained = re.findall(r"^\| `([\w-]+)` \|", (TOP / "docs" / "freeze.md").read_text(), re.MULTILINE)
    assert len(set(explained)) == len(explained)
    source = inspect.getsource(freeze_safety) + inspect.getsource(freeze_selection)
    named = set(re.findall(r'"([a-z-]+): ', source)) - {"safe", "crash-consistent"}
    assert len(named) > 20
    assert named <= set(explained)


def test_every_path_that_the_map_names_exists() -> None:
    named = set(re.findall(r"`((?:pvehook|hooks|scripts|tests)/[\w./-]*)`", MAP.read_text()))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (TOP / path).exists()] == []


def test_every_function_that_the_map_names_is_in_the_file_before_it() -> None:
    """`FILE` `Class.method`; a name without a file belongs to a class that was named before it."""
    missing = []
    files: dict[str, str] = {}
    for file, name in re.findall(r"(?:`([\w/.-]+)`\s+)?`([A-Za-z_]\w*(?:\.\w+)?)`", MAP.read_text()):
        if "/" in file:
            files[name.split(".")[0]] = file
        owner = files.get(name.split(".")[0])
        if owner is not None and name not in names_in(TOP / owner):
            missing.append(f"{owner}: {name}")
    assert missing == []


@functools.cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes and their methods as `Class.method`."""
    found = set()
    for each in ast.parse(file.read_text()).body:
        if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
            found.add(each.name)
        if isinstance(each, ast.ClassDef):
            found |= {f"{each.name}.{own.name}" for own in each.body if isinstance(own, ast.FunctionDef)}
    return frozenset(found)
