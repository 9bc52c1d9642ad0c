"""Round times of day along an axis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import Final

_TICKS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def round_times(began_s: float, duration_s: float, zone: tzinfo, most: int) -> Iterator[tuple[float, str]]:
    """At most `most` of them: seconds since `began_s`, and `02:30`, or `02:30:10` where they are that close."""
    step_s = next((step for step in _TICKS_S if duration_s / step <= most), _TICKS_S[-1])
    began = datetime.fromtimestamp(began_s, zone)
    seconds = began.hour * 3600 + began.minute * 60 + began.second + began.microsecond / 1e6
    at_s = -seconds % step_s
    while at_s < duration_s:
        at = datetime.fromtimestamp(began_s + at_s + 0.5, zone)
        yield at_s, f"{at:%H:%M}" if step_s >= 60 else f"{at:%H:%M:%S}"
        at_s += step_s
