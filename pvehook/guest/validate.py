"""The JSON that is sent to agent and monitor, and the checks of what they answer: it has the shape of an answer, or it
is a BadReply. Every check names its source."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pvehook.contract.text import printable
from pvehook.errors import BadReply, NotActive, Refused

ITEMS_LIMIT = 8192
"""Entries of one list. A web host with a bind mount for every user has thousands of filesystems."""
TEXT_LIMIT = 4096
"""Characters of one text: PATH_MAX of Linux, the longest thing that is still a mountpoint."""


def mapping(value: object, *, source: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadReply(f"{source}: expected an object, seen {_seen(value)}")
    return value


def items(value: object, *, source: str) -> list[Mapping[str, object]]:
    return [mapping(item, source=source) for item in _bounded_list(value, source=source)]


def numbers(value: object, *, source: str) -> tuple[int, ...]:
    found = _bounded_list(value, source=source)
    if {type(item) for item in found} != {int} or min(found) < 0 or max(found) >= 2**63:  # type: ignore[type-var, operator]
        for item in found:  # which one it is
            whole_number(item, source=source)
    return tuple(found)  # type: ignore[arg-type]


def text(fields: Mapping[str, object], key: str, *, source: str) -> str:
    """The text under `key`, of a bounded length. Still the peer's text: `printable` before it is shown."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise BadReply(f"{source}: `{key}` should be a text, seen {_seen(value)}")
    if len(value) > TEXT_LIMIT:
        raise BadReply(f"{source}: `{key}` has {len(value)} characters, more than {TEXT_LIMIT}")
    return value


def integer(fields: Mapping[str, object], key: str, *, source: str) -> int:
    return whole_number(fields.get(key), source=f"{source}: `{key}`")


def boolean(fields: Mapping[str, object], key: str, *, source: str) -> bool:
    value = fields.get(key)
    if not isinstance(value, bool):
        raise BadReply(f"{source}: `{key}` should be true or false, seen {_seen(value)}")
    return value


def whole_number(value: object, *, source: str) -> int:
    """`value` as an integer of at least 0 and of QEMU's own 63 bits: nothing we ask for counts below or above."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise BadReply(f"{source}: expected a whole number, seen {_seen(value)}")
    return value


def is_number(value: object, expected: int) -> bool:
    """Whether `value` is this number: `True == 1` in Python, and a peer may send what it likes."""
    return type(value) is int and value == expected


def request(command: str, arguments: Mapping[str, object] | None = None, **more: object) -> bytes:
    fields = {"execute": command, **more} | ({"arguments": arguments} if arguments is not None else {})
    return json.dumps(fields).encode() + b"\n"


def returned(reply: Mapping[str, object], *, source: str) -> object:
    """What is under `return`. An `error` is raised as Refused or NotActive."""
    if "error" not in reply and "return" not in reply:
        raise BadReply(f"{source}: the answer holds neither `return` nor `error`")
    if "error" not in reply:
        return reply["return"]
    error = mapping(reply["error"], source=f"{source}: `error`")
    kind, description = error.get("class"), error.get("desc")
    if not isinstance(kind, str) or not isinstance(description, str):
        raise BadReply(f"{source}: an `error` without `class` and `desc`")
    refused = NotActive if kind == "DeviceNotActive" else Refused
    message = f"{source}: refused: {printable(kind, 40)}: {printable(description)}"
    raise refused(message, kind=kind, description=description)


def _bounded_list(value: object, *, source: str) -> list[object]:
    if not isinstance(value, list):
        raise BadReply(f"{source}: expected a list, seen {_seen(value)}")
    if len(value) > ITEMS_LIMIT:
        raise BadReply(f"{source}: a list of {len(value)} entries, more than {ITEMS_LIMIT}")
    return value


def _seen(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return printable(f"'{value[:80]}'" if isinstance(value, str) else str(value), 80)
