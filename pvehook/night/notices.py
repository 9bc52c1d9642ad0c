"""Which notices a run gives: of guests that stalled, were frozen too long, are overdue. And those that are given at
once, because somebody may have to act now.

Each is given for the guests of which it is new tonight; what a guest suffers in a later run of the same night is in the
journal and in `pvehook night`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pvehook.contract.measured import value_of
from pvehook.contract.text import printable
from pvehook.night.advice import about_suffered
from pvehook.records.beside_record import BesideRecord
from pvehook.records.beside_summary import beside_message
from pvehook.records.figures import figures, short_number
from pvehook.records.guest_summary import guest_number, stall_in_words
from pvehook.records.job_table import OverdueGuest
from pvehook.records.notice import Notice, Told
from pvehook.records.stall_record import StallRecord
from pvehook.report.standing import way_out
from pvehook.settings import FreezeConfig

SHOWN: Final = 10
"""Guests with a line of their own."""
ADVISED: Final = 3
"""Guests with commands of their own."""
THAW_MS: Final = 2000
"""A freeze is over its limit when it lasted so much longer: the thaw at the limit takes its time, too."""
STALLED: Final = ("stalled", "locked-up")

STALLED_EVENT: Final = "guest-stalled"
FROZEN_EVENT: Final = "guest-frozen"
OVERDUE_EVENT: Final = "guest-overdue"
NIGHT: Final = ("the whole night", "pvehook night")


class _Stalled(NamedTuple):
    """One guest's part."""

    vmid: int
    name: str
    is_locked_up: bool
    stalled_s: float
    lines: tuple[str, ...]

    @property
    def in_short(self) -> str:
        if self.is_locked_up:
            return f"{self.name} locked up"
        return f"{self.name} stalled for {short_number(self.stalled_s)} s"


def run_notices(
    records: Collection[StallRecord], beside: Sequence[BesideRecord], freeze: FreezeConfig, told: Told
) -> list[Notice]:
    """Of one run, at its end: guests that stalled, in their own backups or beside those of others, and guests that
    were frozen for longer than the limit."""
    return [*_frozen(records, freeze.frozen_at_most_s, told), *_stalled(records, beside, told)]


def _stalled(records: Collection[StallRecord], beside: Sequence[BesideRecord], told: Told) -> list[Notice]:
    own = {each.vmid: each for each in records if each.verdict.severity in STALLED}
    others = {each.vmid: each for each in beside if each.severity in STALLED}
    new = (own.keys() | others.keys()) - set(told.get(STALLED_EVENT, ()))
    guests = [_stalled_guest(vmid, own.get(vmid), others.get(vmid)) for vmid in new]
    guests.sort(key=lambda each: (each.is_locked_up, each.stalled_s), reverse=True)
    if not guests:
        return []
    worst = guests[0]
    title = f"{worst.in_short} during the backups"
    if len(guests) > 1:
        title = f"{len(guests)} guests stalled during the backups; the worst: {worst.in_short}"
    causes = [(each.text, " && ".join(each.commands)) for each in about_suffered([own[v] for v in own if v in new])]
    details = [(f"{each.name} in detail", f"pvehook report --vmid {each.vmid}") for each in guests[:ADVISED]]
    lines = _limited([each.lines for each in guests])
    vmids = tuple(each.vmid for each in guests)
    return [Notice(STALLED_EVENT, "warning", vmids, title, lines, (*causes[:2], *details, NIGHT))]


def _stalled_guest(vmid: int, own: StallRecord | None, beside: BesideRecord | None) -> _Stalled:
    name, lines, seconds, severities = f"guest {vmid}", [], 0.0, []
    if beside is not None:
        name = _title(beside.vmtype, vmid, beside.name)
        lines.append(beside_message(beside))
        seconds += value_of(beside.stalled_s) or 0.0
        severities.append(beside.severity)
    if own is not None:
        name = _title(own.vmtype, vmid, own.name)
        lines.insert(0, f"{name}, in its own backup: {stall_in_words(own)}")
        seconds += value_of(figures(own)["stalled_s"]) or 0.0
        severities.append(own.verdict.severity)
    return _Stalled(vmid, name, "locked-up" in severities, seconds, tuple(lines))


