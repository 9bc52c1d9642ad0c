"""`pvehook night` in a terminal, at 80 columns: what is wrong comes first.

pvehook: night of Mon 2026-11-23 to Tue 2026-11-24, node pve1
37 of 40 guests were backed up, 2 refused, 1 failed, from 02:00 to 05:07 (3h07).

OVERDUE
VM 140 archive   last good backup 5d03h ago
  refused 4 nights: the window closed before its turn
  pvehook allow --vmid 140 --for 4h --reason "overdue"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import tzinfo
from typing import Final

from pvehook.contract.measured import Absent, Measured, value_of
from pvehook.contract.text import printable
from pvehook.night.advice import Advice
from pvehook.night.summary import LastGood, NightSummary, RunningRun, last_goods
from pvehook.records.figures import marked, short_number
from pvehook.report.beside import whose
from pvehook.report.forecast_outcome import forecast_in_words, forecast_outcome
from pvehook.report.night_turns import (
    NOT_BACKED_UP,
    NightTurns,
    clock,
    counted_in_words,
    day_in_words,
    night_in_words,
    passed_over_in_words,
    reason_of,
    result_in_words,
    run_in_words,
)
from pvehook.report.node_night import Row
from pvehook.report.standing import Standing, ago, last_good_in_words, promise_in_words, way_out
from pvehook.report.terminal_style import TerminalStyle

OVERDUE_SHOWN: Final = 5
GUESTS_NAMED: Final = 8
"""In one block of guests that were not backed up for the same reason."""
JOBS_SHOWN: Final = 3
BLOCKS_SHOWN: Final = 10
RUNS_SHOWN: Final = 6
SUFFERED_SHOWN: Final = 5
LAST_GOOD_SHOWN: Final = 10
BACKUPS_SHOWN: Final = 2
_INDENT: Final = " " * 13


def night_lines(summary: NightSummary, now_s: float, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """All of it; `now_s` is in seconds since the epoch."""
    turns = summary.turns
    node = printable(", ".join(turns.nodes), 60)
    return [
        f"pvehook: night of {night_in_words(turns, zone)}, node {style.shown(node)}",
        *style.wrapped(headline(summary, zone)),
        *(_running(summary.running, zone, style) or _since_then(turns, now_s, zone, style)),
        *_not_understood(summary.standings, style),
        *_overdue(summary, zone, style),
        *_not_backed_up(turns, zone, style),
        *_runs(turns, zone, style),
        *_suffered(summary.suffered, style),
        *_forecast(summary, zone, style),
        *_advice(summary.advice, style),
        *_last_good(summary, zone, style),
    ]


# The first sentences


def headline(summary: NightSummary, zone: tzinfo) -> str:
    """How many were backed up, when, and whether all have a backup within what their jobs promise."""
    return f"{counted_in_words(summary.turns, bool(summary.running), zone)}. {promise_in_words(summary.standings)}"


def _running(runs: Sequence[RunningRun], zone: tzinfo, style: TerminalStyle) -> list[str]:
    lines = []
    for run in runs:
        guest = f" (guest {run.vmid})" if run.vmid is not None else ""
        text = f"A backup is running now{guest}: each guest is in here when its turn is over"
        if run.to_come:
            text += f"; {run.to_come} guest{' is' if run.to_come == 1 else 's are'} still to come"
        if run.expected_end_s is not None:
            text += f"; the run was expected to end at {clock(run.expected_end_s, zone)}"
        lines += style.wrapped(f"{text}.")
    return lines


def _since_then(turns: NightTurns, now_s: float, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """A later night without any run is told: it would look like this one."""
    six_hours_s = 6 * 3600  # from six in the morning on a night without a run is one
    if now_s - six_hours_s < turns.to_s + 12 * 3600:
        return []
    now = f"{day_in_words(now_s, zone)} {clock(now_s, zone)}"
    since = f"No run is on record since then; it is {now}. `journalctl -u pvescheduler` shows whether one began."
    return style.wrapped(since)


def _not_understood(standings: Measured[tuple[Standing, ...]], style: TerminalStyle) -> list[str]:
    texts = dict.fromkeys(text for each in value_of(standings) or () for text in each.not_understood)
    lines = [line for text in list(texts)[:JOBS_SHOWN] for line in style.wrapped(f"Not counted: {text}.")]
    return [*lines, *_more(len(texts) - JOBS_SHOWN, "jobs are not counted")]


# Sections


def _overdue(summary: NightSummary, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """All ways out of the first one: those for good are much the same for the others. A cause that several share is
    told once."""
    found = summary.overdue
    lines = ["", style.painted("OVERDUE", "stalled")] if found else []
    cause = ""
    for number, each in enumerate(found[:OVERDUE_SHOWN]):
        last_good = last_good_in_words(each, summary.turns.as_of_s, zone)
        lines += style.wrapped(f"{each.title}: {last_good}", others="  ")
        if each.cause != cause:
            lines += style.wrapped(each.cause, first="  ", others="  ")
        cause = each.cause
        for way in each.ways_out[: 1 if number else None]:
            lines += _way_out(way, style)
    return [*lines, *_more(len(found) - OVERDUE_SHOWN, "overdue; --json has all")]


def _way_out(way: str, style: TerminalStyle) -> list[str]:
    what_for, command = way_out(way)
    return [*style.wrapped(f"{what_for}:", first="  ", others="  "), *_command(command, "    ", style)]


def _command(command: str, indent: str, style: TerminalStyle) -> list[str]:
    """A shell reads on after `&&`, so a command may be broken there and nowhere else."""
    return [f"{indent}{line}" for line in style.shown(printable(command, 600)).replace(" && ", " &&\n").split("\n")]


def _not_backed_up(turns: NightTurns, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """Guests with one reason share a block: a run that is refused as a whole may be 40 of them."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for result in NOT_BACKED_UP:
        for guest in turns.with_result(result):
            if (turn := guest.counted) is not None:
                named = f"{guest.title} ({clock(turn.started_s, zone)})"
                blocks.setdefault((result_in_words(result), reason_of(turn)), []).append(named)
    for guest in turns.passed_over:
        reason = passed_over_in_words(guest.passed_over_by or "")
        blocks.setdefault((result_in_words(None), reason), []).append(guest.title)
    lines = ["", "not backed up"] if blocks else []
    for (result, reason), names in list(blocks.items())[:BLOCKS_SHOWN]:
        more = [f"and {len(names) - GUESTS_NAMED} more"] if len(names) > GUESTS_NAMED else []
        lines += _listed([*names[:GUESTS_NAMED], *more], f"{result:<{len(_INDENT)}}", style)
        lines += style.wrapped(reason, first=_INDENT, others=_INDENT)
    left_out = sum(map(len, list(blocks.values())[BLOCKS_SHOWN:]))
    return [*lines, *_more(left_out, "for other reasons; --json has all")]


