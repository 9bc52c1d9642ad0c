"""PVH-4xx: what the doctor finds of a node's guests, where it is silent, and what it says it could not check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvehook.config.in_force import Configuration
from pvehook.contract.guest_facts import Filesystem, GuestFacts
from pvehook.contract.huge_pages import ENABLED, HugePages
from pvehook.contract.measured import Absent
from pvehook.deadline import Deadline
from pvehook.doctor import guest_look
from pvehook.doctor.finding import Check, Command, Finding, Sources
from pvehook.doctor.guests_checks import GROUP
from pvehook.doctor.guests_facts import GuestsFacts
from pvehook.errors import NodeError
from pvehook.guest.agent import open_agent
from pvehook.guest.lockup_settings import SOFTLOCKUP_PANIC, WATCHDOG_THRESH
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.records.guest_facts import keep_guest_facts
from pvehook.records.history import history_file
from pvehook.records.history_writing import append, append_attempts, append_beside
from tests.doctor.running_guests import run_vm
from tests.guest_files import SimulatedGuest
from tests.records.backups import DAY_S, NOW_S, attempt, beside, container, record

SOUND = """\
agent: 1
name: web
scsihw: virtio-scsi-single
scsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G
ide2: local:iso/debian.iso,media=cdrom
"""
STORAGES = """\
lvmthin: local-lvm
\tthinpool data
\tvgname pve

lvm: thick
\tvgname raid

dir: files
\tpath /mnt/files

rbd: ceph
\tpool vms

rbd: mapped
\tpool vms
\tkrbd 1
"""
PATIENCE_S = 20.0
"""So that a sound guest answers in time on a machine that is busy with other tests."""
SHORT_S = 0.2
DPKG = "Package: pve-qemu-kvm\nStatus: install ok installed\nVersion: 10.1.2-1\n"


class GuestsNode:
    """A node in a directory, whose VMs run as long as the test."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self.stack, self.node = root, stack, Node(str(root))
        self.now_s = NOW_S
        self.write("/etc/pve/storage.cfg", STORAGES)
        self.write("/var/lib/dpkg/status", DPKG)
        self.write("/proc/sys/kernel/hostname", "pve1\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def vm(self, config: str = SOUND, vmid: int = 101) -> None:
        self.write(f"/etc/pve/qemu-server/{vmid}.conf", config)

    def runs(self, config: str = SOUND, vmid: int = 101, *, is_replaced: bool = False, **how: object) -> SimulatedGuest:
        self.vm(config, vmid)
        return run_vm(self.root, vmid, self.stack, is_replaced=is_replaced, **how)

    def look(self, *vmids: int, deadline_s: float = 60.0) -> tuple[dict[str, list[Finding]], list[str]]:
        """The findings by check, and what was not checked."""
        in_force = Configuration(self.node, TimelyReader(), remembers=False).now()
        now, deadline = datetime.fromtimestamp(self.now_s, UTC), Deadline.after(deadline_s)
        facts = GROUP.gather(Sources(self.node, "pve1", in_force, TimelyReader(), now, deadline, vmids))
        found = {check.id: list(check.find(facts)) for check in GROUP.checks}
        return {check: findings for check, findings in found.items() if findings}, list(GROUP.missing(facts))

    def only(self, check: str) -> Finding:
        """The one finding, which is this check's."""
        found, _ = self.look()
        assert list(found) == [check]
        (finding,) = found[check]
        assert finding.remedy
        return finding


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestsNode]:
    for patience in ("SILENT_S", "INSIDE_S", "MONITOR_S"):
        monkeypatch.setattr(guest_look, patience, PATIENCE_S)
    with ExitStack() as stack:
        yield GuestsNode(tmp_path, stack)


def test_a_sound_guest_has_no_findings_and_all_of_it_was_checked(tree: GuestsNode) -> None:
    guest = tree.runs()
    assert tree.look() == ({}, [])
    assert guest.files.open_paths == ()
    assert guest.frozen_intervals == ()


