"""Pieces that the page's sections share. Whatever others named is made printable and escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.records.figures import BROKEN_MARK, short_number

REASON_LIMIT: Final = 600


def safe(text: str, limit: int = REASON_LIMIT) -> str:
    """A text of others in the page."""
    return escape(printable(text, limit))


def arrows(escaped: str) -> str:
    """`4.1 > 1310` and `9.2 -> 10.0` as a page can write them."""
    return escaped.replace("-&gt;", "→").replace(" &gt; ", " → ")


def definitions(css: str, items: Iterable[tuple[str, str]]) -> str:
    """Values with what they are. As HTML, both."""
    shown = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in items)
    return f'<dl class="{css}">{shown}</dl>'


def severity_word(severity: str) -> str:
    """A severity, in its colour."""
    return f'<span class="word {safe(severity)}">{safe(severity.replace("-", " "))}</span>'


def shown_figure(measured: Measured[float], unit: str) -> str:
    """A value with its unit, or a mark with its reason."""
    if isinstance(measured, (Absent, Broken)):
        is_broken = isinstance(measured, Broken)
        css, mark, kind = ("broken", BROKEN_MARK, "could not be read") if is_broken else ("absent", "–", "not there")
        return f'<span class="{css}" title="{kind}: {safe(measured.why)}">{mark}</span>'
    return short_number(measured) + (f"&#8239;{unit}" if unit else "")


def shown_pair(before: Measured[float], during: Measured[float]) -> str:
    """Milliseconds before and during a backup."""
    if isinstance(before, (Absent, Broken)) and type(before) is type(during):
        return shown_figure(during, "")
    return f"{shown_figure(before, '')} → {shown_figure(during, 'ms')}"


def swatch(chart: str, kind: str, path: str, words: str) -> str:
    """One entry of a chart's key."""
    drawn = f'<svg class="{chart}" viewBox="0 0 18 12" aria-hidden="true"><path class="{kind}" d="{path}"/></svg>'
    return f"<span>{drawn}{words}</span>"
