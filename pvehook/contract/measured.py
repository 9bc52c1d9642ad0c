"""Three results that must never look alike: a value (zero is one), absent, broken.

    0.0                                      it was looked at, and it is zero
    Absent("the guest runs no agent")        there is nothing to look at; nobody has to mend anything
    Broken("QMP did not answer within 5 s")  there is, and it could not be read; somebody may have to

`Measured[float]` is any of them. What is absent or broken is never counted as zero: a sum over it is not a sum.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Absent(NamedTuple):
    """There is nothing to look at. `why` is for an administrator."""

    why: str


class Broken(NamedTuple):
    """It is there and could not be read. `why` is for an administrator."""

    why: str


Measured: TypeAlias = T | Absent | Broken


def value_of(measured: Measured[T]) -> T | None:
    """The value, or None for what is absent or broken: only where the difference plays no part."""
    return None if isinstance(measured, (Absent, Broken)) else measured
