"""Gathers what the window's rule needs, and applies it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

from pvehook.config.in_force import InForce
from pvehook.contract.call import HookCall
from pvehook.contract.upid import parse_upid
from pvehook.errors import NodeError
from pvehook.host.clock import at
from pvehook.host.job_states import JOB_STATES, job_states
from pvehook.records.context import Context
from pvehook.records.run_state import RunState
from pvehook.rescue import allowances
from pvehook.rules.admission import Admission, Allowance, Question, admit
from pvehook.rules.window import WindowState, window_state
from pvehook.settings import NextGuest

JOB_STATES_DEADLINE_S = ALLOWANCES_DEADLINE_S = 1.0


class Gate:
    """Answers `job-init`, `job-start` and `backup-start` of one run."""

    def __init__(self, context: Context, overdue: Callable[[InForce], tuple[int, ...]]) -> None:
        """`overdue` finds out which guests are; it is asked with `window.overdue: allow` while the window is closed."""
        self._context = context
        self._overdue = overdue

    def ask(self, call: HookCall, run: RunState, in_force: InForce) -> Admission:
        """Whether this phase may go on."""
        upid = parse_upid(run.upid)
        pending = False
        exempt = in_force.config.window.exempt.jobs
        # The scheduler may write down which task a job has become a moment after the task has begun.
        is_early = call.phase == "job-start" or (call.phase == "backup-start" and not run.done)
        if run.job_id is None and (exempt or is_early):
            pending = self._find_job(run, exempt)
        question = Question(
            phase=call.phase,
            now=at(self._context.clock, in_force.window.zone),
            vmid=call.vmid,
            job_vmids=None if upid is None or upid.vmid is None else (upid.vmid,),
            job_id=run.job_id,
            job_id_pending=pending,
            storage=call.storeid or run.storeid,
            job_was_admitted=run.admitted,
        )
        return self._admit(question, in_force, in_force.config.window.next_guest)

    def may_still_run(self, vmid: int, run: RunState, in_force: InForce) -> bool:
        """Whether a guest whose backup runs would be let in if it came now, `next_guest` left aside."""
        question = Question(
            phase="backup-start",
            now=at(self._context.clock, in_force.window.zone),
            vmid=vmid,
            job_id=run.job_id,
            storage=run.storeid,
        )
        return self._admit(question, in_force, "refuse").allowed

    def bound(self, vmids: Collection[int], run: RunState, in_force: InForce, closes_s: float) -> set[int]:
        """Those of the run's guests that would be refused if their turn came when the window has closed, which is at
        `closes_s` in seconds since the epoch."""
        closes_at = datetime.fromtimestamp(closes_s, in_force.window.zone)
        window, allowed = in_force.config.window, self._allowances_at(closes_at)
        state = window_state(in_force.window, closes_at)
        question = Question("backup-start", closes_at, None, None, run.job_id, False, run.storeid, run.admitted)
        question = self._with_overdue(question, state, in_force)

        def is_refused(vmid: int) -> bool:
            asked = question._replace(vmid=vmid)
            return not admit(asked, state, window.exempt, allowed, window.next_guest).allowed

        return set(filter(is_refused, vmids))

    def _admit(self, question: Question, in_force: InForce, next_guest: NextGuest) -> Admission:
        allowed = self._allowances_at(question.now)
        state = window_state(in_force.window, question.now)
        question = self._with_overdue(question, state, in_force)
        return admit(question, state, in_force.config.window.exempt, allowed, next_guest)

    def _with_overdue(self, question: Question, state: WindowState, in_force: InForce) -> Question:
        if state.open or in_force.config.window.overdue != "allow":
            return question
        return question._replace(overdue=self._overdue(in_force))

    def _allowances_at(self, now: datetime) -> tuple[Allowance, ...]:
        try:
            read = partial(allowances.in_force, self._context.node, now.timestamp())
            reader, what = self._context.readers.allowances, "the exceptions from the window"
            return tuple(reader.within(ALLOWANCES_DEADLINE_S, what, read))
        except NodeError as error:  # a wrong refusal costs one backup, a wrong permission harms the guests
            self._context.log.error("allowances-not-read", message=f"{error}: none of them counts")
            return ()

    def _find_job(self, run: RunState, exempt: tuple[str, ...]) -> bool:
        """Notes which job of jobs.cfg this run is. Whether an exempt one may be it, and that is still to be written."""
        read = partial(job_states, self._context.node)
        try:
            states = self._context.readers.config.within(JOB_STATES_DEADLINE_S, JOB_STATES, read)
        except NodeError:
            return False
        mine = next((each for each in states if run.upid and each.upid == run.upid), None)
        if mine is not None:
            run.job_id, run.schedule = mine.job_id, mine.schedule or None
        return mine is None and any(each.is_starting and each.job_id in exempt for each in states)
