#!/usr/bin/env python3
"""Writes docs/configuration.md, docs/events.md and docs/checks/faults.md; `--check` writes nothing and exits 1 when one
of them is stale.

    .venv/bin/python scripts/generate_docs.py

configuration.md: each key's accepted values from its check (pvehook/config/checks.py), its default from
pvehook/settings.py, its meaning from the comments of hooks/pvehook.example.yaml.
events.md: each event's meaning from scripts/events.py, its fields from the calls that log it.
checks/faults.md: the known faults of pvehook/doctor/faults.yaml.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from yaml.error import Mark
from yaml.nodes import MappingNode

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from pvehook.config import describe, merge  # noqa: E402  (this repository's, wherever the script is called from)
from pvehook.config.checks import CHECKS  # noqa: E402
from pvehook.config.nodes import Walk  # noqa: E402
from pvehook.doctor.fault_atlas import GUESTS, Atlas, Fault, atlas  # noqa: E402
from pvehook.records.journal import PRIORITIES  # noqa: E402
from scripts.events import EVENTS  # noqa: E402

EXAMPLE = TOP / "hooks" / "pvehook.example.yaml"
PACKAGE = TOP / "pvehook"
MADE_BY = "<!-- Written by scripts/generate_docs.py. Change the sources that it names, not this file. -->\n"


def pages() -> dict[Path, str]:
    """Every generated file and what it must hold."""
    return {
        TOP / "docs" / "configuration.md": configuration_page(EXAMPLE.read_text()),
        TOP / "docs" / "events.md": events_page(),
        TOP / "docs" / "checks" / "faults.md": faults_page(atlas()),
    }


def main() -> int:
    """Writes what is stale, or names it under --check."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(path.relative_to(TOP))
        if "--check" not in sys.argv:
            path.write_text(pages()[path])
    return 1 if stale and "--check" in sys.argv else 0


# ------------------------------------------------------------------------------------------- configuration.md


CONFIGURATION_INTRO = """
# Configuration reference

This page is made from the comments of the example configuration, which a node has as
`/usr/local/lib/pvehook/pvehook.example.yaml`. Where it says "this file" it means that one.

| key | default |
|---|---|"""


class Topic(NamedTuple):
    """A comment of the example, and the section or the keys that it explains."""

    section: str
    keys: list[str]
    comment: list[str]


def configuration_page(example: str) -> str:
    """A table of all keys, then one section per section of the example and one entry per key."""
    defaults = default_values()
    index, entries = [CONFIGURATION_INTRO], [""]
    for section, keys, comment in topics(example):
        lines = list(comment)
        if lines and lines[0].startswith("--- "):
            entries.append(f"## {lines.pop(0)[4:].rstrip('.')}" + (f" (`{section}`)" if section else ""))
        elif section:
            entries.append(f"### `{section}`")
        if keys:
            title = ", ".join(f"`{key}`" for key in keys)
            entries.append(f"### {title}")
            index += [f"| [`{key}`](#{anchor_of(title)}) | `{defaults[key]}` |" for key in keys]
        entries += ["\n".join(in_markdown(lines)).strip("\n")] if lines else []
        entries += [
            (f"`{key}`: " if len(keys) > 1 else "") + f"Default `{defaults[key]}`. Accepted: {accepted(key)}."
            for key in keys
        ]
    page = MADE_BY + "\n".join(index) + "\n\n".join(entries) + "\n"
    return re.sub("\n{3,}", "\n\n", page)


