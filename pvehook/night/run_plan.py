"""One run's plan: when its guests are expected to begin and end, who gives way to whom, and how much time each backup
has to leave to those behind it.

make          job-start: the forecast, kept in the run's state
gives_way     backup-start of a guest that the open window would let in
share         how much of the night a guest's backup may take, for its governor

None of it can cost a backup but `gives_way`, and that only by `window.when_short: rotate`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from pvehook.config.in_force import InForce
from pvehook.contract.text import counted
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.job_states import job_states
from pvehook.host.processes import ProcessId
from pvehook.night.forecasts import disk_sizes, past_turns, run_forecast, waiting
from pvehook.night.run_guests import guests_of_run
from pvehook.records.context import Context
from pvehook.records.guest_forecast import GuestForecast, RunForecast
from pvehook.records.history import history_file
from pvehook.records.run_state import RunState
from pvehook.rules.admission import Admission
from pvehook.rules.budget import share
from pvehook.rules.fair_turns import GivesWay, Night, gives_way
from pvehook.rules.forecast import Expected, timeline
from pvehook.rules.governor_readings import NOTHING_KNOWN, NightShare
from pvehook.rules.window import window_state

GIVES_WAY: Final = "gives-way"
GAVE_WAY: Final = "gave way to"
"""With this the reason begins of a guest that did."""
PLAN_S: Final = 2.0
"""So long job-start waits for it; what is not there by then is left out."""
WAITING_S: Final = 1.0
"""So long backup-start waits for the same of runs that wait for the node's lock."""
NAMED: Final = 3


BoundOf = Callable[[Collection[int], RunState, InForce, float], set[int]]
"""Which of the guests are refused when the window has closed, at that time (admission/gate.py)."""


class RunPlan:
    """Of one run."""

    def __init__(self, context: Context, run: RunState, waiting_runs: Callable[[], Sequence[RunState]]) -> None:
        """`waiting_runs`: those that wait for the node's lock now, which this one holds."""
        self._context = context
        self._run = run
        self._waiting_runs = waiting_runs
        self._expected_of: dict[ProcessId, list[Expected]] = {}
        """Of each run that waits, by its worker."""
        self._knew_job = False

    def make(self, in_force: InForce, deadline: Deadline) -> list[str]:
        """The forecast, in one line for the task log. None where it is not known which guests the run has."""
        self._knew_job = self._run.job_id is not None
        now_s = self._context.clock.now_s()
        state = window_state(in_force.window, datetime.fromtimestamp(now_s, in_force.window.zone))
        closes_s = state.closes_at.timestamp() if state.closes_at is not None else None
        within_s = deadline.within(PLAN_S).left_s()
        try:
            what = "the run's guests and their past backups"
            forecast = partial(self._forecast, self._run, now_s, closes_s)
            made = self._context.readers.night.within(within_s, what, forecast)
        except NodeError as error:
            self._context.log.warning("forecast-not-made", message=f"when this run ends is not known: {error}")
            return []
        except Exception as fault:  # a fault of ours costs a line
            self._context.log.error("fault", message=f"forecast: {fault!r}; the run goes on")
            return []
        if made is None:
            text = "when this run ends is not known: vzdump does not say which guests it has"
            self._context.log.info("forecast-not-made", message=text)
            return []
        self._run.forecast = made
        text = in_words(made, in_force)
        self._context.log.info("forecast-made", message=text, guests=len(made.guests))
        return [text]

    def gives_way(self, vmid: int, bound_of: BoundOf, in_force: InForce) -> Admission | None:
        """A refusal of this guest for those who waited longer; None: it has its turn."""
        try:
            return self._gives_way(vmid, bound_of, in_force)
        except Exception as fault:  # a fault of ours costs nobody a backup
            self._context.log.error("fault", message=f"fair turns: {fault!r}; the backup goes on", vmid=vmid)
            return None

    def _gives_way(self, vmid: int, bound_of: BoundOf, in_force: InForce) -> Admission | None:
        if self._run.forecast is None and self._run.job_id is not None and not self._knew_job:
            self.make(in_force, Deadline.after(PLAN_S))  # the scheduler wrote the job down after job-start
        forecast, now_s = self._run.forecast, self._context.clock.now_s()
        coming = self._coming(vmid)
        if (
            in_force.config.window.when_short != "rotate"
            or forecast is None
            or forecast.closes_s is None
            or self._run.job_id is None
            or len(coming) < 2
        ):
            return None
        bound = bound_of([each.vmid for each in coming], self._run, in_force, forecast.closes_s)
        gone = {each.vmid for each in self._run.done if each.admitted_by == GIVES_WAY}
        must_end = in_force.config.window.running_guest == "cancel"
        why = gives_way(
            [waiting(each, now_s, each.vmid in bound) for each in coming],
            [waiting(each, now_s, is_bound=True) for each in forecast.guests if each.vmid in gone],
            Night(forecast.closes_s - now_s, forecast.closes_s - forecast.made_s, must_end),
        )
        return _refusal(vmid, why, _clock(forecast.closes_s, in_force)) if why is not None else None

    def share(self, vmid: int, deadline: Deadline) -> NightShare:
        """How much of the night this guest's backup may take. Of runs that wait it asks for WAITING_S in all."""
        forecast = self._run.forecast
        coming = self._coming(vmid)
        if forecast is None or forecast.closes_s is None or not coming:
            return NOTHING_KNOWN
        behind = [each.expected for each in coming[1:] if each.expected is not None]
        behind += self._of_waiting_runs(deadline.within(WAITING_S))
        return share(coming[0].expected, behind, forecast.closes_s - self._context.clock.now_s())

    def _of_waiting_runs(self, until: Deadline) -> list[Expected]:
        """What is not known in time is asked again for the next guest."""
        runs, now_s = self._waiting_runs(), self._context.clock.now_s()
        for run in runs:
            if run.worker in self._expected_of:
                continue
            try:
                read = partial(self._forecast, run, now_s, None)
                made = self._context.readers.night.within(until.left_s(), "the guests of a run that waits", read)
            except NodeError as error:
                self._context.log.warning("forecast-not-made", message=f"how long a run that waits takes: {error}")
                break
            except Exception as fault:  # a fault of ours costs a line
                self._context.log.error("fault", message=f"a run that waits: {fault!r}; the backup goes on")
                break
            guests = made.guests if made is not None else ()
            self._expected_of[run.worker] = [each.expected for each in guests if each.expected is not None]
        return [each for run in runs for each in self._expected_of.get(run.worker, ())]

    def _forecast(self, run: RunState, now_s: float, closes_s: float | None) -> RunForecast | None:
        node, config = self._context.node, self._context.readers.config
        if run.job_id is None and run.upid:
            states = job_states(node)
            run = replace(run, job_id=next((each.job_id for each in states if each.upid == run.upid), None))
        vmids = guests_of_run(node, config, run)
        if not vmids:
            return None
        turns, sizes = past_turns(history_file(node), now_s), disk_sizes(node, config, vmids)
        return run_forecast(vmids, run.job_id, turns, sizes, now_s, closes_s)

    def _coming(self, vmid: int) -> Sequence[GuestForecast]:
        """This guest and those behind it; empty where it is not in the forecast. vzdump goes by VMID."""
        guests = self._run.forecast.guests if self._run.forecast is not None else ()
        done = {each.vmid for each in self._run.done}
        coming = [each for each in guests if each.vmid >= vmid and each.vmid not in done]
        return coming if coming and coming[0].vmid == vmid else ()


