"""May this run, or this guest, be backed up now? Asked in `job-init`, `job-start` and `backup-start`.

An open window admits everything. While it is closed these are let in, and the first that fits is the reason:

    job-exempt, storage-exempt, guest-exempt
                          the configuration exempts them from the window
    overdue               `window.overdue: allow`: it is without its promised backups for too long
    allowance:ID          an exception that `pvehook allow` made, until it expires
    next-guest-allow      backup-start: the run was admitted, the window closed since, `next_guest: allow`
    job-unknown-yet       job-init: it may be an exempt job; job-start will know and decide
    some-guests-allowed   job-init and job-start of a run in which only some guests may be backed up: each one
                          is decided at its own backup-start

A refusal is one line, since in the task log and in the mail every line of a hook stands for itself.

The hook loads this file when the daemon is away, so it imports little.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

from pvehook.contract.phases import REFUSABLE_PHASES
from pvehook.rules.window import DAYS, WindowState
from pvehook.settings import Exempt

WINDOW_OPEN = "window-open"
WINDOW_CLOSED = "window-closed"
SOME_GUESTS_ALLOWED = "some-guests-allowed"
JOB_UNKNOWN_YET = "job-unknown-yet"


class Allowance(NamedTuple):
    """An exception that an administrator made with `pvehook allow`."""

    id: str
    vmids: tuple[int, ...]
    """Empty: every guest."""
    until: float
    """Seconds since the epoch, within the years of a datetime; from this instant on it does not count."""
    reason: str
    who: str


class Question(NamedTuple):
    """What is known when one phase asks."""

    phase: str
    """One of `REFUSABLE_PHASES`."""
    now: datetime
    """Aware. It is shown in the window's zone if `now` is in it, or if the window ever opens."""
    vmid: int | None
    """The guest of a guest phase."""
    job_vmids: tuple[int, ...] | None = None
    """Every guest of this run; None: not known, as for every run of more than one guest."""
    job_id: str | None = None
    """The id in jobs.cfg; None: started by hand, or not known."""
    job_id_pending: bool = False
    """An exempt job may be this run, but Proxmox has not written down yet which job this worker is."""
    storage: str | None = None
    job_was_admitted: bool = False
    """The job-start of this run was admitted for all of its guests: `admits_whole_run` of that answer."""
    overdue: tuple[int, ...] = ()
    """Guests that may run outside the window since they are overdue; without the daemon that is not known."""


class Admission(NamedTuple):
    """The answer."""

    allowed: bool
    reason: str
    """A short name for the journal; the list is at the top of this file, and `window-open`, `window-closed`."""
    lines: tuple[str, ...]
    """For vzdump's log. A refusal has exactly one."""
    why_refused: str = ""
    """For the history: the clock and the window, in short."""


def admits_whole_run(admission: Admission) -> bool:
    """Whether the answer to a job phase holds for every guest of the run, not only until each one asks."""
    return admission.allowed and admission.reason not in {SOME_GUESTS_ALLOWED, JOB_UNKNOWN_YET}


def admit(
    question: Question,
    state: WindowState,
    exemptions: Exempt,
    allowances: tuple[Allowance, ...],
    next_guest: Literal["refuse", "allow"],
) -> Admission:
    """Decide. Raises ValueError for a phase in which nothing may be refused."""
    if question.phase not in REFUSABLE_PHASES:
        raise ValueError(f"{question.phase} is not refusable: a refusal is possible only in {REFUSABLE_PHASES}")
    if state.open:
        return Admission(True, WINDOW_OPEN, ())
    active = tuple(each for each in allowances if each.until > question.now.timestamp())
    return (
        _exempt(question, state, exemptions)
        or _allowed(question, state, exemptions, active)
        or _next_guest(question, state, next_guest)
        or _decided_later(question, state, exemptions, active)
        or _refused(question, state)
    )


# What is let in while the window is closed


def _exempt(question: Question, state: WindowState, exemptions: Exempt) -> Admission | None:
    closed, subject = _closed(question, state), _subject(question)
    if question.job_id is not None and question.job_id in exemptions.jobs:
        return Admission(True, "job-exempt", (f"{closed}, but job {question.job_id} is exempt",))
    if question.storage is not None and question.storage in exemptions.storages:
        return Admission(True, "storage-exempt", (f"{closed}, but storage {question.storage} is exempt",))
    guests = _guests(question)
    if guests and set(guests) <= set(exemptions.guests):
        return Admission(True, "guest-exempt", (f"{closed}, but {subject} is exempt",))
    if guests and set(guests) <= set(question.overdue):
        return Admission(True, "overdue", (f"{closed}, but {subject} is overdue (window.overdue: allow)",))
    return None


