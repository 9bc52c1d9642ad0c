"""What guests suffered beside the backups of others, in a terminal.

beside the backups of others, night of 2026-11-24
guest        own  stalled   slowed        p99  whose backup
VM 104 db     0s      17s      40s    15>2405  VM 103 15s, CT 110 2s
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Final

from pvehook.contract.measured import Absent, Measured
from pvehook.records.figures import before_and_during, marked, short_number
from pvehook.report.beside import Beside, backup_in_words, suffered_in_words, whose
from pvehook.report.terminal_style import TerminalStyle
from pvehook.report.trends import day

GUESTS_SHOWN: Final = 10
NIGHTS_SHOWN: Final = 7
BACKUPS_SHOWN: Final = 3  # of those beside which a guest suffered in a night

_FIXED = "{:>6} {:>8} {:>8} {:>10}  {}"


def beside_lines(
    found: Sequence[Beside], own: Mapping[int, Measured[float]], number_shown: int, zone: tzinfo, style: TerminalStyle
) -> list[str]:
    """Those who suffered in one night, the worst first. `own`: the stalled seconds of each guest that was backed up in
    it, in its own backup. Nothing where nobody suffered."""
    suffered = [each for each in found if each.suffered]
    if not suffered:
        return []
    night = day(max(run.started_s for each in suffered for run in each.runs), zone)
    shown = suffered[:number_shown]
    guest = min(18 + max(style.columns - 80, 0) // 4, max(len(each.title) for each in shown))
    columns = _FIXED.format("own", "stalled", "slowed", "p99", "whose backup")
    lines = ["", f"beside the backups of others, night of {night}", f"{'guest':<{guest}} {columns}"]
    for each in shown:
        stalled = f"{marked(each.stalled_s, _seconds):>8}"
        fixed = _FIXED.format(
            marked(own.get(each.vmid, Absent("it was not backed up")), _seconds),
            style.painted(stalled, each.severity) if each.severity != "slowed" else stalled,
            marked(each.slowed_s, _seconds),
            before_and_during(each.slowest.baseline_p99_ms, each.slowest.p99_ms),
            _cut(whose(each, "{} {}s"), style.columns - guest - 1 - len(_FIXED.format(*[""] * 5))),
        )
        lines.append(f"{style.shown(each.title):<{guest}.{guest}} {fixed}".rstrip())
    if left_out := len(suffered) - len(shown):
        lines.append(f"{left_out} more suffered less; --worst shows more")
    lines.append("own        stalled seconds in its own backup; the other figures: beside others'")
    return lines


def beside_nights(nights: Sequence[Beside], number: int, zone: tzinfo, style: TerminalStyle) -> list[str]:
    """One guest's last nights in which it suffered beside others, the last first, of `number` of them."""
    lines = ["", "beside the backups of others"] if nights else []
    for each in nights:
        text = style.painted(suffered_in_words(each), each.severity)
        lines.append(f"{day(each.runs[0].started_s, zone)} {text}")
        for backup in each.backups[:BACKUPS_SHOWN]:
            lines += style.wrapped(backup_in_words(backup), first=" " * 11, others=" " * 13)
        for why in each.unknown[:BACKUPS_SHOWN]:
            lines += style.wrapped(f"what it shares is not known: {why}", first=" " * 11, others=" " * 13)
    if left_out := number - len(nights):
        lines.append(f"           and in {left_out} night{'s' if left_out != 1 else ''} before")
    return lines


def _seconds(seconds: float) -> str:
    return f"{short_number(seconds)}s"


def _cut(texts: Sequence[str], room: int) -> str:
    """As many of them as there is room for."""
    shown = ""
    for number, text in enumerate(texts):
        longer = f"{shown}, {text}" if shown else text
        if len(longer) + (4 if number + 1 < len(texts) else 0) > room:
            return f"{shown} +{len(texts) - number}" if shown else text[:room]
        shown = longer
    return shown
