"""When the guests of a job are expected to begin and end, and who would be refused if they do not all fit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import NamedTuple

from pvehook.config.in_force import InForce
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.night.forecasts import disk_sizes, past_turns, run_forecast, waiting
from pvehook.night.run_plan import in_words
from pvehook.records.guest_forecast import GuestForecast, RunForecast
from pvehook.records.history import history_file
from pvehook.rules.fair_turns import Night, gives_way
from pvehook.rules.forecast import Expected, timeline
from pvehook.rules.window import window_state


class ExpectedGuest(NamedTuple):
    """Times are aware; None: not known."""

    start: datetime | None = None
    end: tuple[datetime, datetime, datetime] | None = None
    """Expected, the earliest and the latest."""
    gives_way_to: tuple[int, ...] = ()
    is_late: bool = False
    """Its turn comes after the window has closed."""

    @property
    def is_refused(self) -> bool:
        return self.is_late or bool(self.gives_way_to)

    def as_json(self) -> dict[str, object]:
        end, earliest, latest = (each.isoformat() for each in self.end) if self.end is not None else (None, None, None)
        return {
            "start": self.start.isoformat() if self.start is not None else None,
            "end": end,
            "earliest_end": earliest,
            "latest_end": latest,
            "gives_way_to": list(self.gives_way_to),
            "is_late": self.is_late,
        }

    def in_words(self) -> str:
        if self.gives_way_to:
            return f"it would give way to {', '.join(map(str, self.gives_way_to))}, which waited longer"
        start = f"{self.start:%H:%M}" if self.start is not None else "not known"
        if self.is_late:
            return f"expected to begin at {start}, too late: the window has closed by then"
        if self.end is None:
            return f"expected to begin at {start}; how long it takes is not known"
        end, earliest, latest = self.end
        return f"expected from {start} to {end:%H:%M} ({earliest:%H:%M}-{latest:%H:%M})"


def expect_run(
    node: Node,
    reader: TimelyReader,
    in_force: InForce,
    job_id: str | None,
    when: datetime,
    vmids: Collection[int],
    is_bound: Callable[[int, datetime], bool],
) -> tuple[str, dict[int, ExpectedGuest]]:
    """A run of these guests that begins then, in words and by guest. `is_bound`: whether a guest would be refused at
    that time, when the window has closed."""
    state = window_state(in_force.window, when)
    closes_s = state.closes_at.timestamp() if state.closes_at is not None else None
    try:
        now_s, sizes = when.timestamp(), disk_sizes(node, reader, vmids)
        forecast = run_forecast(vmids, job_id, past_turns(history_file(node), now_s), sizes, now_s, closes_s)
    except NodeError as error:
        return f"when it ends is not known: {error}", {}
    closes = state.closes_at
    bound = {vmid for vmid in vmids if is_bound(vmid, closes)} if closes is not None else set()
    return in_words(forecast, in_force), expected_guests(forecast, bound, in_force)


def expected_guests(forecast: RunForecast, bound: Collection[int], in_force: InForce) -> dict[int, ExpectedGuest]:
    """The run as it is expected to go. `bound` by the window are those that are refused when it has closed."""
    zone, window, closes_s = in_force.window.zone, in_force.config.window, forecast.closes_s
    night_s = closes_s - forecast.made_s if closes_s is not None else 0.0
    backed_up: list[tuple[int, Expected | None]] = []
    refused: list[GuestForecast] = []
    found: dict[int, ExpectedGuest] = {}
    for number, guest in enumerate(forecast.guests):
        now_s = timeline(backed_up, forecast.made_s, closes_s).end_s
        if closes_s is not None and guest.vmid in bound:
            if now_s >= closes_s:
                found[guest.vmid] = ExpectedGuest(datetime.fromtimestamp(now_s, zone), is_late=True)
                continue
            why = None
            if window.when_short == "rotate":
                coming = [waiting(each, now_s, each.vmid in bound) for each in forecast.guests[number:]]
                gone = [waiting(each, now_s, is_bound=True) for each in refused]
                night = Night(closes_s - now_s, night_s, must_end=window.running_guest == "cancel")
                why = gives_way(coming, gone, night)
            if why is not None:
                found[guest.vmid] = ExpectedGuest(gives_way_to=why.to)
                refused.append(guest)
                continue
        backed_up.append((guest.vmid, guest.expected))
    for turn in timeline(backed_up, forecast.made_s, closes_s).turns:
        start = datetime.fromtimestamp(turn.start_s, zone) if turn.start_s is not None else None
        end = None
        if turn.end_s is not None:
            likely, earliest, latest = (datetime.fromtimestamp(each, zone) for each in turn.end_s)
            end = (likely, earliest, latest)
        found[turn.vmid] = ExpectedGuest(start, end)
    return found
