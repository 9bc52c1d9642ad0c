"""`pvehook doctor` in a terminal, at 80 columns: the worst first, findings of one check together.

pvehook: doctor of node pve1, 2026-11-29 10:20
1 error, 2 warnings, 1 note

ERROR PVH-101: vzdump does not call pvehook
  /etc/vzdump.conf: there is no `script:`, so backups run without pvehook;
    expected script: /usr/local/lib/pvehook/hooks/vzdump-hook
    -> add the line script: /usr/local/lib/pvehook/hooks/vzdump-hook
    or: pvehook doctor --fix PVH-101

not checked
  VM 104: its agent did not answer within 2 s
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from pvehook.contract.text import printable
from pvehook.doctor.checks import Diagnosis, Found
from pvehook.doctor.finding import SEVERITIES
from pvehook.host.node import INSTALLED_UNDER
from pvehook.report.terminal_style import TerminalStyle

_COMMAND: Final = re.compile(
    r"\./|(apt|arcconf|chmod|chown|cp|df|echo|findmnt|free|grep|journalctl|ls|lvextend|lvremove|lvs|man|mount|pct|printf"
    r"|pvehook|pvesh|pvesm|qm|rm|sed|ssacli|stat|storcli2|storcli64|sysctl|systemctl|umount|vgextend|zpool)\s"
)
"""What commands of remedies begin with."""
SHOWN: Final = 10
"""Findings of one check."""
REMEDY_LIMIT: Final = 1000
PAGES: Final = f"{INSTALLED_UNDER}/docs/checks"
_COLOUR: Final = {"error": "stalled", "warning": "slowed", "note": "unknown"}


def doctor_lines(diagnosis: Diagnosis, node_name: str, now: datetime, style: TerminalStyle) -> list[str]:
    """All of it."""
    found = diagnosis.found
    not_checked = f"; {_things(len(diagnosis.not_checked), 'thing')} not checked" if diagnosis.not_checked else ""
    lines = [
        f"pvehook: doctor of node {style.shown(printable(node_name, 40))}, {now:%Y-%m-%d %H:%M}",
        f"{counted_in_words(found)}{not_checked}",
    ]
    for (severity, check), of in groupby(found, key=lambda each: (each.finding.severity, each.check)):
        title = style.painted(severity.upper(), _COLOUR[severity])
        lines += ["", f"{title} {check.id}: {style.shown(check.title)}", *_of_check(list(of), diagnosis.vmids, style)]
    if diagnosis.not_checked:
        lines += ["", "not checked"]
        lines += [line for text in diagnosis.not_checked for line in style.wrapped(text, "  ", "    ")]
    if diagnosis.left_out:
        text = f"left out: {_things(diagnosis.left_out, 'finding')} about the node, its jobs, storages and other guests"
        lines += ["", *style.wrapped(text, others="  ")]
    if found:
        faults = ", those from PVH-600 on in faults.md" if any(each.check.id >= "PVH-600" for each in found) else ""
        lines += ["", *style.wrapped(f"Each check is explained in {PAGES}/PVH-nnn.md{faults}.")]
    return lines


def counted_in_words(found: Sequence[Found]) -> str:
    """`1 error, 2 warnings, 1 note`."""
    severities = [each.finding.severity for each in found]
    named = [_things(severities.count(severity), severity) for severity in SEVERITIES if severity in severities]
    return ", ".join(named) or "no findings"


def _things(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _of_check(found: list[Found], vmids: Sequence[int], style: TerminalStyle) -> list[str]:
    """Findings with one remedy share it."""
    lines = []
    for remedy, of in groupby(found[:SHOWN], key=lambda each: each.finding.remedy):
        for each in of:
            lines += style.wrapped(f"{each.finding.subject}: {each.finding.evidence}", "  ", "    ")
        lines += [line for each in remedy for line in _remedy_lines(each, style)]
    if any(each.finding.steps for each in found):
        lines.append(f"    or: pvehook doctor --fix {found[0].check.id}{''.join(f' --vmid {vmid}' for vmid in vmids)}")
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more; --json has all")
    return lines


def _remedy_lines(remedy: str, style: TerminalStyle) -> list[str]:
    """What is to be typed stays in one piece, however long it is, so that it can be copied."""
    text = style.shown(printable(remedy, REMEDY_LIMIT))
    if _COMMAND.match(text):
        return [f"    -> {text}"]
    return textwrap.wrap(
        text, style.columns, initial_indent="    -> ", subsequent_indent=" " * 7, break_on_hyphens=False
    )
