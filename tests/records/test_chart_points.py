"""A night's chart: never more than so many pieces, and nothing of it lost."""

from __future__ import annotations

import pytest

from pvehook.records.chart_points import ChartPoints, Piece
from pvehook.records.stall_record import POINTS_KEPT
from tests.rules.test_latency import served


@pytest.mark.parametrize("looks", [1, POINTS_KEPT, POINTS_KEPT + 1, 1000, 28_800])
def test_however_long_the_night_its_chart_is_bounded_and_whole(looks: int) -> None:
    backup = ChartPoints()
    for number in range(looks):
        backup.add(Piece((number + 1) * 0.5, 0.5, served(2.0), 0.25, 10))
    points = backup.points()
    assert len(points) <= POINTS_KEPT
    assert len(points) >= min(looks, POINTS_KEPT // 2)
    assert sum(point.operations for point in points) == looks
    assert sum(point.lasted_s for point in points) == pytest.approx(looks * 0.5)
    assert sum(point.stalled_s for point in points) == pytest.approx(looks * 0.25)
    assert sum(point.backup_bytes for point in points) == 10 * looks
    assert [point.at_s for point in points] == sorted(point.at_s for point in points)
    assert points[-1].at_s == looks * 0.5


def test_a_joined_piece_has_the_percentile_of_all_its_requests() -> None:
    backup = ChartPoints()
    for number in range(POINTS_KEPT + 1):
        backup.add(Piece(number, 1.0, served(*([5000.0] if number == 0 else [1.0])), 0.0, 0))
    first = backup.points()[0]
    assert first.operations == 2
    assert first.p99_ms == pytest.approx(5000, rel=0.07)


def test_a_piece_without_a_request_has_no_latency() -> None:
    backup = ChartPoints()
    backup.add(Piece(1.0, 1.0, served(), 0.0, 0))
    assert backup.points()[0].p99_ms is None