def _listed(names: Sequence[str], first: str, style: TerminalStyle) -> list[str]:
    """Names with commas between, none of them broken; behind `first`."""
    room = style.columns - len(first) - 1
    lines = [""]
    for name in names:
        shown = style.shown(printable(name, room))
        if lines[-1] and len(lines[-1]) + len(f", {shown}") > room:
            lines[-1] += ","
            lines.append(shown)
        else:
            lines[-1] += f", {shown}" if lines[-1] else shown
    return [f"{' ' * len(first) if number else first}{line}" for number, line in enumerate(lines)]


def _runs(turns: NightTurns, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """Nothing where one run by its schedule is all there was."""
    runs = turns.runs
    if len(runs) == 1 and runs[0].is_plain:
        return []
    lines = ["", "runs"] if runs else []
    for run in runs[:RUNS_SHOWN]:
        began, ended = clock(run.turns[0].started_s, zone), clock(max(turn.ended_s for turn in run.turns), zone)
        when = began if run.is_refused else f"{began}-{ended}"
        lines += style.wrapped(run_in_words(run), first=f"{when:<{len(_INDENT)}}", others=_INDENT)
    return [*lines, *_more(len(runs) - RUNS_SHOWN, "runs")]


def _suffered(rows: Sequence[Row], style: TerminalStyle) -> list[str]:
    if not rows:
        return []
    shown = rows[:SUFFERED_SHOWN]
    width = min(18 + max(style.columns - 80, 0) // 4, max(len(row.title) for row in shown))
    form = f"{{:<{width}.{width}}} {{:>8}} {{:>8}} {{:>8}} {{:>8}}  {{}}"
    over = f"{'':<{width}} {'its own backup':>17} {'beside others':>17}"
    lines = ["", "suffered from the backups, worst first", over]
    lines.append(form.format("guest", *("stalled", "slowed") * 2, "whose backup"))
    for row in shown:
        beside = row.beside
        nothing: Measured[float] = Absent("it did not suffer beside others")
        by = ", ".join(whose(beside, "{} {}s")[:BACKUPS_SHOWN]) if beside is not None and beside.suffered else ""
        figures = (row.stalled_s, row.slowed_s, *((beside.stalled_s, beside.slowed_s) if beside else (nothing,) * 2))
        lines.append(form.format(style.shown(row.title), *(marked(each, _seconds) for each in figures), by).rstrip())
    lines += _more(len(rows) - SUFFERED_SHOWN, "less; pvehook report shows them")
    return [*lines, "stalled: a disk request took over 1 s; slowed: over 0.1 s"]


def _forecast(summary: NightSummary, zone: tzinfo, style: TerminalStyle) -> list[str]:
    found = forecast_outcome(summary.turns)
    if found is None:
        return []
    sentences = forecast_in_words(found, summary.turns, zone)
    return ["", "forecast", *(line for text in sentences for line in style.wrapped(text, others="  "))]


def _advice(found: Iterable[Advice], style: TerminalStyle) -> list[str]:
    lines = []
    for number, each in enumerate(found, 1):
        lines += style.wrapped(f"{each.text}{':' if each.commands else ''}", first=f"{number}. ", others="   ")
        lines += [line for command in each.commands for line in _command(command, "   ", style)]
    return ["", "what to do", *lines] if lines else []


def _last_good(summary: NightSummary, zone: tzinfo, style: TerminalStyle) -> list[str]:
    found = last_goods(summary)
    shown = found[:LAST_GOOD_SHOWN]
    width = min(30 + max(style.columns - 80, 0) // 2, max(len(each.title) for each in shown)) if shown else 0
    lines = ["", "last good backup, the oldest first"] if shown else []
    lines += [_last_good_line(each, width, summary.turns.as_of_s, zone, style) for each in shown]
    return [*lines, *_more(len(found) - LAST_GOOD_SHOWN, "with newer ones; --json has all")]


def _last_good_line(each: LastGood, width: int, as_of_s: float, zone: tzinfo, style: TerminalStyle) -> str:
    title = f"{style.shown(each.title):<{width}.{width}}"
    note = style.painted(each.note.upper(), "stalled") if each.note == "overdue" else each.note
    return f"{title}  {ago(each.last_good_s, as_of_s, zone):<34}  {note}".rstrip()


def _more(number: int, what: str) -> list[str]:
    return [f"and {number} more {what}"] if number > 0 else []


def _seconds(seconds: float) -> str:
    return f"{short_number(seconds)}s"
