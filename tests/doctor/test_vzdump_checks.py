"""The checks of backup jobs and vzdump.conf: each fires where it should, and is silent where it should not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.doctor.finding import Command, Finding, Write
from pvehook.doctor.vzdump_checks import CHECKS
from pvehook.errors import NodeError
from pvehook.host import block
from tests.doctor.vzdump_node import VzdumpNode

JOBS = "/etc/pve/jobs.cfg"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VzdumpNode:
    """Without a job yet."""
    node = VzdumpNode(tmp_path)
    monkeypatch.setattr(block, "device_of", node.device_of)
    return node


def only(node: VzdumpNode, check_id: str) -> Finding:
    (finding,) = node.found(check_id)
    return finding


def shown(node: VzdumpNode, check_id: str) -> list[tuple[str, str]]:
    return [(each.subject, each.severity) for each in node.found(check_id)]


def command(job: str, do: tuple[str, ...], undo: tuple[str, ...], key: str) -> Command:
    path = ("pvesh", "set", f"/cluster/backup/{job}")
    return Command((*path, *do), (*path, *undo), JOBS, key=key, section=f"vzdump: {job}")


def test_a_node_as_it_should_be(node: VzdumpNode) -> None:
    node.vzdump_conf("performance: max-workers=1", "fleecing: enabled=1,storage=fast", "prune-backups: keep-last=3")
    node.job("nightly", "all 1", "storage nas")
    node.guest(201, "files", "rootfs: local-lvm:vm-201-disk-0,size=4G", kind="lxc")
    node.write("/proc/sys/kernel/hostname", "pve1\n")
    for vmid in (101, 102, 201):
        node.backups(vmid, 0.5)
    facts = node.facts()
    assert [finding for check in CHECKS for finding in check.find(facts)] == []
    assert node.missing() == []


def test_a_machine_without_proxmox_has_nothing_to_find(tmp_path: Path) -> None:
    node = VzdumpNode(tmp_path)
    for each in ("storage.cfg", "qemu-server/101.conf", "qemu-server/102.conf"):
        (tmp_path / "etc/pve" / each).unlink()
    (tmp_path / "etc/vzdump.conf").unlink()
    facts = node.facts()
    assert [finding for check in CHECKS for finding in check.find(facts)] == []


# Workers


def test_many_workers_on_disks_that_rotate(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101,102", "storage nas")
    finding = only(node, "PVH-201")
    assert (finding.subject, finding.severity) == ("/etc/vzdump.conf", "warning")
    assert "max-workers is 16 by default, expected 1" in finding.evidence
    assert "VM 101 web on sda" in finding.evidence
    assert "102" not in finding.evidence
    assert finding.remedy == ("echo 'performance: max-workers=1' >> /etc/vzdump.conf",)
    (step,) = finding.steps
    assert isinstance(step, Write)
    assert step.new == (step.old or "") + "performance: max-workers=1\n"


def test_a_jobs_own_workers_win_and_its_other_settings_stay(node: VzdumpNode) -> None:
    node.vzdump_conf("performance: max-workers=1")
    node.job("nightly", "vmid 101", "storage nas", "performance pbs-entries-max=9,max-workers=4")
    node.job("weekly", "vmid 101", "storage nas", "performance pbs-entries-max=9", schedule="sat 03:00")
    finding = only(node, "PVH-201")
    assert finding.subject == "job nightly"
    assert "max-workers is 4, expected 1" in finding.evidence
    own, mine = ("--performance", "pbs-entries-max=9,max-workers=4"), "max-workers=1,pbs-entries-max=9"
    assert finding.steps == (command("nightly", ("--performance", mine), own, "performance"),)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("vmid 102",), []),  # on a fast disk 16 workers stalled nobody
        (("vmid 101", "performance max-workers=1"), []),
        (("vmid 101", "performance max-workers=2"), [("job nightly", "warning")]),
        (("vmid 201",), []),  # a container has no workers
        (("vmid 103",), [("/etc/vzdump.conf", "note")]),  # its disks are another machine's
        (("vmid 999",), []),
    ],
)
def test_where_workers_matter(node: VzdumpNode, options: tuple[str, ...], found: list[tuple[str, str]]) -> None:
    node.guest(201, "files", "rootfs: local-lvm:vm-201-disk-0,size=4G", kind="lxc")
    node.guest(103, "far", "scsi0: nas:103/vm-103-disk-0.qcow2,size=8G")
    node.job("nightly", *options, "storage nas")
    assert shown(node, "PVH-201") == found


def test_a_disabled_job_and_one_of_another_node_do_not_count(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", "enabled 0")
    node.job("other", "vmid 101", "storage nas", "node pve2")
    assert shown(node, "PVH-201") == []


# Fleecing


def test_no_fleecing_to_a_nas(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas")
    finding = only(node, "PVH-202")
    assert (finding.subject, finding.severity) == ("job nightly", "warning")
    assert "for job nightly to nfs storage nas: " in finding.evidence
    own = ("--fleecing", "enabled=1,storage=fast")
    assert finding.steps == (command("nightly", own, ("--delete", "fleecing"), "fleecing"),)
    assert finding.remedy == ("pvesh set /cluster/backup/nightly --fleecing enabled=1,storage=fast",)


def test_a_job_of_several_nodes_is_left_alone(node: VzdumpNode) -> None:
    """Another node need not have the storage, and then each of its backups fails."""
    node.guest(301, "there", node="pve2")
    node.job("nightly", "all 1", "storage nas")
    finding = only(node, "PVH-202")
    assert finding.subject == "/etc/vzdump.conf"
    assert finding.remedy == ("echo 'fleecing: enabled=1,storage=fast' >> /etc/vzdump.conf",)


def test_without_a_good_storage_nothing_is_fixed(node: VzdumpNode) -> None:
    storages = (node.root / "etc/pve/storage.cfg").read_text()
    node.write("/etc/pve/storage.cfg", storages.replace("lvmthin: fast\n", "lvmthin: fast\n\tdisable 1\n"))
    node.job("nightly", "vmid 101", "storage nas")
    finding = only(node, "PVH-202")
    assert finding.steps == ()
    assert finding.remedy[0] == "pvesh set /cluster/backup/nightly --fleecing enabled=1,storage=STORAGE"
    assert finding.remedy[1].startswith("STORAGE: thin ")


@pytest.mark.parametrize(
    "options",
    [
        ("vmid 101", "storage nas", "fleecing enabled=1,storage=fast"),
        ("vmid 101", "storage dump"),
        ("vmid 201", "storage nas"),
        ("vmid 101", "storage nas", "mode suspend"),
    ],
)
def test_where_fleecing_is_not_needed(node: VzdumpNode, options: tuple[str, ...]) -> None:
    node.guest(201, "files", "rootfs: local-lvm:vm-201-disk-0,size=4G", kind="lxc")
    node.job("nightly", *options)
    assert shown(node, "PVH-202") == []


@pytest.mark.parametrize(
    ("storage", "fails", "thick", "shares"),
    [
        ("fast", [], [], []),
        ("local-lvm", [], [], ["warning"]),
        ("thick", [], ["warning"], ["warning"]),
        ("gone", ["error"], [], []),
    ],
)
def test_the_storage_of_fleecing_images(
    node: VzdumpNode, storage: str, fails: list[str], thick: list[str], shares: list[str]
) -> None:
    node.job("nightly", "vmid 101", "storage nas", f"fleecing enabled=1,storage={storage}")
    found = [[each.severity for each in node.found(check)] for check in ("PVH-203", "PVH-204", "PVH-205")]
    assert found == [fails, thick, shares]


def test_fleecing_on_the_disk_of_the_target(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 102", "storage dump", "fleecing enabled=1,storage=local-lvm")
    assert "on sda, as are the archives, expected other disks" in only(node, "PVH-205").evidence


# Bandwidth and mode


def test_a_bandwidth_limit(node: VzdumpNode) -> None:
    node.vzdump_conf("bwlimit: 51200")
    node.job("nightly", "vmid 101", "storage nas")
    node.job("weekly", "vmid 102", "storage nas", "bwlimit 0", schedule="sat 03:00")
    finding = only(node, "PVH-206")
    assert (finding.subject, finding.severity) == ("/etc/vzdump.conf", "note")
    assert "bwlimit is 51200 KiB/s" in finding.evidence
    assert "for job nightly" in finding.evidence
    assert finding.remedy == ("sed -i '/^\\s*bwlimit:/d' /etc/vzdump.conf",)
    (step,) = finding.steps
    assert isinstance(step, Write)
    assert "bwlimit" not in step.new


def test_a_bandwidth_limit_of_a_job_can_be_put_back(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", "bwlimit 51200")
    steps = only(node, "PVH-206").steps
    assert steps == (command("nightly", ("--delete", "bwlimit"), ("--bwlimit", "51200"), "bwlimit"),)


def test_mode_suspend_with_an_agent(node: VzdumpNode) -> None:
    node.guest(101, "web", "agent: 1", "scsi0: local-lvm:vm-101-disk-0,size=8G")
    node.job("nightly", "vmid 101,102", "storage nas", "mode suspend")
    finding = only(node, "PVH-213")
    assert "VM 101 web stands still" in finding.evidence
    assert finding.steps == (command("nightly", ("--mode", "snapshot"), ("--mode", "suspend"), "mode"),)
    node.guest(101, "web", "agent: 0", "scsi0: local-lvm:vm-101-disk-0,size=8G")
    assert node.found("PVH-213") == []


def test_a_line_of_cron_is_for_a_human(node: VzdumpNode) -> None:
    node.write("/etc/cron.d/own", "0 2 * * * root vzdump 101 --storage nas --bwlimit 9 --mode suspend\n")
    finding = only(node, "PVH-206")
    assert (finding.subject, finding.steps) == ("line /etc/cron.d/own:1", ())
    assert finding.remedy == ("take --bwlimit out of line /etc/cron.d/own:1",)


# vzdump.conf


def major(node: VzdumpNode, version: str) -> None:
    paragraph = f"Package: pve-manager\nStatus: install ok installed\nVersion: {version}\n"
    node.write("/var/lib/dpkg/status", paragraph)


def test_a_dropped_option_goes(node: VzdumpNode) -> None:
    node.vzdump_conf("size: 1024", "tmpdir: /t")
    major(node, "9.2.11")
    finding = only(node, "PVH-214")
    assert finding.evidence == "without effect: `size: 1024`: dropped by PVE 7"
    assert finding.remedy == ("sed -i '/^\\s*size:/d' /etc/vzdump.conf",)
    (step,) = finding.steps
    assert isinstance(step, Write)
    assert step.new.endswith("ionice: 8\ntmpdir: /t\n")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("maxfiles: 3", "`prune-backups: keep-last=3` in place of `maxfiles: 3`"),
        ("max-workers: 1", "`performance: max-workers=1` in place of `max-workers: 1`"),
        ("bwlimitt: 9", "`bwlimit: 9` in place of `bwlimitt: 9`"),
        ("performance: max-workers=0", "correct `performance: max-workers=0`"),
        ("mode snapshot", "correct `mode snapshot`"),
    ],
)
def test_what_was_meant_is_for_a_human(node: VzdumpNode, line: str, remedy: str) -> None:
    node.vzdump_conf(line)
    major(node, "9.2.11")
    finding = only(node, "PVH-214")
    assert finding.remedy == (f"in /etc/vzdump.conf: {remedy}",)
    assert finding.steps == ()


def test_an_older_proxmox_still_knows_maxfiles(node: VzdumpNode) -> None:
    node.vzdump_conf("maxfiles: 3")
    major(node, "8.4.1")
    assert node.found("PVH-214") == []
    (node.root / "var/lib/dpkg/status").unlink()
    assert node.found("PVH-214") == []
    assert node.missing() == ["whether this PVE still knows maxfiles of /etc/vzdump.conf: its version is not known"]


def test_a_later_proxmox_may_know_more(node: VzdumpNode) -> None:
    node.vzdump_conf("new-option: 1", "bwlimit: ten")
    major(node, "10.0.1")
    assert "new-option" not in only(node, "PVH-214").evidence
    assert node.missing() == ["whether PVE 10 knows new-option of /etc/vzdump.conf: pvehook knows PVE 9"]


def test_a_job_with_a_dropped_option(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas", "maxfiles 3", "size 1024")
    node.write("/etc/cron.d/own", "0 2 * * * root vzdump 101 --storage nas --maxfiles 3\n")
    major(node, "9.2.11")
    found = {(each.subject, each.severity): each for each in node.found("PVH-215")}
    assert set(found) == {("job nightly", "warning"), ("line /etc/cron.d/own:1", "error")}
    remedies = [each.remedy for each in node.found("PVH-215")]
    assert remedies == [
        ("remove the line `size 1024` of this job in /etc/pve/jobs.cfg",),
        ("pvesh set /cluster/backup/nightly --prune-backups keep-last=3",),
        ("in line /etc/cron.d/own:1: --prune-backups keep-last=3 in place of --maxfiles 3",),
    ]
    major(node, "8.4.1")
    assert [each.evidence for each in node.found("PVH-215")] == [
        "`size 1024`: dropped by PVE 7, so it has no effect"
    ]


# Guests


def test_a_guest_in_no_job(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas")
    node.guest(103, "template", "template: 1", "scsi0: fast:base-103-disk-0,size=8G")
    finding = only(node, "PVH-210")
    assert (finding.subject, finding.severity, finding.vmid) == ("VM 102 db", "warning", 102)
    assert finding.remedy == ("pvesh set /cluster/backup/nightly --vmid 101,102",)


def test_a_guest_in_a_disabled_job_only(node: VzdumpNode) -> None:
    node.job("nightly", "vmid 101", "storage nas")
    node.job("off", "vmid 102", "storage nas", "enabled 0")
    finding = only(node, "PVH-210")
    assert "only in jobs that are disabled (off)" in finding.evidence
    assert finding.remedy == ("pvesh set /cluster/backup/off --enabled 1",)


def test_a_guest_that_a_job_leaves_out_by_name(node: VzdumpNode) -> None:
    node.job("nightly", "all 1", "exclude 102", "storage nas")
    finding = only(node, "PVH-210")
    assert (finding.severity, finding.remedy) == (
        "note",
        ("pvesh set /cluster/backup/nightly --delete exclude",),
    )
    node.write("/etc/pve/jobs.cfg", "vzdump: weekly\n\tschedule sat 02:00\n\texclude 102\n")
    assert only(node, "PVH-210").remedy == ("pvesh set /cluster/backup/weekly --all 1 --delete exclude",)


def test_without_any_job_the_node_has_one_finding(node: VzdumpNode) -> None:
    finding = only(node, "PVH-210")
    assert (finding.subject, finding.severity, finding.vmid) == ("node", "warning", None)
    assert "none of its guests (VM 101 web, VM 102 db)" in finding.evidence
    assert [each.vmid for each in node.found("PVH-210", vmids=(102,))] == [101, 102]


def test_without_a_job_that_could_take_it_one_is_made(node: VzdumpNode) -> None:
    node.write("/etc/pve/user.cfg", "pool:web::101::\n")
    node.job("nightly", "pool web", "storage nas")
    assert only(node, "PVH-210").remedy == (
        "pvesh create /cluster/backup --vmid 102 --schedule 02:00 --storage nas --node pve1",
    )


@pytest.mark.parametrize(
    ("lock", "task", "severities"),
    [
        ("backup", None, ["error"]),
        ("backup", ("vzdump", ""), []),
        ("backup", ("qmigrate", "101"), ["error"]),
        ("migrate", ("qmigrate", "101"), []),
        ("migrate", ("qmigrate", "102"), ["error"]),
        ("clone", ("qmclone", "900"), []),
        ("suspended", None, ["note"]),
    ],
)
def test_a_lock_that_was_left_over(
    node: VzdumpNode, lock: str, task: tuple[str, str] | None, severities: list[str]
) -> None:
    node.guest(101, "web", f"lock: {lock}", "scsi0: local-lvm:vm-101-disk-0,size=8G")
    node.write("/proc/sys/kernel/hostname", "pve1\n")
    if task is not None:
        node.task(*task)
    found = node.found("PVH-212")
    assert [each.severity for each in found] == severities
    assert all(each.vmid == 101 and each.steps == () for each in found)


def test_without_a_list_of_tasks_no_lock_is_called_left_over(node: VzdumpNode) -> None:
    node.guest(101, "web", "lock: backup")
    (node.root / "proc/self/mountinfo").unlink()
    (node.root / "proc/self").rmdir()
    (node.root / "proc").rmdir()
    assert node.found("PVH-212") == []
    assert any(each.startswith("guests that are locked: ") for each in node.missing())


# Reading


def test_what_does_not_answer_is_reported(node: VzdumpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise NodeError("the history cannot be read: damaged")

    monkeypatch.setattr("pvehook.doctor.vzdump_facts.past_turns", fails)
    node.job("nightly", "vmid 101,102", "storage nas")
    assert node.missing() == ["whether runs end in the window: the history cannot be read: damaged"]


def test_every_check_has_its_page() -> None:
    docs = Path(__file__).parents[2] / "docs/checks"
    for check in CHECKS:
        page = (docs / f"{check.id}.md").read_text()
        assert page.startswith(f"# {check.id}: {check.title}\n")


