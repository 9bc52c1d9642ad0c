"""What each key may hold: a check takes a node and its dotted key, gives the value, and notes problems."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin
from zoneinfo import ZoneInfo, available_timezones

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pvehook.config.nodes import MAX_SHOWN, Walk, is_null, is_plain, line_of, word_of
from pvehook.contract.text import printable
from pvehook.errors import WindowSpecError
from pvehook.rules.window import parse_span
from pvehook.settings import (
    AlsoProcess,
    Between,
    Config,
    FreezeRule,
    FreezeRuleMode,
    GovernorMode,
    GovernorRule,
    Seconds,
    Spare,
    Vmid,
    hints_of,
)

Check = Callable[[Walk, Node, str], Any]
"""What it gives after noting a problem is not used, but for the good spans of a window."""

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
    near = _nearest(name, known)
    if near:
        return near
    last_words = _nearest(name, [key.rpartition(".")[2] for key in CHECKS])
    return tuple(key for key in CHECKS if key.rpartition(".")[2] in last_words)


def _nearest(found: str, names: Iterable[str], at_most: int = 1) -> tuple[str, ...]:
    by_lower = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(found[:MAX_SHOWN].lower(), by_lower, at_most)
    return tuple(by_lower[match] for match in matches)


def key_of(prefix: str, field: str) -> str:
    """A setting's key in a file: a time carries its unit there, and not in its name."""
    return prefix + field.removesuffix("_s")


def duration_text(seconds: float) -> str:
    """A time as one would write it: `500ms`, `2s`."""
    ms = round(seconds * 1000)
    return f"{ms}ms" if ms % 1000 else f"{ms // 1000}s"


def _of_hint(hint: Any) -> Check:
    """The check of a setting that is a choice, yes or no, a time or a number."""
    if get_origin(hint) is Literal:
        return _choice(get_args(hint))
    if hint is bool:
        return _yes_or_no
    kind, limits = get_args(hint)
    return _duration(limits) if isinstance(limits, Seconds) else _number(kind, limits)


def _list_of(check: Check, expected: str) -> Check:
    def checked(walk: Walk, node: Node, key: str) -> tuple[Any, ...]:
        if isinstance(node, SequenceNode):
            return tuple(check(walk, item, f"{key}[{index}]") for index, item in enumerate(node.value))
        trial = Walk("")
        check(trial, node, key)
        word = word_of(node)
        as_list = f"[{word}]" if word.isdigit() else f'["{word}"]'
        walk.bad(node, key, expected, (as_list,) if word and not trial.problems else ())
        return ()

    return checked


def _choice(allowed: tuple[str, ...]) -> Check:
    def check(walk: Walk, node: Node, key: str) -> str:
        word = word_of(node)
        if word not in allowed:
            walk.bad(node, key, " or ".join(allowed), _nearest(word, allowed))
        return word

    return check


def _number(kind: type, limits: Between) -> Check:
    whole = kind is int
    pattern = "0|[1-9][0-9]{0,9}" if whole else r"[0-9]{1,4}(\.[0-9]{1,4})?"
    lowest, highest = (f"{limit:.12g}" for limit in limits)
    expected = f"a {'whole ' if whole else ''}number from {lowest} to {highest}"
    expected += f"{'' if whole else f', such as {lowest}'}, without quotes"

    def check(walk: Walk, node: Node, key: str) -> Any:
        word = word_of(node)
        number = kind(word) if re.fullmatch(pattern, word) else -1
        if not is_plain(node) or not limits.lowest <= number <= limits.highest:
            walk.bad(node, key, expected)
        return number

    return check


def _yes_or_no(walk: Walk, node: Node, key: str) -> bool:
    word = word_of(node)
    if not is_plain(node) or word not in _TRUE + _FALSE:
        walk.bad(node, key, "yes or no, without quotes", _nearest(word, ("yes", "no")))
    return word in _TRUE


def _text(pattern: str, expected: str) -> Check:
    def check(walk: Walk, node: Node, key: str) -> str:
        word = word_of(node)
        is_text = isinstance(node, ScalarNode) and not is_null(node) and word.isprintable()
        if not is_text or not re.fullmatch(pattern, word):
            walk.bad(node, key, expected)
        return word

    return check


