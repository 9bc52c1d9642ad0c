"""Who was backed up in the last night, on the page: those first who were not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import Final

from pvehook.contract.measured import Measured, value_of
from pvehook.records.figures import short_duration
from pvehook.report.forecast_outcome import forecast_in_words, forecast_outcome
from pvehook.report.night_turns import (
    NOT_BACKED_UP,
    GuestTurns,
    NightTurns,
    age_in_words,
    clock,
    counted_in_words,
    day_in_words,
    night_in_words,
    passed_over_in_words,
    reason_of,
    result_in_words,
    run_in_words,
)
from pvehook.report.page_parts import safe
from pvehook.report.standing import Standing, last_good_in_words, named, promise_in_words, still_to_come, way_out

ROWS_OPEN: Final = 5
"""A longer list of guests that were backed up is folded."""
OVERDUE_SHOWN: Final = 10
RUNS_SHOWN: Final = 6
_COLUMNS: Final = ("Guest", "Result", "When", "Last good backup", "Reason")
_LOOKS: Final = {"ok": "none", "refused": "slowed", "unknown": "unknown", None: "none"}
"""A result in the style of a severity; the others as what is worst."""


def turns_section(
    turns: NightTurns, standings: Measured[tuple[Standing, ...]], is_running: bool, zone: tzinfo
) -> Iterator[str]:
    """The section, as HTML. `standings`: of all guests of the node; `is_running`: a run goes on now."""
    known = value_of(standings) or ()
    turns = named(still_to_come(turns) if is_running else turns, standings)
    bad = sorted(
        (guest for guest in turns.guests if guest.result in NOT_BACKED_UP),
        key=lambda guest: NOT_BACKED_UP.index(guest.result or ""),
    )
    good = turns.with_result("ok")
    others = _others(turns, known)
    yield '<section id="turns"><h2>Who was backed up</h2>'
    for each in [each for each in known if each.is_overdue][:OVERDUE_SHOWN]:
        yield _overdue(each, turns.as_of_s, zone)
    yield f'<div class="card night"><p class="muted small">Night of {night_in_words(turns, zone)}</p>'
    yield f"<p>{safe(counted_in_words(turns, is_running, zone))}. {safe(promise_in_words(standings))}</p>"
    runs = [run for run in turns.runs if len(turns.runs) > 1 or not run.is_plain][:RUNS_SHOWN]
    items = "".join(f"<li>{clock(run.turns[0].started_s, zone)} {safe(run_in_words(run))}</li>" for run in runs)
    yield f'<ul class="causes small">{items}</ul>' if items else ""
    if (forecast := forecast_outcome(turns)) is not None:
        yield f'<p class="small">Forecast: {safe("; ".join(forecast_in_words(forecast, turns, zone)))}.</p>'
    if is_running:
        yield '<p class="small">A backup is running now: each guest is in here when its turn is over.</p>'
    yield from _table([*bad, *turns.passed_over], turns, zone) if bad or turns.passed_over else ()
    yield from _folded(f"{len(good)} backed up", good, turns, zone)
    yield from _folded(f"{len(others)} that had no turn in this night", others, turns, zone)
    yield "</div></section>"


def _overdue(each: Standing, as_of_s: float, zone: tzinfo) -> str:
    """What fixes it for good is folded."""
    text = f"<strong>{safe(each.title)} is overdue: {safe(last_good_in_words(each, as_of_s, zone))}.</strong>"
    cause = f"{each.cause[:1].upper()}{each.cause[1:]}"
    now, *others = [_way_out(way) for way in each.ways_out] or [""]
    more = f"<details><summary>what helps for good</summary>{''.join(others)}</details>" if others else ""
    return f'<div class="loud">{text} {safe(cause)}.{now}{more}</div>'


def _way_out(way: str) -> str:
    what_for, command = way_out(way)
    return f'<p class="small">{safe(what_for)}:<br><code>{safe(command)}</code></p>'


def _others(turns: NightTurns, standings: Sequence[Standing]) -> list[GuestTurns]:
    """The oldest good backup first. Where the node's guests are known, those that are gone are left out."""
    with_turn = {guest.vmid for guest in (*turns.guests, *turns.passed_over)}
    known = [GuestTurns(each.vmid, each.title, (), each.last_good_s) for each in standings]
    others = [guest for guest in known or turns.others if guest.vmid not in with_turn]
    return sorted(others, key=lambda guest: guest.last_good_s or 0.0)


def _folded(title: str, guests: Sequence[GuestTurns], turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    if not guests:
        return
    yield f"<details{' open' if len(guests) <= ROWS_OPEN else ''}><summary>{title}</summary>"
    yield from _table(guests, turns, zone)
    yield "</details>"


def _table(guests: Sequence[GuestTurns], turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    has_reasons = any(guest.passed_over_by or guest.result not in ("ok", None) for guest in guests)
    columns = _COLUMNS if has_reasons else _COLUMNS[:-1]
    heads = "".join(f'<th scope="col">{name}</th>' for name in columns)
    yield f'<table class="rows turns"><thead><tr>{heads}</tr></thead><tbody>'
    for guest in guests:
        cells = zip(columns, _cells(guest, turns, zone), strict=False)
        labelled = (f'<td{_empty(cell)} data-label="{name[:1].lower()}{name[1:]}">{cell}</td>' for name, cell in cells)
        yield f"<tr>{''.join(labelled)}</tr>"
    yield "</tbody></table>"


def _empty(cell: str) -> str:
    return "" if cell else ' class="empty"'


def _cells(guest: GuestTurns, turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    turn = guest.counted
    yield safe(guest.title)
    yield f'<span class="word {_LOOKS.get(guest.result, "stalled")}">{result_in_words(guest.result)}</span>'
    took = f", {short_duration(turn.duration_s)}" if turn is not None and turn.result != "refused" else ""
    yield f"{clock(turn.started_s, zone)}{took}" if turn is not None else ""
    began = f", {day_in_words(guest.last_good_s, zone)}" if guest.last_good_s is not None else ""
    yield f"{age_in_words(guest, turns.as_of_s)}{began}"
    if guest.passed_over_by is not None and turn is None:
        yield safe(passed_over_in_words(guest.passed_over_by))
    else:
        yield safe(reason_of(turn)) if turn is not None and turn.result != "ok" else ""
