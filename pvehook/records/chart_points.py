"""A backup's chart while it grows: at most POINTS_KEPT pieces, however long the backup takes.

Pieces grow: when there are too many, neighbours are joined two by two and from then on each takes twice as long. Each
keeps its whole histogram until the end, because a percentile of two pieces cannot be had from their percentiles.
"""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.latency import RequestCounters
from pvehook.records.stall_record import POINTS_KEPT, Point
from pvehook.rules.latency import quantile_ms, sum_of


class Piece(NamedTuple):
    """One sample, or several joined."""

    at_s: float
    """Its end, in seconds since the backup's start."""
    lasted_s: float
    completed: RequestCounters
    stalled_s: float
    backup_bytes: int


class ChartPoints:
    """Add each sample; take `points` at the end."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._samples_a_piece = 1
        self._samples_in_last = 0

    def add(self, piece: Piece) -> None:
        """One sample."""
        if 0 < self._samples_in_last < self._samples_a_piece:
            self._pieces[-1] = _joined(self._pieces[-1], piece)
            self._samples_in_last += 1
            return
        self._pieces.append(piece)
        self._samples_in_last = 1
        if len(self._pieces) > POINTS_KEPT:
            # An odd one at the end stays alone: half a piece, which the next samples fill.
            whole = len(self._pieces) // 2 * 2
            pairs = zip(self._pieces[:whole:2], self._pieces[1:whole:2], strict=True)
            self._pieces = [_joined(one, other) for one, other in pairs] + self._pieces[whole:]
            self._samples_a_piece *= 2

    def points(self) -> tuple[Point, ...]:
        """The chart so far."""
        return tuple(
            Point(
                piece.at_s,
                piece.lasted_s,
                quantile_ms(piece.completed.histogram, 0.99) if piece.completed.histogram else None,
                piece.completed.operations,
                piece.stalled_s,
                piece.backup_bytes,
            )
            for piece in self._pieces
        )


def _joined(one: Piece, other: Piece) -> Piece:
    return Piece(
        other.at_s,
        one.lasted_s + other.lasted_s,
        sum_of((one.completed, other.completed)),
        one.stalled_s + other.stalled_s,
        one.backup_bytes + other.backup_bytes,
    )