def _duration(limits_s: Seconds) -> Check:
    units = "|".join(_UNIT_MS)
    lowest, highest = map(duration_text, limits_s)
    expected = f"a whole number with its unit ({', '.join(_UNIT_MS)}), from {lowest} to {highest}"

    def check(walk: Walk, node: Node, key: str) -> float:
        word = word_of(node)
        match = re.fullmatch(f"([0-9]{{1,9}})({units})", word)
        seconds = int(match[1]) * _UNIT_MS[match[2]] / 1000 if match else -1.0
        if not limits_s.lowest <= seconds <= limits_s.highest:
            is_bare = re.fullmatch("[1-9][0-9]?", word)
            walk.bad(node, key, expected, (f"{word}s",) if is_bare else ())
        return seconds

    return check


def _span(walk: Walk, node: Node, key: str) -> str | None:
    word = word_of(node)
    if not word or len(word) > _MAX_SPAN:
        walk.bad(node, key, _SPAN)
        return None
    try:
        parse_span(word)
    except WindowSpecError as error:
        walk.bad(node, key, f"{_SPAN} ({error})")
        return None
    return word


def _spans(walk: Walk, node: Node, key: str) -> tuple[str, ...]:
    """A mistake in one span takes that span away, and not the window."""
    spans = _list_of(_span, 'a list such as ["02:00-05:00", "sat,sun 22:00-06:00"], or [] for never')(walk, node, key)
    return tuple(span for span in spans if span is not None)


def _or_null(check: Check) -> Check:
    return lambda walk, node, key: None if is_null(node) else check(walk, node, key)


def _zone(walk: Walk, node: Node, key: str) -> str:
    word = word_of(node)
    try:
        # right/... counts leap seconds, which no node's clock does; posix/... is the same zone once more.
        known = not word.startswith(("right/", "posix/")) and ZoneInfo(word) is not None
    except (KeyError, ValueError, OSError):  # no such zone; no name of one; its file cannot be read
        known = False
    if not known:
        nearest = _nearest(word, available_timezones(), 3)
        expected = "a time zone such as Europe/Warsaw, or null for the node's own"
        if word.startswith(_LEGACY_ZONES):
            expected += " (Debian 13 has the old names in its package tzdata-legacy)"
        walk.bad(node, key, expected, nearest)
    return word


def _chain(walk: Walk, node: Node, key: str) -> str:
    word = word_of(node)
    if not word.startswith("/") or not word.isprintable():
        walk.bad(node, key, "the absolute path of a script, or null")
    elif posixpath.normpath(word).startswith(_OWN_FILES):
        walk.bad(node, key, "a script of your own: pvehook would call itself without end")
    return word