def test_a_node_without_guests_is_no_fault_and_one_without_etc_pve_tells_nothing(tree: GuestsNode) -> None:
    assert tree.look() == ({}, [])
    tree.write("/etc/pve/qemu-server", "no directory")
    with pytest.raises(NodeError, match="configurations"):
        tree.look()


def test_of_a_container_and_of_a_template_nothing_is_found(tree: GuestsNode) -> None:
    tree.write("/etc/pve/lxc/110.conf", "hostname: box\nrootfs: local-lvm:vm-110-disk-0\n")
    tree.vm("template: 1\nname: base\nscsi0: local-lvm:base-100-disk-0,cache=unsafe\n", 100)
    assert tree.look() == ({}, [])


# The agent


def test_an_agent_that_is_off_is_switched_on_and_then_waits_for_a_restart(tree: GuestsNode) -> None:
    tree.runs(SOUND.replace("agent: 1\n", ""))
    found, missing = tree.look()
    assert list(found) == ["PVH-401"]
    (finding,) = found["PVH-401"]
    assert (finding.subject, finding.severity, finding.vmid) == ("VM 101 web", "warning", 101)
    assert finding.remedy[1:] == ("qm set 101 --agent 1", "qm reboot 101")
    assert missing == ["VM 101 web: huge pages, pressure and lock-up settings inside: its agent is off"]
    tree.vm(SOUND.replace("agent: 1\n", "") + "\n[PENDING]\nagent: 1\n")
    assert tree.only("PVH-401").remedy == ("qm reboot 101",)


def test_of_a_guest_that_does_not_run_it_is_only_worth_knowing(tree: GuestsNode) -> None:
    tree.vm("name: web\nscsi0: local-lvm:vm-101-disk-0,cache=unsafe\n")
    found, missing = tree.look()
    assert list(found) == ["PVH-401", "PVH-407", "PVH-408"]
    assert {finding.severity for findings in found.values() for finding in findings} == {"note"}
    assert not any("reboot" in command for findings in found.values() for each in findings for command in each.remedy)
    assert missing == []


def test_an_agent_that_nobody_runs_is_told_from_one_that_hangs(
    tree: GuestsNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_look, "SILENT_S", SHORT_S)
    tree.runs(has_agent=False)
    tree.runs(vmid=102).stick("agent")
    found, missing = tree.look()
    assert list(found) == ["PVH-402"]
    nobody, hangs = found["PVH-402"]
    assert "nothing in the guest has the agent's port open" in nobody.evidence
    assert f"does not answer within {SHORT_S:g} s" in hangs.evidence
    assert hangs.remedy == ("in the guest: systemctl restart qemu-guest-agent",)
    why = "huge pages, pressure and lock-up settings inside: its agent does not answer"
    assert missing == [f"VM 101 web, VM 102 web: {why}"]


