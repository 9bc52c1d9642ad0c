"""`pvehook doctor --json`: the same for checkmk, Zabbix and the like."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pvehook.doctor.checks import Diagnosis, Found
from pvehook.doctor.finding import SEVERITIES

FORMAT: Final = 1  # grows when something that was here means something else or is gone


def doctor_json(diagnosis: Diagnosis, node_name: str, now: datetime) -> dict[str, object]:
    """All findings, also where the terminal shows some."""
    severities = [each.finding.severity for each in diagnosis.found]
    return {
        "format": FORMAT,
        "node": node_name,
        "at": now.isoformat(timespec="seconds"),
        "worst": severities[0] if severities else None,
        "counts": {severity: severities.count(severity) for severity in SEVERITIES},
        "findings": [_finding(each) for each in diagnosis.found],
        "not_checked": list(diagnosis.not_checked),
    }


def _finding(each: Found) -> dict[str, object]:
    check, finding = each
    return {
        "id": check.id,
        "title": check.title,
        "severity": finding.severity,
        "subject": finding.subject,
        "vmid": finding.vmid,
        "evidence": finding.evidence,
        "remedy": list(finding.remedy),
        "can_be_fixed": bool(finding.steps),
    }
