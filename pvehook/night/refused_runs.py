"""A run that is refused before its first guest: who goes without a backup for it.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Final

from pvehook.config.in_force import InForce
from pvehook.errors import NodeError
from pvehook.host.job_states import JOB_STATES, job_states
from pvehook.night.run_guests import guests_of_run
from pvehook.night.turns_taken import trigger_of
from pvehook.records.attempt import Attempt
from pvehook.records.context import Context
from pvehook.records.history import history_file
from pvehook.records.history_writing import append_attempts
from pvehook.records.run_state import RunState

_STEP_S: Final = 5.0
_JOB_WITHIN_S, _LOOK_AGAIN_S = 3.0, 0.2
"""pvescheduler writes down which job a task is when it has started it, and the task is refused within milliseconds."""


def keep_refused_run(context: Context, run: RunState, why: str, in_force: InForce) -> None:
    """For a thread of its own: every step takes _STEP_S at most. What fails costs a line in the journal."""
    readers = context.readers
    try:
        _find_job(context, run)
        if run.job_id is not None:
            run.trigger = trigger_of(context.node, run, in_force.zone)
        if not (vmids := guests_of_run(context.node, readers.config, run)):
            return
        now_s, path = run.started_s, history_file(context.node)
        turns = [_turn(run, vmid, now_s, why) for vmid in vmids]
        keep = partial(append_attempts, path, turns, now_s=now_s, keep_days=in_force.config.metrics.keep_days)
        if (news := readers.history.within(_STEP_S, path, keep)) is not None:
            context.log.warning("history-moved", message=news)
    except (NodeError, OSError) as error:
        context.log.error("history-not-kept", message=f"{error}; the guests of a refused run are not written down")


def _find_job(context: Context, run: RunState) -> None:
    until_s = time.monotonic() + _JOB_WITHIN_S
    while run.job_id is None:
        states = context.readers.config.within(_STEP_S, JOB_STATES, partial(job_states, context.node))
        for each in states:
            if run.upid and each.upid == run.upid:
                run.job_id, run.schedule = each.job_id, each.schedule or None
        if not any(each.is_starting for each in states) or time.monotonic() > until_s:
            return
        time.sleep(_LOOK_AGAIN_S)


def _turn(run: RunState, vmid: int, at_s: float, why: str) -> Attempt:
    return Attempt(
        vmid=vmid,
        started_s=at_s,
        ended_s=at_s,
        node=os.uname().nodename,
        job=run.upid,
        job_id=run.job_id,
        trigger=run.trigger,
        name=None,
        vmtype=None,
        mode=None,
        result="refused",
        reason=why,
    )
