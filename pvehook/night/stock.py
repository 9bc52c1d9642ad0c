"""What the daemon does about overdue guests at a run's end: journal and notification once a day, the run's table, the
figures.

Whatever goes wrong here costs a log line: the run has ended, and its phase must not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import partial
from typing import Final, TypeAlias

from pvehook.config.in_force import InForce
from pvehook.deadline import Deadline
from pvehook.host.clock import local_zone
from pvehook.night.notices import overdue_notices
from pvehook.night.standings import standings
from pvehook.records.context import Context
from pvehook.records.job_table import OverdueGuest
from pvehook.records.known_guests import KnownGuest
from pvehook.report.standing import Standing, ago
from pvehook.settings import MetricsConfig

STOCK_S: Final = 3.0
"""How long a run's end waits for the jobs and the history."""

KeepGuests: TypeAlias = Callable[[Mapping[int, KnownGuest], MetricsConfig, Deadline], None]
"""Keeps which guests the node has, and who of them is overdue."""

_one_at_a_time = threading.Lock()
"""Jobs that are refused in the same second must not each log the same guest."""


def take_stock(context: Context, in_force: InForce, keep: KeepGuests, deadline: Deadline) -> list[OverdueGuest]:
    """Finds out who is overdue, and logs each of them once a day. Returns them for the run's table. Never raises."""
    until = deadline.within(STOCK_S)
    if not _one_at_a_time.acquire(timeout=until.left_s()):
        return []
    try:
        now_s = context.clock.now_s()
        found, zone = _read(context, in_force, now_s, until)
        for text in dict.fromkeys(text for each in found for text in each.not_understood):
            context.log.warning("schedule-not-understood", message=f"{text}; what it promises is not counted")
        overdue = [each for each in found if each.is_overdue]
        due = [each for each in overdue if not _was_logged_today(each, now_s, zone)]
        for each in due:
            _log(context, each, now_s, zone)
        guests = {
            each.vmid: KnownGuest(
                each.promised_s, now_s if each.is_overdue else None, now_s if each in due else None
            )
            for each in found
        }
        keep(guests, in_force.config.metrics, deadline)
        told = [
            OverdueGuest(each.vmid, each.title, ago(each.last_good_s, now_s, zone).strip(), each.cause, each.ways_out)
            for each in overdue
        ]
        context.tell(partial(overdue_notices, told))
        return told
    except Exception as fault:  # of ours, or of a node that is not what we expect
        context.log.error("overdue-not-known", message=f"whether guests are overdue is not known: {fault}")
        return []
    finally:
        _one_at_a_time.release()


def _read(context: Context, in_force: InForce, now_s: float, until: Deadline) -> tuple[Sequence[Standing], tzinfo]:
    """Raises NodeError, OSError."""
    night, node = context.readers.night, context.node
    read = partial(standings, node, context.readers.config, in_force, now_s)
    found = night.within(until.left_s(), "who is promised a backup", read)
    return found, night.within(until.left_s(), "/etc/localtime", partial(local_zone, node))


def _was_logged_today(standing: Standing, now_s: float, zone: tzinfo) -> bool:
    """A clock that was ahead for a night must not keep it quiet until then."""
    logged_s = standing.overdue_logged_s
    if logged_s is None or logged_s > now_s:
        return False
    return datetime.fromtimestamp(logged_s, zone).date() == datetime.fromtimestamp(now_s, zone).date()


def _log(context: Context, standing: Standing, now_s: float, zone: tzinfo) -> None:
    last_good = standing.last_good_s
    turns = f"{standing.missed_turns} turn{'s' if standing.missed_turns > 1 else ''} missed"
    since, last_success = "no good backup on record", None
    if last_good is not None:
        last_success = datetime.fromtimestamp(last_good, zone).isoformat(timespec="seconds")
        since = f"last good backup {ago(last_good, now_s, zone).strip()}"
    context.log.critical(
        "guest-overdue",
        message=f"{standing.title} is OVERDUE: {since}, {turns}: {standing.cause}; {standing.ways_out[0]}",
        vmid=standing.vmid,
        last_success=last_success,
        missed_turns=standing.missed_turns,
        cause=standing.cause,
        ways_out=standing.ways_out,
    )
