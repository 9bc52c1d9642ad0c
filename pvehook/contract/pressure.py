"""Pressure stall information (PSI), the same text on the host, in a cgroup and inside a guest.

    some avg10=0.00 avg60=0.00 avg300=0.00 total=1234567
    full avg10=0.00 avg60=0.00 avg300=0.00 total=234567

`some`: at least one task waited for this resource; `full`: every non-idle task did. `total` is in microseconds since
boot (or since the cgroup was created). The system's `full` line of cpu exists since 5.13 and is always 0. Source:
Documentation/accounting/psi.rst of Linux.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Resource = Literal["cpu", "io", "memory"]
RESOURCES: Final[tuple[Resource, ...]] = ("cpu", "io", "memory")


class PressureTotals(NamedTuple):
    """Microseconds stalled so far; they only grow."""

    some_us: int
    full_us: int


def parse_pressure(text: str) -> PressureTotals:
    """Parses one file. Raises ValueError for any other text; a missing `full` counts as 0."""
    totals = {}
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("some", "full") and words[-1].startswith("total="):
            totals[words[0]] = int(words[-1].removeprefix("total="))
    if "some" not in totals or any(not 0 <= total < 2**63 for total in totals.values()):
        raise ValueError(f"no pressure totals in {text[:60]!r}")
    return PressureTotals(totals["some"], totals.get("full", 0))
