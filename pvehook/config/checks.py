"""What each key may hold: a check takes a node and its dotted key, gives the value, and notes problems."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pvehook.config.nodes import MAX_SHOWN, Walk, is_null, is_plain, line_of, word_of
from pvehook.contract.text import printable
from pvehook.errors import WindowSpecError
from pvehook.rules.window import parse_span
from pvehook.settings import (
    CHECK_EVERY_S,
    COMPRESSOR_NICE,
    IO_MODES,
    NEXT_GUEST,
    RUNNING_GUEST,
    VMIDS,
    AlsoProcess,
)

Check = Callable[[Walk, Node, str], Any]
"""What it gives after noting a problem is not used."""

_MAX_SPAN = 100
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_OWN_FILES = "/usr/local/lib/pvehook/"


def entries_of(walk: Walk, node: Node, key: str, known: tuple[str, ...]) -> dict[str, tuple[int, Node]]:
    """The known entries of the mapping at `key`: for each name the line where it stands, and its value."""
    if not isinstance(node, MappingNode):
        walk.bad(node, key, f"a mapping with the keys {', '.join(known)}")
        return {}
    first_line: dict[str, int] = {}
    entries = {}
    for name_node, value_node in node.value:
        name = word_of(name_node)
        full_key = ".".join(filter(None, (key, printable(name, MAX_SHOWN))))
        if not name:
            walk.bad(name_node, key, f"one of the keys {', '.join(known)}")
        elif name in first_line:
            once = f"each key once (it stands in line {first_line[name]} already)"
            walk.bad(name_node, full_key, once, found="the same key again")
        elif name not in known:
            nearest = _nearest_key(name, known)
            walk.bad(name_node, full_key, f"one of {', '.join(known)}", nearest, found="an unknown key")
        else:
            entries[name] = (line_of(name_node), value_node)
        first_line.setdefault(name, line_of(name_node))
    return entries


def _nearest_key(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """A neighbour of a similar name, else a key that belongs elsewhere: `mode` is `io_priority.mode`."""
    elsewhere = {key.rpartition(".")[2]: key for key in CHECKS}
    return _nearest(name, known) or tuple(elsewhere[last] for last in _nearest(name, elsewhere))


def _nearest(found: str, names: Iterable[str], at_most: int = 1) -> tuple[str, ...]:
    by_lower = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(found[:MAX_SHOWN].lower(), by_lower, at_most)
    return tuple(by_lower[match] for match in matches)


def duration_text(seconds: float) -> str:
    """A time as one would write it: `500ms`, `2s`."""
    ms = round(seconds * 1000)
    return f"{ms}ms" if ms % 1000 else f"{ms // 1000}s"


def _list_of(check: Check, expected: str) -> Check:
    def checked(walk: Walk, node: Node, key: str) -> tuple[Any, ...]:
        if isinstance(node, SequenceNode):
            return tuple(check(walk, item, f"{key}[{index}]") for index, item in enumerate(node.value))
        trial = Walk("")
        check(trial, node, key)
        word = word_of(node)
        as_list = f"[{word}]" if word.isdigit() else f'["{word}"]'
        walk.bad(node, key, expected, () if trial.problems else (as_list,))
        return ()

    return checked


def _choice(allowed: tuple[str, ...]) -> Check:
    def check(walk: Walk, node: Node, key: str) -> str:
        word = word_of(node)
        if word not in allowed:
            walk.bad(node, key, " or ".join(allowed), _nearest(word, allowed))
        return word

    return check


def _whole(limits: tuple[int, int]) -> Check:
    expected = f"a whole number from {limits[0]} to {limits[1]}, without quotes"

    def check(walk: Walk, node: Node, key: str) -> int:
        word = word_of(node)
        number = int(word) if re.fullmatch("0|[1-9][0-9]{0,9}", word) else -1
        if not is_plain(node) or not limits[0] <= number <= limits[1]:
            walk.bad(node, key, expected)
        return number

    return check


def _text(pattern: str, expected: str) -> Check:
    def check(walk: Walk, node: Node, key: str) -> str:
        word = word_of(node)
        is_text = isinstance(node, ScalarNode) and not is_null(node) and word.isprintable()
        if not is_text or not re.fullmatch(pattern, word):
            walk.bad(node, key, expected)
        return word

    return check


def _duration(limits_s: tuple[float, float]) -> Check:
    units = "|".join(_UNIT_MS)
    lowest, highest = map(duration_text, limits_s)
    expected = f"a whole number with its unit ({', '.join(_UNIT_MS)}), from {lowest} to {highest}"

    def check(walk: Walk, node: Node, key: str) -> float:
        word = word_of(node)
        match = re.fullmatch(f"([0-9]{{1,9}})({units})", word)
        seconds = int(match[1]) * _UNIT_MS[match[2]] / 1000 if match else -1.0
        if not limits_s[0] <= seconds <= limits_s[1]:
            is_bare = re.fullmatch("[1-9][0-9]?", word)
            walk.bad(node, key, expected, (f"{word}s",) if is_bare else ())
        return seconds

    return check


def _span(walk: Walk, node: Node, key: str) -> str:
    word = word_of(node)
    if not word or len(word) > _MAX_SPAN:
        walk.bad(node, key, _SPAN)
        return word
    try:
        parse_span(word)
    except WindowSpecError as error:
        walk.bad(node, key, f"{_SPAN} ({error})")
    return word


def _zone(walk: Walk, node: Node, key: str) -> str | None:
    if is_null(node):
        return None
    word = word_of(node)
    try:
        # right/... counts leap seconds, which no node's clock does; posix/... is the same zone once more.
        known = not word.startswith(("right/", "posix/")) and ZoneInfo(word) is not None
    except (KeyError, ValueError, OSError):  # no such zone; no name of one; its file cannot be read
        known = False
    if not known:
        nearest = _nearest(word, available_timezones(), 3)
        walk.bad(node, key, "a time zone such as Europe/Warsaw, or null for the node's own", nearest)
    return word


def _chain(walk: Walk, node: Node, key: str) -> str | None:
    if is_null(node):
        return None
    word = word_of(node)
    if not word.startswith("/") or not word.isprintable():
        walk.bad(node, key, "the absolute path of a script, or null")
    elif posixpath.normpath(word).startswith(_OWN_FILES):
        walk.bad(node, key, "a script of your own: pvehook would call itself without end")
    return word


def _also(walk: Walk, node: Node, key: str) -> AlsoProcess:
    entries = entries_of(walk, node, key, tuple(_ALSO_CHECKS))
    values = {"command": "", "mentions": ""}
    for name, check in _ALSO_CHECKS.items():
        if name in entries:
            values[name] = check(walk, entries[name][1], f"{key}.{name}")
        elif isinstance(node, MappingNode):
            walk.bad(node, f"{key}.{name}", _ALSO_EXPECTED[name], found="nothing")
    return AlsoProcess(**values)


_SPAN = "a span of time, in quotes if it has a comma"
_ID = r"[^\s,]+"
_ALSO_EXPECTED = {
    "command": "the name of a program, without its path",
    "mentions": 'dump-directory, or a text of the command line, or "" for any',
}
_ALSO_CHECKS = {
    "command": _text("[^/]+", _ALSO_EXPECTED["command"]),
    "mentions": _text(".*", _ALSO_EXPECTED["mentions"]),
}

CHECKS: dict[str, Check] = {
    "window.open": _list_of(_span, 'a list such as ["02:00-05:00", "sat,sun 22:00-06:00"], or [] for never'),
    "window.timezone": _zone,
    "window.next_guest": _choice(NEXT_GUEST),
    "window.running_guest": _choice(RUNNING_GUEST),
    "window.exempt.guests": _list_of(_whole(VMIDS), "a list of guest numbers such as [101, 102]"),
    "window.exempt.jobs": _list_of(_text(_ID, "the id of a job"), "a list of job ids"),
    "window.exempt.storages": _list_of(_text(_ID, "the id of a storage"), "a list of storage ids"),
    "io_priority.mode": _choice(IO_MODES),
    "io_priority.check_every": _duration(CHECK_EVERY_S),
    "io_priority.also": _list_of(_also, "a list of entries with command and mentions"),
    "io_priority.compressor_nice": _whole(COMPRESSOR_NICE),
    "chain": _chain,
}
"""Every key that there is, by its dotted path."""
