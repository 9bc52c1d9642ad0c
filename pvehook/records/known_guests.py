"""The guests of the node as the history knows them: when each was first seen, and when it was last reported overdue."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple


class KnownGuest(NamedTuple):
    """Times are seconds since the epoch."""

    first_seen_s: float
    overdue_logged_s: float | None
    """When the journal last had that it is overdue; None: it was not."""


def known_guests(history: sqlite3.Connection) -> dict[int, KnownGuest]:
    """By number. Raises sqlite3.DataError for a damaged row."""
    found = {}
    for vmid, first_seen_s, overdue_logged_s in history.execute(
        "SELECT vmid, first_seen_s, overdue_logged_s FROM guests"
    ):
        if not isinstance(first_seen_s, float) or not isinstance(overdue_logged_s, float | None):
            raise sqlite3.DataError("damaged: a guest's times of another kind")
        found[vmid] = KnownGuest(first_seen_s, overdue_logged_s)
    return found
