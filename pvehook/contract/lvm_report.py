"""What `lvs --reportformat json` says of logical volumes: lvmreport(7), and lvs(8) for the letters of lv_attr.

    {"report": [{"lv": [{"vg_name": "pve", "lv_name": "data", "lv_attr": "twi-aotz--", "lv_size": "1000204886016",
      "origin": "", "data_percent": "61.24", "metadata_percent": "2.11", "vg_free": "17175674880"}]}]}
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from pvehook.contract.text import printable

FIELDS: Final = ("vg_name", "lv_name", "lv_attr", "lv_size", "origin", "data_percent", "metadata_percent", "vg_free")
"""To be asked for, in bytes without a unit."""
_NAME_CHARACTERS: Final = 128


class LogicalVolume(NamedTuple):
    group: str
    name: str
    attr: str
    """Ten letters: the first is the kind, the fifth the state, the ninth the health."""
    size_bytes: int
    origin: str
    """What a snapshot is of; "" for others."""
    data_percent: float | None
    """How full a thin pool is, or the room of a snapshot. None: it has none, or is not active."""
    metadata_percent: float | None
    group_free_bytes: int
    """What the volume group has left."""

    @property
    def full_name(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def is_thin_pool(self) -> bool:
        return self.attr[:1] == "t"

    @property
    def is_thick_snapshot(self) -> bool:
        """A thin one is a volume like others: `V`."""
        return self.attr[:1] in ("s", "S")

    @property
    def trouble(self) -> str:
        """What LVM itself says is wrong; "" for nothing."""
        by_state = {"I": "invalid", "S": "invalid", "c": "its metadata must be checked", "C": "must be checked"}
        by_health = {"F": "failed", "D": "out of data space", "M": "read-only: its metadata is full or damaged"}
        return by_health.get(self.attr[8:9], "") or by_state.get(self.attr[4:5], "")


def parse_lvs(text: str) -> list[LogicalVolume]:
    """Raises ValueError for another text."""
    try:
        rows = [row for report in json.loads(text)["report"] for row in report["lv"]]
        return [_volume(row) for row in rows]
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no report of lvs: {error!r}") from error


def _volume(row: dict[str, Any]) -> LogicalVolume:
    group, name, attr, size, origin, data, metadata, free = (str(row[field]) for field in FIELDS)
    return LogicalVolume(
        printable(group, _NAME_CHARACTERS),
        printable(name, _NAME_CHARACTERS),
        attr,
        int(size),
        printable(origin, _NAME_CHARACTERS),
        float(data) if data else None,
        float(metadata) if metadata else None,
        int(free),
    )