def test_a_guest_that_proxmox_never_freezes_is_looked_into_all_the_same(
    tree: GuestsNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SOUND.replace("agent: 1", "agent: 1,freeze-fs=0")
    tree.runs(config).files.contents[ENABLED] = "[always] madvise never\n"
    found, _ = tree.look()
    assert list(found) == ["PVH-404", "PVH-406"]
    assert found["PVH-404"][0].severity == "note"
    monkeypatch.setattr(guest_look, "SILENT_S", SHORT_S)
    tree.runs(config, 102, has_agent=False)
    found, _ = tree.look(102)
    assert list(found) == ["PVH-402", "PVH-404"]


def test_an_agent_that_may_read_no_files_costs_what_is_inside(tree: GuestsNode) -> None:
    blocked = ["guest-exec", "guest-file-open", "guest-file-read", "guest-file-close", "guest-file-seek"]
    tree.runs(blocked=blocked, os_id="centos", agent_version="8.2.0")
    found, missing = tree.look()
    assert list(found) == ["PVH-403"]
    (finding,) = found["PVH-403"]
    assert finding.severity == "note"
    assert "guest-file-open and guest-file-read and guest-file-close disabled in the guest" in finding.evidence
    assert "/etc/sysconfig/qemu-ga" in finding.remedy[0]
    why = "huge pages, pressure and lock-up settings inside: guest-file-open is disabled in the guest"
    assert missing == [f"VM 101 web: {why}"]


def test_an_agent_that_may_not_freeze_is_a_warning_and_told_once(tree: GuestsNode) -> None:
    tree.runs(blocked=["guest-fsfreeze-freeze"])
    finding = tree.only("PVH-403")
    assert finding.severity == "warning"
    assert "guest-fsfreeze-freeze disabled in the guest: it is not frozen" in finding.evidence


def test_the_agent_of_a_guest_in_backup_is_left_alone(tree: GuestsNode) -> None:
    guest = tree.runs("lock: backup\n" + SOUND)
    found, missing = tree.look()
    assert found == {}
    assert missing == ["VM 101 web: huge pages, pressure and lock-up settings inside: Proxmox has locked it (backup)"]
    assert [each for each in guest.heard if each.channel == "qga"] == []


def test_where_the_time_is_over_nothing_is_found_and_that_is_said(tree: GuestsNode) -> None:
    tree.runs(has_agent=False)
    found, missing = tree.look(deadline_s=0.1)
    assert found == {}
    assert missing == ["VM 101 web: its monitor and its agent: not asked, for others answered too late"]


def test_only_the_guests_asked_for_are_asked(tree: GuestsNode) -> None:
    other = tree.runs()
    tree.runs(SOUND.replace("agent: 1\n", ""), 102)
    found, _ = tree.look(102)
    assert [each.vmid for each in found["PVH-401"]] == [102]
    assert other.heard == []


# The freeze


def test_a_guest_frozen_by_somebody_else_is_an_error(tree: GuestsNode) -> None:
    guest = tree.runs()
    with open_agent(guest.qga_path, Deadline.after(30)) as agent:
        agent.fsfreeze_freeze(None, Deadline.after(30))
    found, missing = tree.look()
    assert list(found) == ["PVH-404"]
    (finding,) = found["PVH-404"]
    assert finding.severity == "error"
    assert "frozen-by-others" in finding.evidence
    assert finding.remedy[0].startswith("pvehook thaw 101 --force")
    assert missing == ["VM 101 web: huge pages, pressure and lock-up settings inside: it is frozen"]


def test_what_was_configured_is_a_note_and_says_what_it_costs(tree: GuestsNode) -> None:
    tree.write("/etc/pvehook.yaml", "freeze:\n  rules:\n    - guests: [101]\n      mode: never\n")
    tree.runs()
    finding = tree.only("PVH-404")
    assert finding.severity == "note"
    assert "freeze.rules[0]" in finding.evidence
    assert finding.remedy[0].startswith("qm set 101 --agent 1,freeze-fs=0")


def test_a_loop_mount_is_frozen_in_part_and_nothing_to_freeze_is_a_warning(tree: GuestsNode) -> None:
    root, loop = Filesystem("sda1", "/", "ext4"), Filesystem("loop0", "/srv", "ext4")
    tree.runs(filesystems=(root, loop))
    finding = tree.only("PVH-405")
    assert finding.severity == "note"
    assert "loop0" in finding.evidence
    tree.runs(vmid=102, filesystems=(Filesystem("sr0", "/cd", "iso9660"),))
    found, _ = tree.look(102)
    assert [each.severity for each in found["PVH-404"]] == ["warning"]
    assert "nothing-to-freeze" in found["PVH-404"][0].evidence


def test_a_vm_that_is_paused_is_not_held_against_its_agent(tree: GuestsNode) -> None:
    tree.runs().pause()
    found, missing = tree.look()
    assert found == {}
    assert missing == ["VM 101 web: huge pages, pressure and lock-up settings inside: it is paused"]


# Inside


def test_huge_pages_for_every_program_are_found(tree: GuestsNode) -> None:
    tree.runs().files.contents[ENABLED] = "[always] madvise never\n"
    finding = tree.only("PVH-406")
    assert finding.severity == "warning"
    assert "`always` (defrag `madvise`)" in finding.evidence
    assert finding.remedy == ("pvehook guests thp",)
    assert finding.steps == ()


@pytest.mark.parametrize(("enabled", "is_found"), [("always", True), ("madvise", False)])
def test_of_a_guest_that_is_off_its_last_start_tells(tree: GuestsNode, enabled: str, is_found: bool) -> None:
    tree.vm()
    nothing = Absent("not told")
    kept = GuestFacts(NOW_S - DAY_S, "7.2.22", (), nothing, HugePages(enabled, nothing), nothing)
    keep_guest_facts(tree.node, 101, kept)
    found, missing = tree.look()
    assert missing == []
    assert list(found) == (["PVH-406"] if is_found else [])
    if is_found:
        (finding,) = found["PVH-406"]
        then = datetime.fromtimestamp(NOW_S - DAY_S, UTC)
        assert finding.severity == "note"
        assert finding.evidence.startswith(f"at its last start, {then:%Y-%m-%d %H:%M}, transparent huge pages were")


def test_what_a_guest_tells_now_is_not_taken_from_its_last_start(tree: GuestsNode) -> None:
    tree.runs()
    nothing = Absent("not told")
    keep_guest_facts(tree.node, 101, GuestFacts(NOW_S, "7", (), nothing, HugePages("always", nothing), nothing))
    assert tree.look() == ({}, [])


def test_windows_has_nothing_of_what_is_looked_for_inside(tree: GuestsNode) -> None:
    tree.runs(os_id="mswindows", filesystems=(Filesystem("C", "C:\\", "NTFS"),))
    assert tree.look() == ({}, [])


@pytest.mark.parametrize(("os_id", "command"), [("debian", "psi=1"), ("rocky", "grubby --update-kernel=ALL")])
def test_a_guest_without_pressure_says_how_to_get_it(tree: GuestsNode, os_id: str, command: str) -> None:
    del tree.runs(os_id=os_id).files.contents["/proc/pressure/io"]
    finding = tree.only("PVH-411")
    assert finding.severity == "note"
    assert command in finding.remedy[0]


@pytest.mark.parametrize(
    ("thresh", "panic", "severity", "said"),
    [
        ("10", "1", "warning", "locked up for 20 s it panics"),
        ("10", "3", "warning", "locked up for 60 s it panics"),
        ("5", "0", "note", "after 10 s already"),
        ("0", "1", "note", "does not report"),
    ],
)
def test_a_guest_that_panics_or_keeps_quiet_in_a_stall(
    tree: GuestsNode, thresh: str, panic: str, severity: str, said: str
) -> None:
    tree.runs().files.contents |= {WATCHDOG_THRESH: thresh, SOFTLOCKUP_PANIC: panic}
    finding = tree.only("PVH-412")
    assert finding.severity == severity
    assert said in finding.evidence


def test_what_cannot_be_read_inside_is_said_and_not_found(tree: GuestsNode) -> None:
    guest = tree.runs()
    guest.files.contents |= {ENABLED: "nonsense\n", WATCHDOG_THRESH: OSError(5, "Input/output error")}
    found, missing = tree.look()
    assert found == {}
    assert [line.partition(" inside: ")[0] for line in missing] == [
        "VM 101 web: huge pages",
        "VM 101 web: lock-up settings",
    ]


def test_a_kernel_without_any_of_it_is_no_finding_but_for_its_pressure(tree: GuestsNode) -> None:
    tree.runs().files.contents.clear()
    found, missing = tree.look()
    assert (list(found), missing) == (["PVH-411"], [])


# Disks and QEMU


@pytest.mark.parametrize(
    ("config", "commands"),
    [
        (
            "scsihw: virtio-scsi-single\nscsi0: a:b,size=1G\n",
            ["qm set 101 --scsi0 a:b,size=1G,iothread=1"],
        ),
        (
            "scsihw: virtio-scsi-pci\nscsi0: a:b,iothread=1,size=1G\nvirtio1: a:c\n",
            [
                "qm set 101 --scsihw virtio-scsi-single",
                "qm set 101 --scsi0 a:b,size=1G,iothread=1",
                "qm set 101 --virtio1 a:c,iothread=1",
            ],
        ),
        ("sata0: a:b\n", ["attach sata0 as scsi with virtio-scsi-single: ide and sata have no I/O threads"]),
    ],
)
def test_disks_without_an_io_thread(tree: GuestsNode, config: str, commands: list[str]) -> None:
    tree.runs(f"agent: 1\nname: web\n{config}")
    finding = tree.only("PVH-407")
    assert finding.severity == "warning"
    assert list(finding.remedy) == [*commands, "qm reboot 101"]


def test_commands_for_one_disk_take_back_nothing_of_each_other(tree: GuestsNode) -> None:
    disk = "thick:vm-101-disk-0,size=1G"
    tree.runs(f"agent: 1\nscsihw: virtio-scsi-single\nscsi0: {disk},cache=unsafe,aio=io_uring\n")
    found, _ = tree.look()
    assert list(found) == ["PVH-407", "PVH-408", "PVH-409"]
    commands = {finding.remedy for findings in found.values() for finding in findings}
    assert commands == {(f"qm set 101 --scsi0 {disk},iothread=1", "qm reboot 101")}


def test_a_fix_keeps_what_waits_for_a_restart(tree: GuestsNode) -> None:
    disk = "thick:vm-101-disk-0"
    pending = f"\n[PENDING]\nscsi0: {disk},aio=io_uring,iothread=1\n"
    tree.runs(f"agent: 1\nscsihw: virtio-scsi-single\nscsi0: {disk},aio=io_uring\n{pending}")
    found, _ = tree.look()
    assert found["PVH-407"][0].steps == ()
    (step,) = found["PVH-409"][0].steps
    assert isinstance(step, Command)
    assert step.do[-1] == f"{disk},iothread=1"
    assert step.undo[-1] == f"{disk},aio=io_uring,iothread=1"


def test_only_what_no_guest_can_miss_is_left_to_fix(tree: GuestsNode) -> None:
    tree.runs("agent: 1\nscsihw: virtio-scsi-single\nscsi0: a:b,size=1G\n")
    (step,) = tree.only("PVH-407").steps
    command, path = ("qm", "set", "101", "--scsi0"), "/etc/pve/qemu-server/101.conf"
    assert step == Command((*command, "a:b,size=1G,iothread=1"), (*command, "a:b,size=1G"), path, "scsi0")
    tree.vm("agent: 1\nscsihw: virtio-scsi-pci\nscsi0: a:b,size=1G\n")
    assert tree.only("PVH-407").steps == ()


def test_a_qemu_that_hangs_with_io_threads_is_upgraded_first(tree: GuestsNode) -> None:
    tree.write("/var/lib/dpkg/status", DPKG.replace("10.1.2-1", "8.1.2-4"))
    tree.runs("agent: 1\nvirtio0: a:b\n")
    finding = tree.only("PVH-407")
    assert finding.remedy[0].startswith("apt update && apt full-upgrade")
    assert finding.steps == ()


def test_another_controller_needs_drivers_first(tree: GuestsNode) -> None:
    tree.runs("agent: 1\nscsi0: a:b\n")
    assert "controller is lsi, so it first needs virtio drivers" in tree.only("PVH-407").evidence


def test_a_change_that_waits_for_a_restart_is_not_asked_for_again(tree: GuestsNode) -> None:
    disk = "scsi0: thick:vm-101-disk-0"
    config = f"agent: 1\nscsihw: virtio-scsi-single\n{disk},cache=unsafe,aio=io_uring\n\n[PENDING]\n{disk},iothread=1\n"
    tree.runs(config)
    found, _ = tree.look()
    assert list(found) == ["PVH-407", "PVH-408", "PVH-409"]
    for findings in found.values():
        assert findings[0].remedy == ("qm reboot 101",)
        assert "waits for the VM's restart" in findings[0].evidence


@pytest.mark.parametrize(
    ("disk", "is_found"),
    [
        ("local-lvm:d,cache=writeback", True),
        ("local-lvm:d,cache=writethrough", True),
        ("local-lvm:d,cache=directsync", True),
        ("local-lvm:d,cache=unsafe", True),
        ("local-lvm:d,cache=none", False),
        ("local-lvm:d", False),
        ("ceph:d,cache=writeback", False),
        ("mapped:d,cache=writeback", True),
        ("ceph:d,cache=unsafe", True),
    ],
)
def test_cache_modes(tree: GuestsNode, disk: str, is_found: bool) -> None:
    tree.runs(f"agent: 1\nvirtio0: {disk},iothread=1\n")
    if not is_found:
        assert tree.look() == ({}, [])
        return
    assert tree.only("PVH-408").remedy == (
        f"qm set 101 --virtio0 {disk.partition(',')[0]},iothread=1",
        "qm reboot 101",
    )


@pytest.mark.parametrize(
    ("disk", "is_found"),
    [
        ("thick:d,aio=io_uring", True),
        ("thick:d,aio=native", False),
        ("thick:d", False),
        ("local-lvm:d,aio=io_uring", False),
        ("files:101/d.qcow2,aio=native", True),
        ("files:101/d.qcow2,aio=threads", False),
        ("unknown:d,aio=io_uring", False),
    ],
)
def test_aio(tree: GuestsNode, disk: str, is_found: bool) -> None:
    tree.runs(f"agent: 1\nvirtio0: {disk},iothread=1\n")
    found, _ = tree.look()
    assert list(found) == (["PVH-409"] if is_found else [])


def test_without_the_storages_disks_are_not_judged_by_them(tree: GuestsNode) -> None:
    (tree.root / "etc/pve/storage.cfg").unlink()
    (tree.root / "etc/pve/storage.cfg").mkdir()
    tree.runs("agent: 1\nvirtio0: ceph:d,cache=writeback,iothread=1\n")
    found, missing = tree.look()
    assert found == {}
    assert len(missing) == 1
    assert missing[0].startswith("cache and aio of the guests' disks: ")


def test_a_vm_on_the_qemu_of_before_an_upgrade(tree: GuestsNode) -> None:
    tree.runs(is_replaced=True)
    finding = tree.only("PVH-410")
    assert finding.severity == "note"
    assert "it runs pve-qemu-kvm simulated; 10.1.2-1 is installed" in finding.evidence
    assert finding.remedy == ("qm reboot 101",)


def test_the_same_version_installed_once_more_is_no_finding(tree: GuestsNode) -> None:
    tree.write("/var/lib/dpkg/status", DPKG.replace("10.1.2-1", "simulated"))
    tree.runs(is_replaced=True)
    assert tree.look() == ({}, [])


def test_a_program_that_cannot_be_read_is_not_checked(tree: GuestsNode) -> None:
    tree.runs()
    links = [each / "exe" for each in (tree.root / "proc").iterdir()]
    next(each for each in links if each.is_symlink()).unlink()  # to a program that need not be on this machine
    assert tree.look() == ({}, ["VM 101 web: its QEMU: which program it runs cannot be read"])


# The last nights


def test_a_guest_that_stalled_in_the_last_night_is_an_error_and_earlier_a_warning(tree: GuestsNode) -> None:
    for vmid in (101, 102, 103):
        tree.runs(vmid=vmid)
    path = history_file(tree.node)
    Path(path).parent.mkdir(parents=True)
    nights = [(101, 0, 24.0), (101, 2, 3.0), (102, 2, 5.0), (102, 0, 0.0), (103, 9, 60.0), (104, 0, 60.0)]
    records = [
        record(vmid=vmid, stalled_s=stalled_s, started_s=NOW_S - days * DAY_S - 4800, ended_s=NOW_S - days * DAY_S)
        for vmid, days, stalled_s in nights
    ]
    append(path, *records, now_s=NOW_S)
    found, _ = tree.look()
    assert list(found) == ["PVH-413"]
    last, earlier = found["PVH-413"]
    assert (last.vmid, last.severity, earlier.vmid, earlier.severity) == (101, "error", 102, "warning")
    assert "stalled in 2 of the last 7 nights, worst in the one to Tue 2026-11-24 (24 s): slow target" in last.evidence
    assert last.remedy == ("pvehook report --vmid 101",)
    tree.now_s = NOW_S + 8 * DAY_S
    assert tree.look() == ({}, [])


def test_a_guest_beside_the_backups_of_others_and_a_container_count_too(tree: GuestsNode) -> None:
    tree.runs()
    tree.write("/etc/pve/lxc/110.conf", "hostname: mail\nrootfs: local-lvm:vm-110-disk-0\n")
    path = history_file(tree.node)
    Path(path).parent.mkdir(parents=True)
    append(path, container(), now_s=NOW_S)
    append_beside(path, [beside()], now_s=NOW_S)
    found, _ = tree.look()
    web, mail = sorted(found["PVH-413"], key=lambda each: each.vmid or 0)
    assert "beside the backup of VM 103" in web.evidence
    assert mail.subject == "CT 110 mail"
    assert "shared disks" in mail.evidence


def test_an_overdue_guest_is_an_error_with_its_ways_out(tree: GuestsNode) -> None:
    tree.runs()
    tree.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tschedule 02:00\n\tall 1\n\tstorage nas\n")
    tree.write("/etc/pvehook.yaml", 'window: {open: ["02:00-05:00"]}\n')
    path = history_file(tree.node)
    Path(path).parent.mkdir(parents=True)
    closed = "at 05:02 the backup window was closed (outside 02:00-05:00)"
    for days in (3, 2, 1, 0):
        at_s = NOW_S - days * DAY_S - 3400
        how = {"result": "ok"} if days == 3 else {"result": "refused", "reason": closed}
        append_attempts(path, [attempt(started_s=at_s, ended_s=at_s, job=f"UPID:{days}", **how)], now_s=at_s)
    finding = tree.only("PVH-414")
    assert (finding.severity, finding.subject, finding.vmid) == ("error", "VM 101 web", 101)
    assert closed in finding.evidence
    assert any(command.startswith("pvehook allow") for command in finding.remedy)


def test_a_damaged_history_costs_its_checks_only(tree: GuestsNode) -> None:
    tree.runs(SOUND.replace("agent: 1\n", ""))
    tree.write("/var/lib/pvehook/history.db", "no database, and longer than its header of 100 bytes. " * 4)
    found, missing = tree.look()
    assert list(found) == ["PVH-401"]
    assert [line.partition(":")[0] for line in missing] == ["stalls", "overdue guests", "VM 101 web"]


@pytest.mark.parametrize("check", GROUP.checks, ids=lambda check: check.id)
def test_each_check_is_explained_on_its_page(check: Check[GuestsFacts]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checks" / f"{check.id}.md").read_text()
    assert page.startswith(f"# {check.id}: {check.title}\n")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        *("## What", "## Why", "## Evidence", "## Remedy")
    ]
