"""`pvehook night --json`: the same for programs. What is not known is the text `absent: why` or `broken: why`."""

from __future__ import annotations

from datetime import tzinfo
from typing import Final

from pvehook.contract.measured import Absent, Broken
from pvehook.night.summary import LastGood, NightSummary, RunningRun, last_goods
from pvehook.records.attempt import RESULTS, Attempt
from pvehook.records.encoding import encode
from pvehook.records.figures import encode_figure
from pvehook.report.beside import Beside
from pvehook.report.forecast_outcome import ForecastOutcome, forecast_outcome
from pvehook.report.night_turns import GuestTurns, NightTurns, Run
from pvehook.report.node_night import Row
from pvehook.report.standing import Standing
from pvehook.report.trends import instant

FORMAT: Final = 1  # grows when something that was here means something else or is gone


def night_json(summary: NightSummary, zone: tzinfo) -> dict[str, object]:
    """All guests, also where the terminal shows some."""
    standings = summary.standings
    unknown = encode_figure(standings) if isinstance(standings, (Absent, Broken)) else None
    return {
        "format": FORMAT,
        "night": _night(summary.turns, zone),
        "running": [_running(run, zone) for run in summary.running],
        "promises_kept": unknown or not summary.overdue,
        "overdue": unknown or [_overdue(each, zone) for each in summary.overdue],
        "guests": [_guest(guest, zone) for guest in summary.turns.guests],
        "passed_over": [_passed_over(guest) for guest in summary.turns.passed_over],
        "runs": [_run(run, zone) for run in summary.turns.runs],
        "suffered": [_suffered(row) for row in summary.suffered],
        "forecast": _forecast(forecast_outcome(summary.turns), zone),
        "advice": [each._asdict() for each in summary.advice],
        "last_good": [_last_good(each, summary.turns.as_of_s, zone) for each in last_goods(summary)],
    }


def _night(turns: NightTurns, zone: tzinfo) -> dict[str, object]:
    results = [guest.result for guest in turns.guests]
    begun = turns.begun
    return {
        "from": instant(turns.from_s, zone),
        "to": instant(turns.to_s, zone),
        "began": instant(min(turn.started_s for turn in begun), zone) if begun else None,
        "ended": instant(max(turn.ended_s for turn in begun), zone) if begun else None,
        "nodes": turns.nodes,
        "results": {result: results.count(result) for result in RESULTS},
    }


def _overdue(each: Standing, zone: tzinfo) -> dict[str, object]:
    named = {"vmid": each.vmid, "title": each.title, "last_good": _instant(each.last_good_s, zone)}
    return {**named, "cause": each.cause, "ways_out": each.ways_out}


def _guest(guest: GuestTurns, zone: tzinfo) -> dict[str, object]:
    reason = guest.counted.reason if guest.counted is not None else ""
    turns = [_turn(turn, zone) for turn in guest.turns]
    return {"vmid": guest.vmid, "title": guest.title, "result": guest.result, "reason": reason, "turns": turns}


def _passed_over(guest: GuestTurns) -> dict[str, object]:
    return {"vmid": guest.vmid, "title": guest.title, "job_id": guest.passed_over_by}


def _turn(turn: Attempt, zone: tzinfo) -> dict[str, object]:
    return {"started": instant(turn.started_s, zone), "ended": instant(turn.ended_s, zone), **turn._asdict()}


def _run(run: Run, zone: tzinfo) -> dict[str, object]:
    first = run.turns[0]
    results: list[str] = [turn.result for turn in run.turns]
    return {
        "job": first.job,
        "job_id": first.job_id,
        "trigger": first.trigger,
        "began": instant(first.started_s, zone),
        "ended": instant(max(turn.ended_s for turn in run.turns), zone),
        "refused": run.is_refused,
        "results": {result: results.count(result) for result in RESULTS},
        "turns_in_the_night_before": run.earlier,
        "turns_in_the_next_night": run.later,
    }


def _running(run: RunningRun, zone: tzinfo) -> dict[str, object]:
    return {"vmid": run.vmid, "to_come": run.to_come, "expected_end": _instant(run.expected_end_s, zone)}


def _forecast(found: ForecastOutcome | None, zone: tzinfo) -> dict[str, object] | None:
    if found is None:
        return None
    ends = [
        {
            "job_id": end.job_id,
            "expected_end": instant(end.expected_s, zone),
            "ended": instant(end.ended_s, zone),
            "later_s": round(end.later_s, 1),
        }
        for end in found.ends
    ]
    return {
        "backups": len(found.outcomes),
        "within": found.within,
        "error": round(found.error, 4),
        "furthest_off": found.furthest_off.attempt.vmid if found.furthest_off is not None else None,
        "run_ends": ends,
    }


def _suffered(row: Row) -> dict[str, object]:
    return {
        "vmid": row.vmid,
        "title": row.title,
        "own": {"stalled_s": encode_figure(row.stalled_s), "slowed_s": encode_figure(row.slowed_s)},
        "beside": None if row.beside is None else _beside(row.beside),
    }


def _beside(beside: Beside) -> dict[str, object]:
    return {
        "stalled_s": encode_figure(beside.stalled_s),
        "slowed_s": encode_figure(beside.slowed_s),
        "backups": encode(tuple(beside.backups)),
    }


def _last_good(each: LastGood, as_of_s: float, zone: tzinfo) -> dict[str, object]:
    if each.last_good_s is None:
        return {"vmid": each.vmid, "title": each.title, "last_good": None, "age_s": None, "note": each.note}
    known = {"last_good": instant(each.last_good_s, zone), "age_s": round(max(as_of_s - each.last_good_s, 0.0))}
    return {"vmid": each.vmid, "title": each.title, **known, "note": each.note}


def _instant(at_s: float | None, zone: tzinfo) -> str | None:
    return None if at_s is None else instant(at_s, zone)
