"""Reads what an administrator wrote: `/etc/pve/pvehook.yaml` and on top of it `/etc/pvehook.yaml`.

    window:                             # a section: the sections of both files are joined
      open: ["sat,sun 22:00-06:00"]     # a key: the node's value wins; a list replaces the other file's list
    io_priority:
      check_every: 5s                   # a time carries its unit

Every problem is collected with file, line, key, what was found and what was expected. While there is one, the last
good configuration stays in force, because half a configuration is not what the administrator meant; only where there
never was a good one do the files' valid values count.

    nodes.py     from text to YAML nodes, and the limits of both
    checks.py    what each key may hold

Reading the files is left to the caller, since /etc/pve may hang. The types and the defaults are in
pvehook/settings.py, apart from YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from yaml.nodes import Node

from pvehook.config.checks import CHECKS, duration_text, entries_of
from pvehook.config.nodes import ConfigProblem, StopReading, Walk, compose, is_null
from pvehook.settings import (
    DEFAULT,
    FREEZE_TIMES_S,
    Config,
    Exempt,
    FreezeConfig,
    FreezeRule,
    GovernorConfig,
    GovernorRule,
    IoPriorityConfig,
    MetricsConfig,
    PacerConfig,
    WindowConfig,
)

__all__ = ["ConfigProblem", "Leaf", "Loaded", "Parsed", "describe", "merge", "parse"]

_MAX_PADDED = 40

_FREEZE_FIELDS = {
    f"freeze.{field.removesuffix('_s')}" if field in FREEZE_TIMES_S else f"freeze.{field}": field
    for field in FreezeConfig._fields
}
"""The keys of the section `freeze` and the fields they set: a time in a file carries its unit, a field in its name."""

_PLAIN_SECTIONS: dict[str, Any] = {"metrics": MetricsConfig, "governor": GovernorConfig, "pacer": PacerConfig}
_PLAIN_FIELDS = {
    f"{section}.{field.removesuffix('_s')}": (section, field)
    for section, kind in _PLAIN_SECTIONS.items()
    for field in kind._fields
}
"""The same for the sections without an exception."""

_TIMES = {"io_priority.check_every"} | {key for key, field in _FREEZE_FIELDS.items() if field in FREEZE_TIMES_S}
_TIMES |= {key for key, (_, field) in _PLAIN_FIELDS.items() if field.endswith("_s")}


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
    values = _by_key(DEFAULT)
    origins = dict.fromkeys(values, "default")
    problems: tuple[ConfigProblem, ...] = ()
    for parsed in (cluster, node):
        if parsed is None:
            continue
        problems += parsed.errors
        for key, leaf in parsed.values.items():
            values[key] = leaf.value
            origins[key] = f"{parsed.file_name}:{leaf.line}"
    config = _from_keys(values)
    if not problems:
        return Loaded(config, (), origins)
    return Loaded(None, problems, origins, config if set(origins.values()) != {"default"} else None)


def describe(loaded: Loaded) -> list[str]:
    """Lines for `pvehook config show`: key, value as one would write it, where it comes from.

    Without a usable configuration: its problems.
    """
    if loaded.config is None:
        return [str(problem) for problem in loaded.problems]
    values = {key: _as_yaml(key, value) for key, value in _by_key(loaded.config).items()}
    key_width = max(map(len, values)) + len(":")
    # One long list must not push the origins of all others off the screen.
    value_width = min(max(map(len, values.values())), _MAX_PADDED)
    return [
        f"{key + ':':<{key_width}}  {value:<{value_width}}  # {loaded.origins[key]}"
        for key, value in values.items()
    ]


def _by_key(config: Config) -> dict[str, Any]:
    window, io_priority = config.window, config.io_priority
    return {
        "window.open": window.open,
        "window.timezone": window.timezone,
        "window.next_guest": window.next_guest,
        "window.running_guest": window.running_guest,
        "window.exempt.guests": window.exempt.guests,
        "window.exempt.jobs": window.exempt.jobs,
        "window.exempt.storages": window.exempt.storages,
        "io_priority.mode": io_priority.mode,
        "io_priority.check_every": io_priority.check_every_s,
        "io_priority.also": io_priority.also,
        "io_priority.compressor_nice": io_priority.compressor_nice,
        **{key: getattr(config.freeze, field) for key, field in _FREEZE_FIELDS.items()},
        **{key: getattr(getattr(config, section), field) for key, (section, field) in _PLAIN_FIELDS.items()},
        "chain": config.chain,
    }


def _from_keys(values: Mapping[str, Any]) -> Config:
    return Config(
        window=WindowConfig(
            open=values["window.open"],
            timezone=values["window.timezone"],
            next_guest=values["window.next_guest"],
            running_guest=values["window.running_guest"],
            exempt=Exempt(
                guests=values["window.exempt.guests"],
                jobs=values["window.exempt.jobs"],
                storages=values["window.exempt.storages"],
            ),
        ),
        io_priority=IoPriorityConfig(
            mode=values["io_priority.mode"],
            check_every_s=values["io_priority.check_every"],
            also=values["io_priority.also"],
            compressor_nice=values["io_priority.compressor_nice"],
        ),
        freeze=FreezeConfig(**{field: values[key] for key, field in _FREEZE_FIELDS.items()}),
        **{
            section: kind(**{field: values[key] for key, (of, field) in _PLAIN_FIELDS.items() if of == section})
            for section, kind in _PLAIN_SECTIONS.items()
        },
        chain=values["chain"],
    )


def _as_yaml(key: str, value: Any) -> str:
    if key in _TIMES:
        return duration_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in ("freeze.rules", "governor.rules"):
        value = [_rule_as_yaml(rule) for rule in value]
    if key == "io_priority.also":
        value = [also._asdict() for also in value]
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w/.+-]*", value, re.ASCII):
        return value
    return json.dumps(value, ensure_ascii=False)  # YAML reads what JSON can say


def _rule_as_yaml(rule: FreezeRule | GovernorRule) -> dict[str, Any]:
    """What a rule sets; its empty lists are left out, since not every mode takes every list."""
    entries = rule._asdict()
    entries["except"] = entries.pop("leave_out", ())
    return {name: value for name, value in entries.items() if value}
