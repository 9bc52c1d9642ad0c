"""Who was backed up in the last night, on the page: those first who were not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import Final

from pvehook.records.figures import short_duration
from pvehook.report.night_turns import (
    NOT_BACKED_UP,
    GuestTurns,
    NightTurns,
    age_in_words,
    clock,
    counted_in_words,
    day_in_words,
    night_in_words,
    reason_of,
    result_in_words,
    run_in_words,
)
from pvehook.report.page_parts import safe

ROWS_OPEN: Final = 12
"""A longer list of guests that were backed up is folded."""
RUNS_SHOWN: Final = 6
_COLUMNS: Final = ("Guest", "Result", "When", "Last good backup", "Reason")
_LOOKS: Final = {"ok": "none", "refused": "slowed", "unknown": "unknown", None: "none"}
"""A result in the style of a severity; the others as what is worst."""


def turns_section(turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    """The section, as HTML."""
    bad = sorted(
        (guest for guest in turns.guests if guest.result in NOT_BACKED_UP),
        key=lambda guest: NOT_BACKED_UP.index(guest.result or ""),
    )
    good = turns.with_result("ok")
    yield '<section id="turns"><h2>Who was backed up</h2>'
    yield f'<div class="card night"><p class="muted small">Night of {night_in_words(turns, zone)}</p>'
    yield f"<p>{safe(counted_in_words(turns, zone))}.</p>"
    runs = [run for run in turns.runs if len(turns.runs) > 1 or not run.is_plain][:RUNS_SHOWN]
    items = "".join(f"<li>{clock(run.turns[0].started_s, zone)} {safe(run_in_words(run))}</li>" for run in runs)
    yield f'<ul class="causes small">{items}</ul>' if items else ""
    yield from _table(bad, turns, zone) if bad else ()
    yield from _folded(f"{len(good)} backed up", good, turns, zone)
    yield from _folded(f"{len(turns.others)} that had no turn in this night", turns.others, turns, zone)
    yield "</div></section>"


def _folded(title: str, guests: Sequence[GuestTurns], turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    if not guests:
        return
    yield f"<details{' open' if len(guests) <= ROWS_OPEN else ''}><summary>{title}</summary>"
    yield from _table(guests, turns, zone)
    yield "</details>"


def _table(guests: Sequence[GuestTurns], turns: NightTurns, zone: tzinfo) -> Iterator[str]:
    has_reasons = any(guest.result != "ok" for guest in guests if guest.turns)
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
    yield safe(reason_of(turn)) if turn is not None and turn.result != "ok" else ""
