"""The guests of the node, as of the last run's end: since when each is promised backups, and whether it is overdue."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple


class KnownGuest(NamedTuple):
    """Times are seconds since the epoch."""

    promised_s: float | None
    """Since when, without a gap, a job of this node takes it; None: none does."""
    overdue_s: float | None
    """When it was found to be overdue, at the end of the last run; None: it was not."""
    overdue_logged_s: float | None
    """When the journal last had that it is overdue; None: it never had."""


def known_guests(history: sqlite3.Connection) -> dict[int, KnownGuest]:
    """By number. Raises sqlite3.DataError for a damaged row."""
    found = {}
    for vmid, *times in history.execute("SELECT vmid, promised_s, overdue_s, overdue_logged_s FROM guests"):
        if not all(isinstance(each, float | None) for each in times):
            raise sqlite3.DataError("damaged: a guest's times of another kind")
        found[vmid] = KnownGuest._make(times)
    return found


def is_overdue(guest: KnownGuest, last_good_s: float | None) -> bool:
    """Until its first good backup, which may have come since the last run's end."""
    return guest.overdue_s is not None and (last_good_s is None or last_good_s < guest.overdue_s)