def _entries(
    walk: Walk, node: Node, key: str, checks: dict[str, Check], needed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The checked entries of a list's item. `needed` are those that must be there, each with what is expected."""
    entries = entries_of(walk, node, key, tuple(checks))
    values = {name: checks[name](walk, value, f"{key}.{name}") for name, (_, value) in entries.items()}
    for name, expected in needed.items():
        if isinstance(node, MappingNode) and name not in entries:
            walk.bad(node, f"{key}.{name}", expected, found="nothing")
    if isinstance(node, MappingNode) and "guests" in checks and not any(values.get(name) for name in _WHOM_CHECKS):
        walk.bad(node, key, "at least one of guests, tags, names: whom the rule is for", found="no guest at all")
    return values


def _governor_rule(walk: Walk, node: Node, key: str) -> GovernorRule:
    checks = {**_WHOM_CHECKS, "mode": _choice(get_args(GovernorMode)), "spare": _choice(get_args(Spare))}
    values = _entries(walk, node, key, checks)
    if isinstance(node, MappingNode) and not {"mode", "spare"} & values.keys():
        walk.bad(node, key, "mode, spare or both: what the rule changes", found="neither mode nor spare")
    return GovernorRule(**values)


def _also(walk: Walk, node: Node, key: str) -> AlsoProcess:
    return AlsoProcess(**{"command": "", "mentions": "", **_entries(walk, node, key, _ALSO_CHECKS, _ALSO_EXPECTED)})


def _freeze_rule(walk: Walk, node: Node, key: str) -> FreezeRule:
    values = _entries(walk, node, key, _RULE_CHECKS)
    mode = values.get("mode", "auto")
    if mode == "mountpoints" and not values.get("mountpoints"):
        walk.bad(node, f"{key}.mountpoints", "what to freeze, since the mode is mountpoints", found="nothing")
    if mode != "mountpoints" and "mountpoints" in values:
        walk.bad(node, f"{key}.mode", "mountpoints, since the rule has a list of them", found=printable(mode))
    if mode in ("never", "off") and "except" in values:
        walk.bad(node, f"{key}.except", f"no exception from {mode}", found="a list")
    values["leave_out"] = values.pop("except", ())
    return FreezeRule(**values)


_LEGACY_ZONES = ("US/", "Canada/", "Brazil/", "Chile/", "Mexico/")
"""The families of names that are in tzdata itself up to Debian 12."""
_TRUE = ("yes", "true", "on")
_FALSE = ("no", "false", "off")
_SPAN = "a span of time, in quotes if it has a comma"
_ID = r"[^\s,]+"
# As guest-get-fsinfo has them, for the agent compares letter by letter: it knows / and /home, but no /home/ .
_MOUNTPOINT = _text(r"/|/.*[^/]|[A-Za-z]:\\.*", "a path such as /home, without a slash at its end, or C:\\")
_MOUNTPOINTS = _list_of(_MOUNTPOINT, "a list of mountpoints such as [/, /home]")
_GUESTS = _list_of(_of_hint(Vmid), "a list of guest numbers such as [101, 102]")
_WHOM_CHECKS: dict[str, Check] = {
    "guests": _GUESTS,
    "tags": _list_of(_text(r"[^\s,;]+", "a tag"), "a list of tags"),
    "names": _list_of(_text(".+", "a name, or a pattern with * and ?"), "a list of names such as [web, db-*]"),
}
_RULE_CHECKS: dict[str, Check] = {
    **_WHOM_CHECKS,
    "mode": _choice(get_args(FreezeRuleMode)),
    "mountpoints": _MOUNTPOINTS,
    "except": _MOUNTPOINTS,
}
_ALSO_EXPECTED = {
    "command": "the name of a program, without its path",
    "mentions": 'dump-directory, or a text of the command line, or "" for any',
}
_ALSO_CHECKS = {
    "command": _text("[^/]+", _ALSO_EXPECTED["command"]),
    "mentions": _text(".*", _ALSO_EXPECTED["mentions"]),
}

_LISTS_AND_PATHS: dict[str, Check] = {
    "window.open": _spans,
    "window.timezone": _or_null(_zone),
    "window.exempt.guests": _GUESTS,
    "window.exempt.jobs": _list_of(_text(_ID, "the id of a job"), "a list of job ids"),
    "window.exempt.storages": _list_of(_text(_ID, "the id of a storage"), "a list of storage ids"),
    "io_priority.also": _list_of(_also, "a list of entries with command and mentions"),
    "freeze.rules": _list_of(_freeze_rule, "a list of rules, each with guests, tags or names"),
    "metrics.textfile": _or_null(_text(r"/.*\.prom", "the absolute path of a file that ends in .prom, or null")),
    "governor.rules": _list_of(_governor_rule, "a list of rules, each with mode or spare, and guests, tags or names"),
    "chain": _or_null(_chain),
}


def _checks_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Check]]:
    for field, hint in hints_of(kind).items():
        key = key_of(prefix, field)
        if hasattr(hint, "_fields"):
            yield from _checks_of(hint, f"{key}.")
        else:
            yield key, _LISTS_AND_PATHS.get(key) or _of_hint(hint)


CHECKS: dict[str, Check] = dict(_checks_of(Config))
"""Every key that there is, by its dotted path."""
