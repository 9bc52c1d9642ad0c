"""When backups run: against the window, against what the last nights took, and against the other nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.doctor.finding import Command, Finding
from pvehook.host import block
from tests.doctor.vzdump_node import VzdumpNode

JOBS = "/etc/pve/jobs.cfg"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VzdumpNode:
    """Its window is open from 02:00 to 05:00."""
    node = VzdumpNode(tmp_path)
    monkeypatch.setattr(block, "device_of", node.device_of)
    return node


def only(node: VzdumpNode, check_id: str) -> Finding:
    (finding,) = node.found(check_id)
    return finding


def schedule_set(job: str, new: str, old: str) -> Command:
    path = ("pvesh", "set", f"/cluster/backup/{job}", "--schedule")
    return Command((*path, new), (*path, old), JOBS, key="schedule", section=f"vzdump: {job}")


# The window


def test_a_job_that_never_starts_inside(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101,102", "storage nas", schedule="mon..fri 21:00")
    finding = only(node, "PVH-207")
    assert (finding.subject, finding.severity) == ("job nightly", "error")
    assert "all of its next 20 starts (Tue 2026-11-24 21:00, Wed 2026-11-25 21:00, ...)" in finding.evidence
    assert "are outside 02:00-05:00, expected inside" in finding.evidence
    assert "VM 101 web, VM 102 db have no backup from them" in finding.evidence
    assert finding.remedy == ("pvesh set /cluster/backup/nightly --schedule 'mon..fri 02:00'",)
    assert finding.steps == (schedule_set("nightly", "mon..fri 02:00", "mon..fri 21:00"),)


def test_a_job_that_starts_inside_now_and_then(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", schedule="*/12:00")
    node.job("often", "vmid 101", "storage nas", schedule="0/3:00")
    assert [(each.subject, each.severity) for each in node.found("PVH-207")] == [
        ("job nightly", "error"),
        ("job often", "warning"),
    ]
    assert node.found("PVH-207")[1].remedy == ("leave the times outside the window out of its schedule (0/3:00)",)


def test_a_line_of_cron(node: VzdumpNode) -> None:
    node.write("/etc/cron.d/own", "30 22 * * 6 root vzdump 101 --storage nas\n")
    finding = only(node, "PVH-207")
    assert finding.remedy == ("let line /etc/cron.d/own:1 begin with `0 2 * * 6`",)
    assert finding.steps == ()


@pytest.mark.parametrize(
    "window",
    ["exempt: {jobs: [nightly]}", "exempt: {storages: [nas]}", "exempt: {guests: [101]}", "timezone: Asia/Tokyo"],
)
def test_whom_the_window_does_not_bind(node: VzdumpNode, window: str) -> None:
    zone = "" if "timezone" in window else "timezone: UTC, "
    node.write("/etc/pvehook.yaml", f'window: {{open: ["02:00-05:00"], {zone}{window}}}\n')
    node.job("nightly", "vmid 101", "storage nas", schedule="18:00")  # 03:00 in Tokyo
    assert node.found("PVH-207") == []


def test_a_job_that_does_not_call_pvehook(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", "script /root/own.sh", schedule="21:00")
    assert node.found("PVH-207") == []


def test_a_schedule_that_is_not_understood_is_not_checked(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", schedule="at noon")
    assert node.found("PVH-207") == []
    assert any("job nightly: its schedule is not understood: " in each for each in node.missing())


# Its end


def test_a_run_that_does_not_fit(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101,102", "storage nas", schedule="04:00")
    for vmid in (101, 102):
        node.backups(vmid, 1.5)
    finding = only(node, "PVH-208")
    assert (finding.subject, finding.severity) == ("job nightly", "warning")
    assert "its run of Wed 2026-11-25 04:00: expected to end at 07:00" in finding.evidence
    assert "at this rate too late: VM 102 db" in finding.evidence
    assert finding.remedy == (
        "pvesh set /cluster/backup/nightly --schedule 02:00",
        'to widen the window: in /etc/pvehook.yaml: window: {open: ["02:00-07:00"]}',
    )
    assert finding.steps == (schedule_set("nightly", "02:00", "04:00"),)


@pytest.mark.parametrize(
    ("running_guest", "then"),
    [("finish", "it goes on in the time that is meant for the guests"), ("cancel", "the backup that runs then is")],
)
def test_the_last_guests_backup_goes_beyond_the_end(node: VzdumpNode, running_guest: str, then: str) -> None:
    window = f'open: ["02:00-05:00"], timezone: UTC, running_guest: {running_guest}'
    node.write("/etc/pvehook.yaml", f"window: {{{window}}}\n")
    node.job("nightly", "vmid 101", "storage nas")
    node.backups(101, 4.0)
    finding = only(node, "PVH-208")
    assert then in finding.evidence
    assert finding.steps == ()  # it starts as early as it can


def test_a_run_that_fits(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101,102", "storage nas")
    for vmid in (101, 102):
        node.backups(vmid, 1.0)
    assert node.found("PVH-208") == []
    assert node.missing() == []


def test_without_a_history_it_is_not_checked(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101,102", "storage nas")
    assert node.found("PVH-208") == []
    assert node.missing() == ["whether runs end in the window: how long job nightly will take is not known yet"]


def test_a_missed_run_at_boot(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", "repeat-missed 1")
    node.job("weekly", "vmid 101", "storage nas", "repeat-missed 0", schedule="sat 02:00")
    finding = only(node, "PVH-209")
    assert (finding.subject, finding.severity) == ("job nightly", "note")
    assert finding.remedy == ("pvesh set /cluster/backup/nightly --repeat-missed 0",)
    node.write("/etc/pvehook.yaml", 'window: {open: ["00:00-24:00"], timezone: UTC}\n')
    assert node.found("PVH-209") == []


# Several nodes


def test_one_job_starts_on_all_nodes_at_once(node: VzdumpNode) -> None:
    node.guest(301, "there", node="pve2")
    node.job("nightly", "all 1", "storage nas", "mode snapshot")
    finding = only(node, "PVH-211")
    assert (finding.subject, finding.severity) == ("storage nas", "note")
    assert "at Wed 2026-11-25 02:00 pve1, pve2 start at the same second (job nightly)" in finding.evidence
    assert finding.remedy == (
        "pvesh set /cluster/backup/nightly --node pve1 --schedule 02:00",
        "pvesh create /cluster/backup --node pve2 --schedule 02:30 --all 1 --mode snapshot --storage nas",
    )


def test_two_jobs_of_two_nodes(node: VzdumpNode) -> None:
    node.guest(301, "there", node="pve2")
    node.job("a", "all 1", "storage nas", "node pve1", schedule="mon..fri 02:00")
    node.job("b", "all 1", "storage nas", "node pve2", schedule="*-*-* 02:00")
    finding = only(node, "PVH-211")
    assert "at Wed 2026-11-25 02:00 pve1, pve2 start" in finding.evidence
    assert finding.remedy == ("pvesh set /cluster/backup/b --schedule SCHEDULE    # 30 min after `*-*-* 02:00`",)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        (("storage nas", "node pve2"), "02:30"),
        (("storage dump", "node pve2"), "02:00"),  # a disk of each node's own
        (("storage nas", "node pve2", "enabled 0"), "02:00"),
        (("storage nas", "node pve3"), "02:00"),  # without a guest
    ],
)
def test_nodes_that_are_apart(node: VzdumpNode, options: tuple[str, ...], schedule: str) -> None:
    node.guest(301, "there", node="pve2")
    node.job("a", "all 1", "storage nas", "node pve1")
    node.job("b", "all 1", *options, schedule=schedule)
    assert node.found("PVH-211") == []