def _frozen(records: Collection[StallRecord], at_most_s: float, told: Told) -> list[Notice]:
    def frozen_ms(record: StallRecord) -> float:
        return (record.freeze.frozen_ms or 0.0) if record.freeze is not None else 0.0

    late = [each for each in records if frozen_ms(each) > at_most_s * 1000 + THAW_MS]
    late = sorted((each for each in late if each.vmid not in told.get(FROZEN_EVENT, ())), key=frozen_ms, reverse=True)
    if not late:
        return []
    names = [_title(each.vmtype, each.vmid, each.name) for each in late]
    title = names[0] if len(late) == 1 else f"{len(late)} guests, the longest {names[0]}"
    lines = [
        f"{name}: frozen for {short_number(frozen_ms(each) / 1000)} s, the limit is {short_number(at_most_s)} s; "
        f"{each.freeze.why if each.freeze is not None else ''}".rstrip("; ")
        for name, each in zip(names, late, strict=True)
    ]
    advice = [(f"whether {name} is frozen the next time, and why", f"pvehook guest {each.vmid} freeze-check")
              for name, each in zip(names[:ADVISED], late, strict=False)]  # fmt: skip
    vmids = tuple(each.vmid for each in late)
    text = f"{title} frozen for {short_number(frozen_ms(late[0]) / 1000)} s"
    return [Notice(FROZEN_EVENT, "error", vmids, text, _limited([(line,) for line in lines]), (*advice, NIGHT))]


def overdue_notices(overdue: Sequence[OverdueGuest], told: Told) -> list[Notice]:
    """Of all guests that are overdue, those of which it is new tonight."""
    new = [each for each in overdue if each.vmid not in told.get(OVERDUE_EVENT, ())]
    if not new:
        return []
    title = f"{new[0].title} is" if len(new) == 1 else f"{len(new)} guests are"
    lines = _limited([(f"{each.title}: last good backup {each.last_good}; {each.cause}",) for each in new])
    advice = []
    for each in new[:ADVISED]:
        for what_for, command in map(way_out, each.ways_out[: 2 if len(new) == 1 else 1]):
            advice.append((f"{each.title}: {what_for}", command))
    vmids = tuple(each.vmid for each in new)
    return [Notice(OVERDUE_EVENT, "error", vmids, f"{title} overdue for a backup", lines, (*advice, NIGHT))]


# At once


class Alert(NamedTuple):
    """What is told of an event of the journal as soon as it is logged."""

    event: str
    title: str
    advice: tuple[tuple[str, str], ...]
    """{vmid} stands for the guest's number."""


_STILL_THROTTLED = Alert(
    "speed-not-restored",
    "the backup of VM {vmid} is still slowed",
    (
        ("how fast its backup may run", "pvehook governor status"),
        ("pvehook tries again when its daemon is started the next time", "systemctl restart pvehook.service"),
    ),
)
ALERTS: Final[Mapping[str, Alert]] = {
    "freeze-alert": Alert(
        FROZEN_EVENT,
        "VM {vmid} is frozen, and not by pvehook",
        (("to thaw it, unless somebody keeps it frozen on purpose", "pvehook thaw {vmid} --force"),),
    ),
    "freeze-not-thawed": Alert(
        FROZEN_EVENT,
        "VM {vmid} may still be frozen after its backup",
        (
            ("whether its agent answers", "pvehook guest {vmid} freeze-check"),
            ("if it stays frozen; what it has not written is lost", "qm reset {vmid}"),
        ),
    ),
    "freeze-unknown": Alert(
        FROZEN_EVENT,
        "VM {vmid} may be frozen: vzdump was killed during its backup",
        (("to thaw it", "pvehook thaw {vmid} --force"),),
    ),
    "governor-not-restored": _STILL_THROTTLED,
    "governor-left-over": _STILL_THROTTLED,
    "backup-stands-still": Alert(
        "backup-stands-still",
        "the backup of VM {vmid} stands still",
        (
            ("whether the storages answer", "pvesm status"),
            (
                "stopping the backup does not free the guest while its target does not answer: bring the target back "
                "first. Fleecing protects it in later backups",
                "",
            ),
        ),
    ),
}
"""By the journal's event. Only at priority error and above: a speed that was left over and restored is no alert."""


def alert_notice(event: str, level: str, fields: Mapping[str, Any]) -> Notice | None:
    """What an event of the journal gives at once; None: nothing. `fields` are the event's."""
    alert, vmid = ALERTS.get(event), fields.get("vmid")
    if alert is None or level not in ("error", "critical") or not isinstance(vmid, int):
        return None
    advice = tuple((text, command.format(vmid=vmid)) for text, command in alert.advice)
    lines = (str(fields.get("message", event)),)
    return Notice(alert.event, "error", (vmid,), alert.title.format(vmid=vmid), lines, advice)


def _limited(lines: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One guest's lines after the other's."""
    shown = [line for each in lines[:SHOWN] for line in each]
    more = len(lines) - SHOWN
    return (*shown, f"and {more} more: pvehook night") if more > 0 else tuple(shown)


def _title(vmtype: str | None, vmid: int, name: str | None) -> str:
    return guest_number(vmtype, vmid) + (f" ({printable(name, 40)})" if name else "")
