"""Pressure stall information (PSI), the same text on the host, in a cgroup and inside a guest.

    some avg10=0.00 avg60=0.00 avg300=0.00 total=1234567
    full avg10=0.00 avg60=0.00 avg300=0.00 total=234567

`some`: at least one task waited for this resource; `full`: all that were not idle did. `total` is in microseconds since
boot (or since the cgroup was made). Source: Documentation/accounting/psi.rst of Linux. A system's `full` line of cpu is
there since 5.13 and always 0.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Resource = Literal["cpu", "io", "memory"]
RESOURCES: Final[tuple[Resource, ...]] = ("cpu", "io", "memory")


class PressureTotals(NamedTuple):
    """Microseconds stalled, ever growing."""

    some_us: int
    full_us: int


def parse_pressure(text: str) -> PressureTotals:
    """The totals of one file. Raises ValueError for anything that is no such file; a missing `full` counts as 0."""
    totals = {}
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("some", "full") and words[-1].startswith("total="):
            totals[words[0]] = int(words[-1].removeprefix("total="))
    if "some" not in totals or any(not 0 <= total < 2**63 for total in totals.values()):
        raise ValueError(f"no pressure totals in {text[:60]!r}")
    return PressureTotals(totals["some"], totals.get("full", 0))
