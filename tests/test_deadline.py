"""A deadline is one moment for all that wait for it."""

from __future__ import annotations

import time

import pytest

from pvehook.deadline import Deadline


def test_a_part_of_it_never_ends_later() -> None:
    phase = Deadline.at(time.monotonic() + 5)
    assert phase.within(60) == phase
    assert phase.within(1).at_s < phase.at_s


@pytest.mark.parametrize("passed", [Deadline.after(0), Deadline.at(time.monotonic() - 10)])
def test_one_that_has_passed_leaves_nothing_and_no_part_more(passed: Deadline) -> None:
    assert passed.left_s() == 0.0
    assert passed.within(60).left_s() == 0.0
    assert passed.total_s >= 0.0