def in_words(forecast: RunForecast, in_force: InForce) -> str:
    """`expected to end at 04:12 (03:50-04:40), 12 guests; the window closes at 05:00`."""
    line = timeline([(each.vmid, each.expected) for each in forecast.guests], forecast.made_s, forecast.closes_s)
    number = len(forecast.guests)
    guests = counted(number, "guest")
    if len(line.unknown) == number:
        return f"{guests}; how long {'it takes' if number == 1 else 'they take'} is not known yet"
    ends, earliest, latest = (_clock(each, in_force) for each in (line.end_s, line.earliest_s, line.latest_s))
    text = f"expected to end at {ends} ({earliest}-{latest}), {guests}"
    if line.unknown:
        text += f", without {len(line.unknown)} of which it is not known how long they take"
    if forecast.closes_s is not None:
        text += f"; the window closes at {_clock(forecast.closes_s, in_force)}"
    if line.late:
        how = in_force.config.window.when_short
        then = "those who were backed up last give way" if how == "rotate" else "they are refused"
        text += f": too early for {len(line.late)} of them; {then} (window.when_short: {how})"
    return text


def _refusal(vmid: int, why: GivesWay, closes: str) -> Admission:
    names = ", ".join(map(str, why.to[:NAMED])) + (f" and {len(why.to) - NAMED} more" if len(why.to) > NAMED else "")
    whom = f"guest{'s' if len(why.to) > 1 else ''} {names}, which waited longer"
    turn = {None: "when its turn comes is not known", 1: "its turn is expected in the next run"}.get(
        why.next_turn, f"its turn is expected {why.next_turn} runs from now"
    )
    short = f"{GAVE_WAY} {whom}: not all guests of this job fit into the window; {turn}"
    line = (
        f"guest {vmid} is refused, it gives way to {whom} and would come too late otherwise: the window closes at"
        f" {closes}; {turn}; to have it sooner, start its backup by hand (window.when_short: rotate)"
    )
    return Admission(False, GIVES_WAY, (line,), short)


def _clock(at_s: float, in_force: InForce) -> str:
    return f"{datetime.fromtimestamp(at_s, in_force.window.zone):%H:%M}"
