"""From the text of a file to YAML nodes that know their lines, and the problems found on the way.

Nobody has to trust these files: size, depth and the numbers of values and problems have limits, no anchors are taken.
Scalars are taken as they are written; YAML 1.1 reads `off` as false, `22:00` as 1320 and `010` as 8.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pvehook.contract.text import printable

MAX_FILE_BYTES = 256 << 10
MAX_DEPTH = 20
MAX_EVENTS = 10_000  # keys, values, and the beginnings and ends of lists and mappings
MAX_PROBLEMS = 50

MAX_SHOWN = 60
"""How much of a value a message shows, in characters."""

# The one in C is ten times faster, but not every build of PyYAML has it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML forbids, and its three line breaks that no editor counts as such: line numbers would go wrong.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = ("", "~", "null", "Null", "NULL")


class ConfigProblem(NamedTuple):
    """One thing to fix. `key` is the dotted path, empty when the problem is the file as a whole."""

    file: str
    line: int
    key: str
    found: str
    expected: str
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " + (f"{self.key}: " if self.key else "")
        hint = f"; did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        return f"{where}found {self.found}, expected {self.expected}{hint}"


class StopReading(Exception):
    """There is nothing to gain from reading on: the problems noted so far are the answer."""


class Walk:
    """Collects the problems of one file."""

    def __init__(self, file_name: str) -> None:
        self.problems: list[ConfigProblem] = []
        self._file_name = file_name

    def bad(
        self, node: Node, key: str, expected: str, nearest: tuple[str, ...] = (), found: str | None = None
    ) -> None:
        """Notes that `node` is not what was expected. Raises StopReading when there are too many problems."""
        self._add(line_of(node), key, found or _found(node), expected, nearest)
        if len(self.problems) == MAX_PROBLEMS:
            self.give_up(line_of(node), f"{MAX_PROBLEMS} problems", "fewer; the rest was not checked")

    def give_up(self, line: int, found: str, expected: str) -> None:
        """Notes a problem of the whole file and raises StopReading."""
        self._add(line, "", found, expected, ())
        raise StopReading

    def _add(self, line: int, key: str, found: str, expected: str, nearest: tuple[str, ...]) -> None:
        self.problems.append(ConfigProblem(self._file_name, line, key, found, expected, nearest))


def compose(walk: Walk, text: str) -> Node | None:
    """The root node, None for a file without content. Every limit is checked before a tree is built. Raises
    StopReading, after noting why, for a text that is no YAML or breaks a limit."""
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_FILE_BYTES:
        walk.give_up(1, f"{size_bytes} bytes", f"at most {MAX_FILE_BYTES}")
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        line = text.count("\n", 0, forbidden.start()) + 1
        walk.give_up(line, f"the character U+{ord(forbidden[0]):04X}", "plain text in UTF-8")
    try:
        _refuse_what_grows(walk, text)
        return yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        _give_up_on_syntax(walk, error, text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The loader in Python lets through what int() and chr() say about numbers in directives and escapes.
        walk.give_up(1, f"broken YAML ({printable(str(error), MAX_SHOWN)})", "YAML")
    return None


def _refuse_what_grows(walk: Walk, text: str) -> None:
    """Anchors multiply, nesting eats the stack of the composer, tags name types: none of them is needed here. Events
    come one by one, so this reads no further than the first offence."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            walk.give_up(line, "an anchor or alias", "values written out (quote one that begins with & or *)")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            walk.give_up(line, "a tag", "values without tags (quote one that begins with !)")
        if number == MAX_EVENTS:
            walk.give_up(line, f"more than {MAX_EVENTS} keys and values", "a few dozen as in the example")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                walk.give_up(line, f"nesting over {MAX_DEPTH} levels", "nesting as in the example")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _give_up_on_syntax(walk: Walk, error: yaml.MarkedYAMLError, text: str) -> None:
    lines = text.splitlines() or [""]
    # libyaml's end of file is one line below the last.
    line = min(error.problem_mark.line + 1, len(lines)) if error.problem_mark else 1
    what = error.problem or "it cannot be read"
    if error.context and error.context_mark:
        what += f" {error.context} from line {error.context_mark.line + 1}"
    expected = "YAML indented by spaces" if "\t" in lines[line - 1] else "YAML"
    walk.give_up(line, f"broken YAML ({printable(what)})", expected)


def line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def is_plain(node: Node) -> bool:
    """Whether this is a scalar without quotes."""
    return isinstance(node, ScalarNode) and not node.style


def is_null(node: Node) -> bool:
    return is_plain(node) and node.value in _NULLS


def word_of(node: Node) -> str:
    """A scalar as it is written; empty for all else, so that every check that wants a text refuses it."""
    return str(node.value) if isinstance(node, ScalarNode) and not is_null(node) else ""


def _found(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if is_null(node):
        return "nothing"
    return printable(node.value, MAX_SHOWN) if is_plain(node) else f'"{printable(node.value, MAX_SHOWN)}"'