def anchor_of(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def default_values() -> dict[str, str]:
    """As one would write them; `pvehook config show` prints the same."""
    lines = (line.rpartition("  # ")[0].partition(":") for line in describe(merge(None, None)))
    return {key: value.strip() for key, _, value in lines}


def accepted(key: str) -> str:
    """What the key's check expects, in its own words: those that `pvehook config check` prints."""
    walk = Walk("")
    CHECKS[key](walk, MappingNode("", [], Mark("", 0, 0, 0, None, 0)), key)
    return walk.problems[0].expected


def topics(example: str) -> Iterator[Topic]:
    """The example's comments in order. Keys that follow each other without a comment share the one before them."""
    sections: list[str] = []
    topic = Topic("", [], [])
    for line in example.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if setting := re.match(r" *(#?)([a-z_]+):", line):
            key = ".".join([*sections[:depth], setting[2]])
            if setting[1]:
                topic.keys.append(key)
            else:  # a section: only what is in it is commented out
                sections[depth:] = [setting[2]]
                yield topic._replace(section=key)
                topic = Topic("", [], [])
            continue
        if topic.keys or not line:
            yield topic
            topic = Topic("", [], [])
        if line:
            topic.comment.append(line.lstrip()[2:])
    yield topic


def in_markdown(comment: Iterable[str]) -> Iterator[str]:
    """`value    what it means` becomes an item of a list, other indented lines become code, the rest stays."""
    kind, item_indent = "text", 0
    for line in comment:
        indent = len(line) - len(line.lstrip())
        before, shown = kind, line
        if item := re.match(r' *("[^"]+"|\S+(?: \S+)*) {2,}(\S.*)', line):
            kind, item_indent, shown = "list", indent, f"- `{item[1]}`: {item[2]}"
        elif kind == "list" and indent > item_indent:
            shown = f"  {line.strip()}"
        else:
            kind = "code" if indent >= 4 else "text"
        yield from ["", shown] if kind != before else [shown]


# -------------------------------------------------------------------------------------------------- events.md

EVENTS_INTRO = """
# Events in the journal

pvehook logs one event for each decision and each effect, with the identifier `pvehook`:

    journalctl -t pvehook --since today
    journalctl -t pvehook PVEHOOK_VMID=101
    journalctl -t pvehook -p warning            # what needs attention
    journalctl -t pvehook PVEHOOK_EVENT=guest-done -o json | jq -r '[.PVEHOOK_VMID,.PVEHOOK_RESULT]|@tsv'

Each event has a readable `MESSAGE`, a `PRIORITY`, and the name `PVEHOOK_EVENT`. Events of a run have `PVEHOOK_JOB` (the
UPID of vzdump's task) and `PVEHOOK_WORKER` (its process id), events about a guest have `PVEHOOK_VMID`. Some events have
fields of their own; their names begin with `PVEHOOK_` too.

A figure is a number, and zero is one. A figure that does not exist reads `absent: why`, one that could not be read
`broken: why`. If the journal did not take events, the next one has their number in `PVEHOOK_EVENTS_LOST_BEFORE`.

`PVEHOOK_RESULT` of a guest is `ok`, `failed`, `refused`, `cancelled`, `worker-died`, or `unknown` (the daemon was not
running when the backup ended).

| event | priority | meaning |
|---|---|---|
"""

FIELDS_INTRO = """
## Fields of their own

Each name stands for the journal field `PVEHOOK_NAME`.

"""


class Logged(NamedTuple):
    """What the code logs under one name."""

    priorities: set[str]
    fields: list[str]


def events_page() -> str:
    """One row per event, then the fields of each event that has some."""
    rows = [f"| `{name}` | {', '.join(levels.split())} | {meaning} |\n" for name, (levels, meaning) in EVENTS.items()]
    logged = logged_events()
    fields = [
        f"- `{name}`: {' '.join(f'`{field.upper()}`' for field in logged[name].fields)}\n"
        for name in EVENTS
        if logged[name].fields
    ]
    return "".join([MADE_BY, EVENTS_INTRO, *rows, FIELDS_INTRO, *fields])


@functools.cache
def logged_events() -> dict[str, Logged]:
    """Every event that a call in the package logs. Raises SyntaxError for a call whose event cannot be read off it."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    functions = {
        each.name: each
        for each in chain.from_iterable(map(ast.walk, trees.values()))
        if isinstance(each, ast.FunctionDef)
    }
    found: dict[str, Logged] = {}
    for path, tree in trees.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for call, levels in log_calls(function):
                    for name, level in events_of(path, call, levels):
                        logged = found.setdefault(name, Logged(set(), []))
                        logged.priorities.add(level)
                        logged.fields.extend(each for each in fields_of(call, functions) if each not in logged.fields)
    return found


def log_calls(function: ast.FunctionDef) -> Iterator[tuple[ast.Call, ast.expr]]:
    """`log.info(...)`, and `write(...)` after `write = log.info if ... else log.warning`: the call and what names its
    level."""
    writers = {
        each.targets[0].id: each.value
        for each in ast.walk(function)
        if isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and all(map(is_level, options(each.value)))
    }
    for call in ast.walk(function):
        if isinstance(call, ast.Call):
            if is_level(call.func):
                yield call, call.func
            elif isinstance(call.func, ast.Name) and call.func.id in writers:
                yield call, writers[call.func.id]


def is_level(node: ast.expr) -> bool:
    """Whether this is a logger's method."""
    if not isinstance(node, ast.Attribute) or node.attr not in PRIORITIES:
        return False
    logger = node.value.func if isinstance(node.value, ast.Call) else node.value
    return ast.unparse(logger).rpartition(".")[2].endswith("log")


def options(node: ast.expr) -> list[ast.expr]:
    """Both branches of `a if ... else b`, or the expression itself."""
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def events_of(path: Path, call: ast.Call, levels: ast.expr) -> Iterator[tuple[str, str]]:
    """Each event of the call with each level it can have."""
    names = call.args[0] if call.args else call
    pairs = [(name, level) for name in options(names) for level in options(levels)]
    if isinstance(names, ast.IfExp) and isinstance(levels, ast.IfExp) and ast.dump(names.test) == ast.dump(levels.test):
        pairs = list(zip(options(names), options(levels), strict=True))
    for name, level in pairs:
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str) and isinstance(level, ast.Attribute)):
            raise SyntaxError(f"{path}:{call.lineno}: the event's name is not written in the call")
        yield name.value, level.attr


