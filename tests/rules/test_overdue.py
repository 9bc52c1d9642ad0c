"""Who is overdue, why, and what is offered to mend it."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from pvehook.rules.overdue import Facts, Promise, Turn, Verdict, judge
from pvehook.rules.window import Window, parse_span

WARSAW = ZoneInfo("Europe/Warsaw")
WINDOW = Window((parse_span("02:00-05:00"),), WARSAW)
NIGHTLY = Promise("nightly", "02:00", storage="nas", without="--exclude 140")
GOOD = datetime(2026, 11, 20, 4, 40, tzinfo=WARSAW)
CLOSED = "at 05:02 the backup window was closed (outside 02:00-05:00)"


def refused(*days: int, at: str = "05:02", reason: str = CLOSED) -> list[Turn]:
    hour, minute = map(int, at.split(":"))
    return [Turn(datetime(2026, 11, day, hour, minute, tzinfo=WARSAW), "refused", reason) for day in days]


def verdict(
    *promises: Promise,
    turns: list[Turn] | None = None,
    last_good: datetime | None = GOOD,
    now: datetime = datetime(2026, 11, 24, 5, 10, tzinfo=WARSAW),
    window: Window = WINDOW,
    disabled: tuple[str, ...] = (),
    overdue_after: int = 2,
) -> Verdict:
    facts = Facts(140, last_good, GOOD, promises or (NIGHTLY,), turns or [], disabled)
    return judge(facts, now, window, overdue_after)


def test_a_guest_whose_last_turn_was_good_misses_nothing() -> None:
    found = verdict(now=GOOD + timedelta(hours=1))
    assert found == Verdict(0, False, "", (), ())


def test_refused_night_after_night_it_is_overdue_and_the_cause_says_how_often() -> None:
    found = verdict(turns=refused(21, 22, 23, 24))
    assert (found.missed_turns, found.is_overdue) == (4, True)
    assert found.cause == f"refused 4 times: {CLOSED}"


def test_one_missed_turn_is_told_but_not_overdue() -> None:
    found = verdict(turns=refused(21), now=datetime(2026, 11, 21, 6, 0, tzinfo=WARSAW))
    assert (found.missed_turns, found.is_overdue) == (1, False)
    assert found.cause == f"refused once: {CLOSED}"


def test_overdue_after_is_a_number_of_turns() -> None:
    assert not verdict(turns=refused(21, 22, 23, 24), overdue_after=5).is_overdue
    assert verdict(turns=refused(21, 22, 23, 24), overdue_after=4).is_overdue


def test_a_turn_that_may_still_come_tonight_is_not_missed_yet() -> None:
    """At 02:10 the job runs, and this guest is its last."""
    at = datetime(2026, 11, 22, 2, 10, tzinfo=WARSAW)
    assert verdict(turns=refused(21), now=at).missed_turns == 1
    assert verdict(turns=refused(21), now=at + timedelta(hours=12)).missed_turns == 2


def test_a_weekly_job_is_not_late_in_the_middle_of_the_week() -> None:
    weekly = Promise("weekly", "sat 02:00")
    good = datetime(2026, 11, 14, 3, 0, tzinfo=WARSAW)
    assert verdict(weekly, last_good=good).missed_turns == 1
    assert not verdict(weekly, last_good=good).is_overdue
    assert verdict(weekly, last_good=good, now=datetime(2026, 11, 28, 15, tzinfo=WARSAW)).is_overdue


def test_two_jobs_in_one_night_are_one_missed_night() -> None:
    other = Promise("second", "03:00")
    found = verdict(NIGHTLY, other, turns=refused(21), now=datetime(2026, 11, 21, 6, 0, tzinfo=WARSAW))
    assert found.missed_turns == 1


def test_without_a_good_backup_on_record_the_turns_count_since_a_job_takes_it() -> None:
    found = verdict(last_good=None, turns=refused(21, 22, 23, 24))
    assert found.is_overdue
    assert '--reason "no backup on record"' in found.ways_out[0]
    assert not verdict(last_good=None, now=GOOD + timedelta(hours=2)).is_overdue


def test_a_guest_in_no_job_is_never_overdue() -> None:
    facts = Facts(140, GOOD - timedelta(days=300), GOOD, (), ())
    assert judge(facts, GOOD, WINDOW, 1) == Verdict(0, False, "in no job", (), ())


def test_a_disabled_job_promises_nothing_and_is_named() -> None:
    facts = Facts(140, GOOD, GOOD, (), (), disabled_jobs=("old",))
    found = judge(facts, GOOD + timedelta(days=30), WINDOW, 2)
    assert (found.is_overdue, found.cause) == (False, "in no job that is enabled: job old would take it")


def test_a_schedule_that_is_not_understood_is_said_and_counts_nothing() -> None:
    found = verdict(Promise("odd", "every now and then"))
    assert (found.missed_turns, found.is_overdue) == (0, False)
    assert "job odd: its schedule 'every now and then' is not understood" in found.cause
    assert found.not_understood == (found.cause,)


def test_a_schedule_that_is_not_understood_does_not_hide_another_job() -> None:
    found = verdict(Promise("odd", "every now and then"), NIGHTLY, turns=refused(21, 22, 23, 24))
    assert found.is_overdue
    assert len(found.not_understood) == 1


def test_failures_are_told_with_the_last_reason() -> None:
    turns = [Turn(each.at, "failed", f"reason {each.at.day}") for each in refused(23, 24)]
    found = verdict(turns=turns)
    assert found.cause == "failed twice: reason 24; 2 more of its turns were not seen"
    assert found.ways_out == (
        'to back it up now: pvehook allow --vmid 140 --for 4h --reason "no backup since 2026-11-20" && '
        "vzdump 140 --storage nas",
        "to see what would become of its next backup: pvehook rehearse --vmid 140",
    )


def test_of_several_ends_the_most_frequent_comes_first() -> None:
    turns = [*refused(21, 22, 23), Turn(datetime(2026, 11, 24, 3, 0, tzinfo=WARSAW), "worker-died", "killed")]
    assert verdict(turns=turns).cause == f"refused 3 times: {CLOSED}; broken off once: killed"


def test_a_job_that_was_never_seen_is_told_as_that() -> None:
    found = verdict(now=datetime(2026, 11, 24, 18, 0, tzinfo=WARSAW))
    assert found.cause == "its runs were never seen: 4 turns, the last Tue 2026-11-24 02:00"
    assert found.is_overdue


def test_a_job_that_starts_while_the_window_is_closed_is_told_as_that_and_moved_into_it() -> None:
    evening = NIGHTLY._replace(schedule="mon..fri 21:00")
    found = verdict(evening, now=datetime(2026, 11, 26, 12, 0, tzinfo=WARSAW))
    assert found.cause == (
        "none of its 4 turns came to it: at its job's start (Wed 2026-11-25 21:00) the backup window is closed "
        "(outside 02:00-05:00)"
    )
    assert found.ways_out[1:] == (
        "to start its job when the window opens: pvesh set /cluster/backup/nightly --schedule 'mon..fri 02:00'",
    )


def test_a_start_in_the_window_is_moved_to_its_beginning() -> None:
    found = verdict(NIGHTLY._replace(schedule="03:30"), turns=refused(21, 22, 23, 24))
    assert found.ways_out[1] == (
        "to start its job when the window opens: pvesh set /cluster/backup/nightly --schedule 02:00"
    )


def test_where_the_night_does_not_fit_the_ways_out_are_a_wider_window_and_a_job_of_its_own() -> None:
    found = verdict(turns=refused(21, 22, 23, 24))
    assert found.ways_out == (
        'to back it up now: pvehook allow --vmid 140 --for 4h --reason "no backup since 2026-11-20" && '
        "vzdump 140 --storage nas",
        'to widen the window: in /etc/pvehook.yaml: window: {open: ["02:00-07:00"]}',
        "to split the job, so that this guest comes first: pvesh create /cluster/backup --vmid 140 --schedule 02:00 "
        "--storage nas && pvesh set /cluster/backup/nightly --exclude 140 --schedule 02:10",
    )


def test_a_line_of_cron_is_changed_where_it_stands() -> None:
    cron = Promise("/etc/cron.d/backup:3", "30 21 * * *", is_cron=True)
    found = verdict(cron, turns=refused(21, 22, 23, at="21:30"))
    assert found.ways_out[1] == (
        "to start its job when the window opens: let line /etc/cron.d/backup:3 begin with `0 2 * * *`"
    )


def test_an_exempt_guest_is_not_sent_to_the_window() -> None:
    exempt = NIGHTLY._replace(schedule="12:00", is_exempt=True)
    found = verdict(exempt, now=datetime(2026, 11, 24, 5, 0, tzinfo=WARSAW))
    assert found.cause.startswith("its runs were never seen: 4 turns")
    assert found.ways_out[0] == "to back it up now: vzdump 140 --storage nas"


def test_a_window_that_never_opens_offers_no_start_in_it() -> None:
    found = verdict(turns=refused(21, 22, 23, 24), window=Window((), WARSAW))
    assert len(found.ways_out) == 1
    assert "pvehook allow" in found.ways_out[0]


def test_texts_of_others_are_made_safe() -> None:
    turns = [Turn(each.at, "failed", "bad\x1b[31m\n" + "x" * 500) for each in refused(23, 24)]
    cause = verdict(Promise("a b;rm", "02:00"), turns=turns).cause
    assert cause.isprintable()
    assert len(cause) < 300