def _allowed(
    question: Question, state: WindowState, exemptions: Exempt, active: tuple[Allowance, ...]
) -> Admission | None:
    guests = set(_guests(question) or ()) - set(exemptions.guests)
    for each in active:
        if not each.vmids or (guests and guests <= set(each.vmids)):
            until = _stamp(datetime.fromtimestamp(each.until, _local(question, state).tzinfo))
            why = _one_line(f"allowance {each.id} by {each.who} until {until}: {each.reason}")
            line = f"{_closed(question, state)}, but {_subject(question)} is let in by {why}"
            return Admission(True, f"allowance:{each.id}", (line,))
    return None


def _next_guest(question: Question, state: WindowState, next_guest: str) -> Admission | None:
    if question.phase != "backup-start" or not question.job_was_admitted or next_guest != "allow":
        return None
    closed = _closed(question, state)
    if state.closed_since is not None:
        closed = f"the backup window closed at {_stamp(state.closed_since)} ({state.reason})"
    line = f"{closed}, but this run was let in before, and next_guest: allow lets {_subject(question)} go on"
    return Admission(True, "next-guest-allow", (line,))


def _decided_later(
    question: Question, state: WindowState, exemptions: Exempt, active: tuple[Allowance, ...]
) -> Admission | None:
    if question.phase == "backup-start":
        return None
    closed = _closed(question, state)
    if question.phase == "job-init" and question.job_id_pending:
        return Admission(True, JOB_UNKNOWN_YET, (f"{closed}; job-start decides, this may be an exempt job",))
    welcome = {*exemptions.guests, *question.overdue, *(vmid for each in active for vmid in each.vmids)}
    if question.job_vmids is not None:
        welcome &= set(question.job_vmids)
    names = ", ".join(map(str, sorted(welcome)))
    if not names:
        return None
    line = f"{closed}; of this run only these guests will be backed up, every other is refused: {names}"
    return Admission(True, SOME_GUESTS_ALLOWED, (line,))


def _refused(question: Question, state: WindowState) -> Admission:
    opens = _stamp(state.opens_at) if state.opens_at else "never, as configured"
    vmids = "".join(f" --vmid {vmid}" for vmid in _guests(question) or ())
    command = f'pvehook allow{vmids} --for 2h --reason "..."'
    closed = _closed(question, state)
    line = f"{_subject(question)} is refused: {closed}; it opens next: {opens}; to allow it now: {command}"
    why = f"at {_local(question, state):%H:%M} the backup window was closed ({state.reason})"
    return Admission(False, WINDOW_CLOSED, (line,), why)


# Words


def _guests(question: Question) -> tuple[int, ...] | None:
    """The guests that the question is about; None: not known."""
    return question.job_vmids if question.vmid is None else (question.vmid,)


def _subject(question: Question) -> str:
    if question.vmid is not None:
        return f"guest {question.vmid}"
    if question.job_vmids:
        return "this run of guest " + ", ".join(str(vmid) for vmid in question.job_vmids)
    return "this run"


def _closed(question: Question, state: WindowState) -> str:
    """`it is 05:12:07 CET (Europe/Warsaw) and the backup window is closed (outside 02:00-05:00)`."""
    now = _local(question, state)
    key = getattr(now.tzinfo, "key", None)  # only a ZoneInfo has one, and not if it was read from a bare file
    name = _zone_name(now)
    zone = f"{name} ({key})" if key and key != name else name
    return f"it is {now:%H:%M:%S} {zone} and the backup window is closed ({state.reason})"


def _local(question: Question, state: WindowState) -> datetime:
    known = state.opens_at or state.closed_since
    return question.now.astimezone(known.tzinfo) if known else question.now


def _stamp(at: datetime) -> str:
    """`Tue 2026-03-31 02:00 CEST`. The day is not left to strftime: it follows the locale."""
    clock = f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"
    return f"{DAYS[at.weekday()][:3].capitalize()} {at.date().isoformat()} {clock} {_zone_name(at)}"


def _zone_name(at: datetime) -> str:
    return at.tzname() or f"{at:%z}"


def _one_line(text: str) -> str:
    """What a person typed must not break the line or reach a terminal as a control sequence."""
    return "".join(char if char.isprintable() else " " for char in text)
