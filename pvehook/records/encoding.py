"""Records to JSON and back, by their types.

    StallRecord(vmid=101, host=Absent("..."), ...)   <->   {"vmid": 101, "host": {"absent": "..."}, ...}

Named tuples and dataclasses become objects with their fields' names, an absent figure {"absent": "why"}, a broken one
{"broken": "why"}. Reading checks every type: a file of an older layout or a damaged one is a ValueError, never a
half-read record.
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pvehook.contract.measured import Absent, Broken


def encode(value: Any) -> Any:  # noqa: PLR0911  (a line for each kind of value)
    """For json.dumps."""
    if value is None or isinstance(value, (str, int)):  # most of it, thousands in a chart
        return value
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Absent):
        return {"absent": value.why}
    if isinstance(value, Broken):
        return {"broken": value.why}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: encode(each) for name, each in zip(value._fields, value, strict=True)}
    if isinstance(value, (tuple, list)):
        return [encode(each) for each in value]
    if isinstance(value, dict):
        return {key: encode(each) for key, each in value.items()}
    return value


def decode(kind: Any, plain: Any) -> Any:
    """The value of type `kind` that `encode` turned into this. Raises ValueError only: an older layout, or
    a damaged file."""
    try:
        return _read(kind, plain)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"no {getattr(kind, '__name__', kind)}: {error}") from error


def _read(kind: Any, plain: Any) -> Any:  # noqa: PLR0911  (a line for each kind of type)
    if type(plain) is kind:  # most of what there is to read are numbers, thousands in a chart
        return plain
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_one_of(get_args(kind), plain)
    if kind is Any:
        return plain
    if origin in (tuple, list):
        if not isinstance(plain, list):
            raise ValueError(f"{plain!r:.40} is no list")
        return origin(_read(get_args(kind)[0], each) for each in plain)
    if origin is dict:
        return {key: _read(get_args(kind)[1], each) for key, each in plain.items()}
    if origin is Literal:
        if plain not in get_args(kind):
            raise ValueError(f"{plain!r:.40} is none of {get_args(kind)}")
        return plain
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], each) for name, each in plain.items()})
    if kind is float and type(plain) is int:
        return float(plain)
    if type(plain) is not kind:
        raise ValueError(f"{plain!r:.40} is no {kind.__name__}")
    return plain


def _read_one_of(kinds: tuple[Any, ...], plain: Any) -> Any:
    if plain is None and type(None) in kinds:
        return None
    if isinstance(plain, dict) and Absent in kinds and len(plain) == 1:
        if "absent" in plain:
            return Absent(str(plain["absent"]))
        if "broken" in plain:
            return Broken(str(plain["broken"]))
    (kind,) = (each for each in kinds if each not in (Absent, Broken, type(None)))
    return _read(kind, plain)


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
