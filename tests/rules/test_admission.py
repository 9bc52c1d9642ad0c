"""What is answered at job-init, job-start and backup-start, and what the administrator reads about it."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.contract.phases import GUEST_PHASES, JOB_PHASES, REFUSABLE_PHASES
from pvehook.rules.admission import Admission, Allowance, Question, admit, admits_whole_run
from pvehook.rules.window import Window, WindowState, parse_span, window_state
from pvehook.settings import Exempt

WARSAW = ZoneInfo("Europe/Warsaw")
NIGHT = Window((parse_span("02:00-05:00"),), WARSAW)
OPEN_AT = datetime(2026, 3, 30, 3, 0, tzinfo=WARSAW)
CLOSED_AT = datetime(2026, 3, 30, 5, 12, 7, tzinfo=WARSAW)
NOW_S = CLOSED_AT.timestamp()

OPEN = window_state(NIGHT, OPEN_AT)
CLOSED = window_state(NIGHT, CLOSED_AT)
IT_IS_CLOSED = "it is 05:12:07 CEST (Europe/Warsaw) and the backup window is closed (outside 02:00-05:00)"

JOB_INIT = Question("job-init", CLOSED_AT, None, None, None, False, "nas", False)
JOB_START = JOB_INIT._replace(phase="job-start")
GUEST_101 = JOB_INIT._replace(phase="backup-start", vmid=101)
ONE_GUEST_RUN = JOB_START._replace(job_vmids=(101,))

FOR_ALL = Allowance("ab12", (), NOW_S + 60, "restore drill", "root@pam")
FOR_101 = FOR_ALL._replace(vmids=(101, 102))


def ask(
    question: Question,
    state: WindowState = CLOSED,
    exempt: Exempt = Exempt(),  # noqa: B008 - frozen
    allowances: tuple[Allowance, ...] = (),
    *,
    next_guest_goes_on: bool = False,
) -> Admission:
    return admit(question, state, exempt, allowances, "allow" if next_guest_goes_on else "refuse")


# Open


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START, GUEST_101], ids=lambda question: question.phase)
def test_an_open_window_admits_without_a_word(question: Question) -> None:
    assert ask(question._replace(now=OPEN_AT), OPEN) == Admission(True, "window-open", ())


# Refusals


def test_a_guest_is_refused_in_one_line_that_says_everything() -> None:
    assert ask(GUEST_101) == Admission(
        False,
        "window-closed",
        (
            f"guest 101 is refused: {IT_IS_CLOSED}; it opens next: Tue 2026-03-31 02:00 CEST; "
            'to allow it now: pvehook allow --vmid 101 --for 2h --reason "..."',
        ),
        "at 05:12 the backup window was closed (outside 02:00-05:00)",
    )


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START], ids=lambda question: question.phase)
def test_a_run_is_refused_in_one_line_that_says_everything(question: Question) -> None:
    assert ask(question) == Admission(
        False,
        "window-closed",
        (
            f"this run is refused: {IT_IS_CLOSED}; it opens next: Tue 2026-03-31 02:00 CEST; "
            'to allow it now: pvehook allow --for 2h --reason "..."',
        ),
        "at 05:12 the backup window was closed (outside 02:00-05:00)",
    )


def test_a_run_of_a_known_guest_is_refused_with_the_narrower_command() -> None:
    (line,) = ask(ONE_GUEST_RUN).lines
    assert line.startswith("this run of guest 101 is refused: ")
    assert line.endswith('pvehook allow --vmid 101 --for 2h --reason "..."')


def test_the_command_of_a_refusal_allows_it() -> None:
    for question in (JOB_INIT, ONE_GUEST_RUN, GUEST_101):
        (line,) = ask(question).lines
        vmids = tuple(int(word) for word in line.split() if word.isdigit() and f"--vmid {word}" in line)
        made = FOR_ALL._replace(vmids=vmids)
        assert ask(question, allowances=(made,)).reason == "allowance:ab12"


def test_a_window_that_never_opens_says_so() -> None:
    never = window_state(Window((), WARSAW), CLOSED_AT)
    (line,) = ask(GUEST_101, never).lines
    assert "05:12:07 CEST (Europe/Warsaw)" in line
    assert "is closed (no span is configured); it opens next: never, as configured; " in line


def test_the_clock_is_the_one_of_the_window() -> None:
    assert ask(GUEST_101._replace(now=CLOSED_AT.astimezone(UTC))) == ask(GUEST_101)


def test_a_zone_is_not_named_twice() -> None:
    at = datetime(2026, 3, 30, 5, 12, 7, tzinfo=ZoneInfo("UTC"))
    state = window_state(NIGHT._replace(zone=ZoneInfo("UTC")), at)
    (line,) = ask(GUEST_101._replace(now=at), state).lines
    assert "it is 05:12:07 UTC and" in line


def test_a_zone_without_a_key_is_named_by_its_abbreviation() -> None:
    at = datetime(2026, 3, 30, 5, 12, 7, tzinfo=UTC)
    (line,) = ask(GUEST_101._replace(now=at), window_state(NIGHT._replace(zone=UTC), at)).lines
    assert "it is 05:12:07 UTC and" in line


def test_the_next_opening_is_told_in_the_abbreviation_of_that_day() -> None:
    at = datetime(2026, 10, 24, 12, 0, tzinfo=WARSAW)
    weekly = Window((parse_span("sun 04:00-05:00"),), WARSAW)
    (line,) = ask(GUEST_101._replace(now=at), window_state(weekly, at)).lines
    assert "it is 12:00:00 CEST (Europe/Warsaw)" in line
    assert "it opens next: Sun 2026-10-25 04:00 CET;" in line


# Exemptions


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START, GUEST_101], ids=lambda question: question.phase)
def test_an_exempt_job_is_admitted(question: Question) -> None:
    exempt = Exempt(jobs=("backup-nightly",))
    admitted = ask(question._replace(job_id="backup-nightly"), exempt=exempt)
    assert admitted == Admission(True, "job-exempt", (f"{IT_IS_CLOSED}, but job backup-nightly is exempt",))
    assert not ask(question._replace(job_id="backup-other"), exempt=exempt).allowed
    assert not ask(question, exempt=exempt).allowed


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START, GUEST_101], ids=lambda question: question.phase)
def test_an_exempt_storage_is_admitted(question: Question) -> None:
    admitted = ask(question, exempt=Exempt(storages=("local", "nas")))
    assert admitted == Admission(True, "storage-exempt", (f"{IT_IS_CLOSED}, but storage nas is exempt",))
    assert not ask(question, exempt=Exempt(storages=("local",))).allowed
    assert not ask(question._replace(storage=None), exempt=Exempt(storages=("nas",))).allowed


def test_an_exempt_guest_is_admitted() -> None:
    exempt = Exempt(guests=(100, 101))
    line = f"{IT_IS_CLOSED}, but guest 101 is exempt"
    assert ask(GUEST_101, exempt=exempt) == Admission(True, "guest-exempt", (line,))
    assert ask(ONE_GUEST_RUN, exempt=exempt).reason == "guest-exempt"
    assert not ask(GUEST_101._replace(vmid=102), exempt=exempt).allowed
    assert not ask(ONE_GUEST_RUN._replace(job_vmids=(102,)), exempt=exempt).allowed


def test_a_guest_phase_is_about_its_guest_not_about_the_run() -> None:
    assert not ask(GUEST_101._replace(vmid=102, job_vmids=(101,)), exempt=Exempt(guests=(101,))).allowed


def test_a_run_that_is_known_to_have_no_guest_is_not_exempt() -> None:
    assert not ask(ONE_GUEST_RUN._replace(job_vmids=()), exempt=Exempt(guests=(101,))).allowed
    assert not ask(ONE_GUEST_RUN._replace(job_vmids=()), allowances=(FOR_101,)).allowed


# Allowances


@pytest.mark.parametrize(
    "question", [JOB_INIT, JOB_START, ONE_GUEST_RUN, GUEST_101], ids=["init", "start", "one-guest", "guest"]
)
def test_an_allowance_for_every_guest_admits(question: Question) -> None:
    admitted = ask(question, allowances=(FOR_ALL,))
    assert (admitted.allowed, admitted.reason) == (True, "allowance:ab12")
    (line,) = admitted.lines
    assert line.startswith(IT_IS_CLOSED)
    assert "allowance ab12 by root@pam until Mon 2026-03-30 05:13:07 CEST: restore drill" in line


def test_an_allowance_admits_its_guests_only() -> None:
    assert ask(GUEST_101, allowances=(FOR_101,)).reason == "allowance:ab12"
    assert ask(ONE_GUEST_RUN, allowances=(FOR_101,)).reason == "allowance:ab12"
    assert not ask(GUEST_101._replace(vmid=103), allowances=(FOR_101,)).allowed
    assert not ask(ONE_GUEST_RUN._replace(job_vmids=(103,)), allowances=(FOR_101,)).allowed


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START, ONE_GUEST_RUN, GUEST_101])
@pytest.mark.parametrize("allowance", [FOR_ALL, FOR_101])
def test_an_allowance_ends_at_its_instant(question: Question, allowance: Allowance) -> None:
    assert ask(question, allowances=(allowance._replace(until=NOW_S + 0.001),)).allowed
    assert not ask(question, allowances=(allowance._replace(until=NOW_S),)).allowed
    assert not ask(question, allowances=(allowance._replace(until=0.0),)).allowed


def test_an_expired_allowance_does_not_hide_a_good_one() -> None:
    old = FOR_ALL._replace(id="old", until=NOW_S - 1)
    assert ask(GUEST_101, allowances=(old, FOR_101)).reason == "allowance:ab12"


def test_what_a_person_typed_stays_on_one_line() -> None:
    (line,) = ask(GUEST_101, allowances=(FOR_ALL._replace(reason="a\nb\x1b[31mc"),)).lines
    assert line.endswith(": a b [31mc")


# Runs of several guests


@pytest.mark.parametrize("question", [JOB_INIT, JOB_START], ids=lambda question: question.phase)
def test_a_run_is_let_through_for_some_guests(question: Question) -> None:
    admitted = ask(question, exempt=Exempt(guests=(200,)), allowances=(FOR_101,))
    assert (admitted.allowed, admitted.reason) == (True, "some-guests-allowed")
    assert admitted.lines == (
        f"{IT_IS_CLOSED}; of this run only these guests will be backed up, every other is refused: 101, 102, 200",
    )
    assert not admits_whole_run(admitted)


def test_a_run_of_known_guests_names_only_its_own() -> None:
    run = JOB_START._replace(job_vmids=(101, 103))
    admitted = ask(run, exempt=Exempt(guests=(200,)), allowances=(FOR_101,))
    assert admitted.reason == "some-guests-allowed"
    assert admitted.lines[0].endswith("refused: 101")


def test_a_run_whose_guests_are_exempt_or_allowed_is_admitted_whole() -> None:
    run = JOB_START._replace(job_vmids=(101, 200))
    admitted = ask(run, exempt=Exempt(guests=(200,)), allowances=(FOR_101,))
    assert admitted.reason == "allowance:ab12"
    assert admits_whole_run(admitted)


def test_a_guest_is_not_let_through_for_another() -> None:
    assert not ask(GUEST_101, exempt=Exempt(guests=(200,))).allowed
    assert not ask(GUEST_101._replace(vmid=None), exempt=Exempt(guests=(200,))).allowed


# A job that is not known yet


def test_an_unknown_job_is_let_through_at_job_init_and_decided_at_job_start() -> None:
    pending = ask(JOB_INIT._replace(job_id_pending=True))
    assert (pending.allowed, pending.reason) == (True, "job-unknown-yet")
    assert pending.lines == (f"{IT_IS_CLOSED}; job-start decides, this may be an exempt job",)
    assert not admits_whole_run(pending)
    assert not ask(JOB_START._replace(job_id_pending=True)).allowed
    assert not ask(GUEST_101._replace(job_id_pending=True)).allowed


def test_what_is_certain_goes_before_what_is_pending() -> None:
    assert ask(JOB_INIT._replace(job_id_pending=True), allowances=(FOR_ALL,)).reason == "allowance:ab12"


# The window closes in the middle of a night


def test_the_next_guest_goes_on_if_configured() -> None:
    admitted = ask(GUEST_101._replace(job_was_admitted=True), next_guest_goes_on=True)
    assert admitted == Admission(
        True,
        "next-guest-allow",
        (
            "the backup window closed at Mon 2026-03-30 05:00 CEST (outside 02:00-05:00), "
            "but this run was let in before, and next_guest: allow lets guest 101 go on",
        ),
    )


def test_the_next_guest_is_refused_by_default() -> None:
    assert not ask(GUEST_101._replace(job_was_admitted=True)).allowed


def test_next_guest_does_not_help_a_run_that_was_let_through_for_others() -> None:
    assert not ask(GUEST_101, next_guest_goes_on=True).allowed


def test_next_guest_is_no_reason_to_start_a_run() -> None:
    for question in (JOB_INIT, JOB_START):
        assert not ask(question._replace(job_was_admitted=True), next_guest_goes_on=True).allowed


def test_next_guest_long_after_the_window_shut_gives_the_clock() -> None:
    at = datetime(2026, 4, 1, 12, 0, tzinfo=WARSAW)
    weekly = Window((parse_span("sun 04:00-05:00"),), WARSAW)
    question = GUEST_101._replace(now=at, job_was_admitted=True)
    admitted = ask(question, window_state(weekly, at), next_guest_goes_on=True)
    assert admitted.lines[0].startswith("it is 12:00:00 CEST (Europe/Warsaw) and the backup window is closed")


# Limits


@pytest.mark.parametrize("phase", sorted({*JOB_PHASES, *GUEST_PHASES} - set(REFUSABLE_PHASES)))
def test_no_other_phase_can_be_refused(phase: str) -> None:
    with pytest.raises(ValueError, match=phase):
        ask(JOB_INIT._replace(phase=phase))


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    question=st.builds(
        Question,
        phase=st.sampled_from(REFUSABLE_PHASES),
        now=st.sampled_from([OPEN_AT, CLOSED_AT]),
        vmid=st.sampled_from([None, 101, 102]),
        job_vmids=st.sampled_from([None, (), (101,), (101, 102)]),
        job_id=st.sampled_from([None, "nightly"]),
        job_id_pending=st.booleans(),
        storage=st.sampled_from([None, "nas"]),
        job_was_admitted=st.booleans(),
    ),
    exempt=st.builds(
        Exempt,
        guests=st.sampled_from([(), (101,)]),
        jobs=st.sampled_from([(), ("nightly",)]),
        storages=st.sampled_from([(), ("nas",)]),
    ),
    allowances=st.lists(
        st.builds(
            Allowance,
            id=st.just("ab12"),
            vmids=st.sampled_from([(), (101,)]),
            until=st.sampled_from([NOW_S - 1, NOW_S + 60]),
            reason=st.text(max_size=20),
            who=st.just("root@pam"),
        ),
        max_size=2,
    ).map(tuple),
    next_guest_goes_on=st.booleans(),
)
def test_every_answer_can_be_printed_and_every_refusal_is_one_line(
    question: Question, exempt: Exempt, allowances: tuple[Allowance, ...], next_guest_goes_on: bool
) -> None:
    state = window_state(NIGHT, question.now)
    answer = ask(question, state, exempt, allowances, next_guest_goes_on=next_guest_goes_on)
    assert answer.allowed is (answer.reason != "window-closed")
    assert len(answer.lines) == (0 if state.open else 1)
    assert all(line.isprintable() for line in answer.lines)
    assert answer.allowed or "pvehook allow" in answer.lines[0]
