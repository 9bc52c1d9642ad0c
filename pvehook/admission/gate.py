"""Gathers what the window's rule needs, and applies it."""

from __future__ import annotations

import json
import os
from functools import partial

from pvehook.config.in_force import InForce
from pvehook.contract.call import HookCall
from pvehook.contract.upid import parse_upid
from pvehook.errors import NodeError
from pvehook.host.clock import at
from pvehook.host.timely_files import TimelyReader
from pvehook.records.context import Context
from pvehook.records.run_state import RunState
from pvehook.rescue import allowances
from pvehook.rules.admission import Admission, Allowance, Question, admit
from pvehook.rules.window import window_state
from pvehook.settings import NextGuest

JOB_STATES = "/var/lib/pve-manager/jobs"
"""Where pvescheduler writes which task a scheduled job has become: `vzdump-JOBID.json` with
`{"state": "started", "upid": "UPID:..."}` (PVE/Jobs.pm; read there, not observed by us)."""

JOB_STATES_DEADLINE_S = ALLOWANCES_DEADLINE_S = 1.0


class Gate:
    """Answers `job-init`, `job-start` and `backup-start` of one run."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._allowances = TimelyReader()  # its own: a /etc/pve that hangs must cost no exception

    def ask(self, call: HookCall, run: RunState, in_force: InForce) -> Admission:
        """Whether this phase may go on."""
        upid = parse_upid(run.upid)
        pending = False
        if in_force.config.window.exempt.jobs and run.job_id is None:
            run.job_id, pending = self._job_id(run.upid, in_force.config.window.exempt.jobs)
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

    def close(self) -> None:
        """The run has ended."""
        self._allowances.close()

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

    def _admit(self, question: Question, in_force: InForce, next_guest: NextGuest) -> Admission:
        allowed: list[Allowance] = []
        try:
            read = partial(allowances.in_force, self._context.node, question.now.timestamp())
            allowed = self._allowances.within(ALLOWANCES_DEADLINE_S, "the exceptions from the window", read)
        except NodeError as error:  # a wrong refusal costs one backup, a wrong permission harms the guests
            self._context.log.error("allowances-not-read", message=f"{error}: none of them counts")
        state = window_state(in_force.window, question.now)
        return admit(question, state, in_force.config.window.exempt, tuple(allowed), next_guest)

    def _job_id(self, upid: str, exempt_jobs: tuple[str, ...]) -> tuple[str | None, bool]:
        """Which exempt job of jobs.cfg this run is, and whether that is still to be written down."""
        directory = self._context.node.path(JOB_STATES)

        def read() -> tuple[str | None, bool]:
            pending = False
            for job_id in exempt_jobs:
                if "/" in job_id:
                    continue
                try:
                    with open(os.path.join(directory, f"vzdump-{job_id}.json"), encoding="utf-8") as file:
                        state = json.loads(file.read(65536))
                except (OSError, ValueError):
                    continue
                if not isinstance(state, dict):
                    continue
                if upid and state.get("upid") == upid:
                    return job_id, False
                pending = pending or state.get("state") == "starting"
            return None, pending

        try:
            return self._context.reader.within(JOB_STATES_DEADLINE_S, directory, read)
        except NodeError:
            return None, False
