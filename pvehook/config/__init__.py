"""Reads what an administrator wrote: `/etc/pve/pvehook.yaml` and on top of it `/etc/pvehook.yaml`.

    window:                             # a section: the sections of both files are joined
      open: ["sat,sun 22:00-06:00"]     # a key: the node's value wins; a list replaces the other file's list
    io_priority:
      check_every: 5s                   # a time carries its unit

Every problem is collected with file, line, key, what was found and what was expected. While there is one, the last
good configuration stays in force, because half a configuration is not what the administrator meant; only where there
never was a good one do the files' valid values count.

The types and the defaults are in pvehook/settings.py, apart from YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from yaml.nodes import Node

from pvehook.config.checks import CHECKS, duration_text, entries_of, key_of
from pvehook.config.nodes import ConfigProblem, StopReading, Walk, compose, is_null
from pvehook.settings import DEFAULT, Config

__all__ = ["ConfigProblem", "Leaf", "Loaded", "Parsed", "describe", "merge", "parse"]

_MAX_PADDED = 40


class Leaf(NamedTuple):
    """A checked value and the line of its key."""

    value: Any
    line: int


class Parsed(NamedTuple):
    """One file: the good values by dotted key, and everything that is wrong with the others."""

    file_name: str
    values: dict[str, Leaf]
    errors: tuple[ConfigProblem, ...]


class Loaded(NamedTuple):
    """Both files together. `config` is None when there is a problem; `origins` says for each dotted key where
    its value comes from: `FILE:LINE` or `default`."""

    config: Config | None
    problems: tuple[ConfigProblem, ...]
    origins: dict[str, str]
    valid: Config | None = None
    """With a problem: the defaults with the files' valid values; None when they have none."""


def parse(text: str, file_name: str) -> Parsed:
    """Checks one file. Never raises: the result reports what is wrong with the text."""
    walk = Walk(file_name)
    values: dict[str, Leaf] = {}
    try:
        root = compose(walk, text)
        if root is not None:
            _read_section(walk, root, "", values)
    except StopReading:
        pass  # the walk holds the reason
    return Parsed(file_name, values, tuple(walk.problems))


def _read_section(walk: Walk, node: Node, prefix: str, values: dict[str, Leaf]) -> None:
    if is_null(node):
        return  # all keys of the section are commented out
    names = dict.fromkeys(key[len(prefix) :].split(".")[0] for key in CHECKS if key.startswith(prefix))
    for name, (line, value_node) in entries_of(walk, node, prefix.rstrip("."), tuple(names)).items():
        key = prefix + name
        if key not in CHECKS:
            _read_section(walk, value_node, key + ".", values)
            continue
        problems_before = len(walk.problems)
        value = CHECKS[key](walk, value_node, key)
        if len(walk.problems) == problems_before or (key == "window.open" and value):
            values[key] = Leaf(value, line)


def merge(cluster: Parsed | None, node: Parsed | None) -> Loaded:
    """The node's file on top of the cluster's on top of the defaults, key by key. None stands for no file."""
    values = {key: value for key, (_, value) in _by_key(DEFAULT).items()}
    origins = dict.fromkeys(values, "default")
    problems: tuple[ConfigProblem, ...] = ()
    for parsed in (cluster, node):
        if parsed is None:
            continue
        problems += parsed.errors
        for key, leaf in parsed.values.items():
            values[key] = leaf.value
            origins[key] = f"{parsed.file_name}:{leaf.line}"
    config: Config = _with_values(DEFAULT, values)
    if not problems:
        return Loaded(config, (), origins)
    return Loaded(None, problems, origins, config if set(origins.values()) != {"default"} else None)


def describe(loaded: Loaded) -> list[str]:
    """Lines for `pvehook config show`: key, value as one would write it, where it comes from; or the problems."""
    if loaded.config is None:
        return [str(problem) for problem in loaded.problems]
    values = {key: _as_yaml(field, value) for key, (field, value) in _by_key(loaded.config).items()}
    key_width = max(map(len, values)) + len(":")
    # One long list must not push the origins of all others off the screen.
    value_width = min(max(map(len, values.values())), _MAX_PADDED)
    return [
        f"{key + ':':<{key_width}}  {value:<{value_width}}  # {loaded.origins[key]}"
        for key, value in values.items()
    ]


def _by_key(section: Any, prefix: str = "") -> dict[str, tuple[str, Any]]:
    """Each setting's field and value by its dotted key."""
    settings: dict[str, tuple[str, Any]] = {}
    for field, value in section._asdict().items():
        key = key_of(prefix, field)
        settings |= _by_key(value, f"{key}.") if hasattr(value, "_fields") else {key: (field, value)}
    return settings


def _with_values(section: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The section, each of its settings with the value that stands under its dotted key."""
    changed = {}
    for field, default in section._asdict().items():
        key = key_of(prefix, field)
        changed[field] = _with_values(default, values, f"{key}.") if hasattr(default, "_fields") else values[key]
    return section._replace(**changed)


def _as_yaml(field: str, value: Any) -> str:
    if field.endswith("_s"):
        return duration_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w/.+-]*", value, re.ASCII):
        return value
    if isinstance(value, tuple):
        value = [_entry_as_yaml(each) if hasattr(each, "_fields") else each for each in value]
    return json.dumps(value, ensure_ascii=False)  # YAML reads what JSON can say


def _entry_as_yaml(entry: Any) -> dict[str, Any]:
    """A rule without what it does not set, since not every mode takes every list."""
    values = entry._asdict()
    values["except"] = values.pop("leave_out", ())
    return {name: value for name, value in values.items() if value not in ((), None)}
