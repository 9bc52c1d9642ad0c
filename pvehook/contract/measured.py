"""Three results that must never be mixed up: a value (zero is one), absent, broken.

    0.0                                      measured, and it is zero
    Absent("the guest runs no agent")        there is nothing to measure; nothing needs fixing
    Broken("QMP did not answer within 5 s")  there is, but it cannot be read; something may need fixing

`Measured[float]` is any of them. Never count absent or broken as zero: such a sum is wrong.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Absent(NamedTuple):
    """There is nothing to measure. `why` is for an administrator."""

    why: str


class Broken(NamedTuple):
    """It is there but cannot be read. `why` is for an administrator."""

    why: str


Measured: TypeAlias = T | Absent | Broken


def value_of(measured: Measured[T]) -> T | None:
    """The value, or None where it is absent or broken. Use it only where that difference does not matter."""
    return None if isinstance(measured, (Absent, Broken)) else measured
