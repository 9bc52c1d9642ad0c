"""Who gives way to whom. Whole months: test_months.py."""

from __future__ import annotations

from pvehook.rules.fair_turns import GivesWay, Night, Waiting, gives_way
from pvehook.rules.forecast import DAY_S

HOUR = 3600.0
NIGHT = Night(3 * HOUR, 3 * HOUR)


def guest(vmid: int, hours: float, *nights_ago: int, is_bound: bool = True) -> Waiting:
    backups_s = tuple(each * DAY_S for each in nights_ago)
    return Waiting(vmid, hours * HOUR, 0.0, backups_s, backups_s[0] if backups_s else None, is_bound)


def test_while_all_fit_nobody_gives_way() -> None:
    assert gives_way([guest(101, 1, 1), guest(102, 1, 1), guest(103, 1, 5)], [], NIGHT) is None


def test_the_last_one_needs_to_begin_and_not_to_end_in_time() -> None:
    coming = [guest(101, 1.1, 1), guest(102, 1.8, 1), guest(103, 2, 5)]
    assert gives_way(coming, [], NIGHT) is None
    must_end = NIGHT._replace(must_end=True)
    assert gives_way(coming, [], must_end) is not None


def test_who_was_backed_up_last_gives_way_to_who_waited_longer() -> None:
    coming = [guest(101, 2, 1), guest(102, 2, 1), guest(103, 2, 2)]
    assert gives_way(coming, [], NIGHT) is None, "the first one still fits before 103"
    assert gives_way(coming[1:], [], Night(HOUR, 3 * HOUR)) == GivesWay((103,), 1)


def test_never_backed_up_is_the_longest_wait() -> None:
    assert gives_way([guest(101, 2, 9), guest(102, 1, 9), guest(103, 2)], [], Night(2 * HOUR, 3 * HOUR)) is not None


def test_of_two_with_the_same_last_night_the_nights_before_count() -> None:
    both = [guest(101, 2, 1, 2), guest(102, 2, 1, 3)]
    assert gives_way(both, [], Night(HOUR, 3 * HOUR)) == GivesWay((102,), 1)
    same = [guest(101, 2, 1, 2), guest(102, 2, 1, 2)]
    assert gives_way(same, [], Night(HOUR, 3 * HOUR)) is None


def test_nobody_gives_way_to_one_who_would_not_come_in_time_anyway() -> None:
    late_anyway = [guest(101, 0.5, 1), guest(103, 4, 3, is_bound=False), guest(104, 1, 2)]
    assert gives_way(late_anyway, [], NIGHT) is None


def test_a_guest_that_the_window_does_not_bind_gives_way_to_nobody() -> None:
    assert gives_way([guest(101, 4, 1, is_bound=False), guest(102, 1, 5)], [], NIGHT) is None


def test_a_guest_of_which_nothing_is_known_has_its_turn() -> None:
    assert gives_way([guest(101, 0, 1), guest(102, 1, 5)], [], NIGHT) is None


def test_a_guest_that_is_longer_than_the_night_has_its_turn_when_it_waited_longest() -> None:
    others = [guest(102, 1, 1), guest(103, 1, 1)]
    assert gives_way([guest(101, 5, 2), *others], [], NIGHT) is None
    assert gives_way([guest(101, 5, 1), *[each._replace(backups_s=(2 * DAY_S,)) for each in others]], [], NIGHT) == (
        GivesWay((102, 103), 1)
    )


def test_one_that_always_fails_and_is_longer_than_the_night_does_not_come_first_every_night() -> None:
    failing = Waiting(101, 5 * HOUR, 0.0, (30 * DAY_S,), 1 * DAY_S)
    assert gives_way([failing, guest(102, 1, 2)], [], NIGHT) is not None


def test_who_gave_way_earlier_in_this_run_counts_for_the_next_ones_turn() -> None:
    refused = [guest(100 + each, 2, 2) for each in range(1, 5)]
    why = gives_way([guest(110, 2, 1), guest(111, 2, 2)], refused, Night(HOUR, 3 * HOUR))
    assert why == GivesWay((111,), 3), "two have their turn in each of the next runs"
