"""Which notices were given tonight, so that each is given once, whichever daemon comes to it.

    /var/lib/pvehook/told.json    {"v": 1, "night_s": 1795521600.0, "sent": {"guest-stalled": [[101, 102], [104]]}}

For each event the guests of each notice, for the night from noon to noon that began at `night_s`. A file that is not
readable, or of another night, tells of nothing: at worst something is told twice.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from pvehook.host.regular_file import DAMAGED, read_regular_file, replace_file
from pvehook.records.notice import Notice

LAYOUT: Final = 1
FILE_LIMIT_BYTES: Final = 1 << 18


class ToldTonight(NamedTuple):
    night_s: float
    """When the night began, in seconds since the epoch."""
    sent: dict[str, list[list[int]]]

    def guests(self) -> dict[str, frozenset[int]]:
        """By event."""
        return {event: frozenset(vmid for each in given for vmid in each) for event, given in self.sent.items()}

    def number(self, event: str) -> int:
        """Of notices of this event."""
        return len(self.sent.get(event, ()))

    def add(self, notice: Notice) -> None:
        self.sent.setdefault(notice.event, []).append(list(notice.vmids))


def read_told(path: str, night_s: float) -> ToldTonight:
    """What was told in this night."""
    try:
        stored = json.loads(read_regular_file(path, FILE_LIMIT_BYTES))
        if stored["v"] != LAYOUT or stored["night_s"] != night_s:
            return ToldTonight(night_s, {})
        sent = {str(event): [[int(vmid) for vmid in each] for each in given] for event, given in stored["sent"].items()}
        return ToldTonight(night_s, sent)
    except DAMAGED:
        return ToldTonight(night_s, {})


def write_told(path: str, told: ToldTonight) -> None:
    """Raises OSError."""
    replace_file(path, json.dumps({"v": LAYOUT, **told._asdict()}) + "\n")
