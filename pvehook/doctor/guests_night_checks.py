"""PVH-413 and 414: who stalled in the last nights, and who has no backup of late."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, TypeAlias

from pvehook.doctor.finding import Finding, Severity
from pvehook.doctor.guests_facts import GuestsFacts
from pvehook.doctor.guests_nights import NIGHTS, BadNight
from pvehook.records.figures import short_number
from pvehook.report.standing import last_good_in_words, way_out

Findings: TypeAlias = Iterator[Finding]

WHYS: Final = 3


def stalled(facts: GuestsFacts) -> Findings:
    """Guests that stood still in a backup, their own or one beside them."""
    titles = {guest.vmid: guest.title for guest in facts.guests}
    of_guest: dict[int, list[BadNight]] = {}
    for each in facts.bad_nights:
        of_guest.setdefault(each.vmid, []).append(each)
    for vmid, found in of_guest.items():
        if vmid not in titles:
            continue  # it has left this node
        was_locked = any(each.severity == "locked-up" for each in found)
        worst = max(found, key=lambda each: (each.severity == "locked-up", each.stalled_s or 0.0))
        nights = len({each.night_s for each in found})
        when = datetime.fromtimestamp(worst.night_s, facts.zone)
        how = "locked up" if was_locked else "stalled"
        evidence = f"{how} in {nights} of the last {NIGHTS} nights, worst in the one to {when:%a %Y-%m-%d}"
        if worst.stalled_s:
            evidence += f" ({short_number(worst.stalled_s)} s)"
        whys = list(dict.fromkeys(each.why for each in found if each.why))[:WHYS]
        evidence += f": {'; '.join(whys)}" if whys else ""
        severity: Severity = "error" if any(each.is_last for each in found) else "warning"
        yield Finding(titles[vmid], severity, evidence, (f"pvehook report --vmid {vmid}",), vmid=vmid)


def overdue(facts: GuestsFacts) -> Findings:
    """Guests without a backup within what their jobs promise."""
    for each in facts.standings:
        if each.is_overdue:
            evidence = f"overdue: {last_good_in_words(each, facts.now_s, facts.zone)}; {each.cause}"
            remedy = tuple(command for _, command in map(way_out, each.ways_out)) or ("pvehook night",)
            yield Finding(each.title, "error", evidence, remedy, vmid=each.vmid)