def fields_of(call: ast.Call, functions: dict[str, ast.FunctionDef]) -> Iterator[str]:
    """The event's own fields; `**some_function(...)` stands for the keys of the mapping that the function returns."""
    for keyword in call.keywords:
        names = keys_of(keyword.value, functions) if keyword.arg is None else [keyword.arg]
        yield from (name for name in names if name not in ("message", "vmid"))


def keys_of(expression: ast.AST, functions: dict[str, ast.FunctionDef]) -> Iterator[str]:
    """The texts that are keys of mappings in the expression and in the functions of the package that it calls for a
    mapping."""
    for each in ast.walk(expression):
        if isinstance(each, ast.Dict):
            yield from (str(key.value) for key in each.keys if isinstance(key, ast.Constant))
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in functions:
            callee = functions[each.func.id]
            if callee.returns is not None and ast.unparse(callee.returns).startswith("dict["):
                yield from keys_of(ast.Module(callee.body, []), functions)


# --------------------------------------------------------------------------------------------- checks/faults.md

FAULTS_INTRO = """
# PVH-6nn: known faults

Faults of the kernel, QEMU and Proxmox VE that stall guests, hurt or lose backups, or look like a stall.
`pvehook doctor` reports one when the versions on the node are in its range and its conditions are met. Where no version
tells, it is listed here only.

`kernel` is the kernel that runs, by the version of its package; the other packages count as they are installed. A VM
keeps the QEMU that it was started with.

| id | affected | what |
|---|---|---|
"""


def faults_page(known: Atlas) -> str:
    """A table of all faults, and one section each."""
    rows = [
        f"| [{each.id}](#{anchor_of(each.id)}) | {affected_in_words(each)} | {each.title} |\n" for each in known.faults
    ]
    return "".join([MADE_BY, FAULTS_INTRO, *rows, *map(fault_section, known.faults)])


def fault_section(fault: Fault) -> str:
    """What, why and what to do, as the pages of single checks have it."""
    remedy = "".join(f"- {each}\n" for each in fault.remedy)
    cause = "Backups bring it about." if fault.backups else "Backups are not its cause."
    return (
        f"\n## {fault.id}\n\n**{fault.title}** ({fault.component}). {fault.shows} {cause}\n\n"
        f"Affected: {affected_in_words(fault)}.\n\n{remedy}\nSource: {fault.source}.\n"
    )


def affected_in_words(fault: Fault) -> str:
    """`kernel >= 6.17, < 6.17.13-4; mpt3sas loaded`."""
    ranges = [" and ".join(f"{package} {bounds}" for package, bounds in each.items()) for each in fault.affected]
    when = fault.when
    conditions = {
        f"{' or '.join(when.drivers)} loaded": when.drivers,
        f"{' or '.join(when.mounted)} mounted": when.mounted,
        f"a storage of type {' or '.join(when.storages)}": when.storages,
        f"a VM {GUESTS.get(when.guests)}": when.guests,
        "an Intel CPU": when.cpu == "intel",
        "an AMD CPU": when.cpu == "amd",
        "several NUMA nodes": when.numa,
        "fleecing": when.fleecing,
    }
    met = [text for text, is_so in conditions.items() if is_so]
    return "; ".join([" or ".join(ranges) or "no version tells", *met])


if __name__ == "__main__":
    sys.exit(main())
