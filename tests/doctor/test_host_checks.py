"""What the doctor finds on the node itself, and what of a node it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pvehook.config.in_force import Configuration
from pvehook.contract.kernel_line import KernelLine
from pvehook.contract.measured import Absent, Broken
from pvehook.contract.node_memory import Swap
from pvehook.deadline import Deadline
from pvehook.doctor import host_checks, host_facts
from pvehook.doctor.finding import Finding, Sources
from pvehook.doctor.host_checks import GROUP
from pvehook.doctor.host_facts import HostFacts, KernelEvents, Memory, Seen, SwapPlace, gather
from pvehook.host import block
from pvehook.host.kernel_log import PastLog
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from tests.host.conftest import BlockTree

NOW = datetime(2026, 11, 29, 10, 20, tzinfo=UTC)
GIB = 1 << 30
DAY_S = 86400.0

Find = Callable[[HostFacts], Iterator[Finding]]


def facts(**changed: Any) -> HostFacts:
    """A node on which nothing is to be found."""
    plain = HostFacts(
        now=NOW,
        kernel="7.0.14-14-pve",
        pve_manager="9.2.11",
        newest_kernel="7.0.14-14-pve",
        pinned="",
        has_pressure=True,
        command_line=("BOOT_IMAGE=/boot/vmlinuz", "quiet"),
        events=KernelEvents({}, True, 30 * DAY_S),
        memory=Memory(64 * GIB, 20 * GIB, (0.0, 0.0)),
        swaps=(),
        swapped_in_bytes=0,
        stolen=0.0,
        huge_pages="madvise",
        containers=3,
        unknown=(),
    )
    return plain._replace(**changed)


def events(kind: str, lines: int = 1, ago_s: float = 3600.0, is_whole: bool = True) -> KernelEvents:
    return KernelEvents({kind: Seen(lines, ago_s, "the line")}, is_whole, 30 * DAY_S)


def used(swap: Swap, **shared: tuple[str, ...]) -> SwapPlace:
    return SwapPlace(swap, False, shared)


SWAP = Swap("/dev/dm-1", 8 * GIB, 2 * GIB)


def test_a_good_node_has_no_findings() -> None:
    assert [finding for check in GROUP.checks for finding in check.find(facts())] == []
    assert GROUP.missing(facts()) == ()


@pytest.mark.parametrize(
    ("find", "changed", "severity", "said"),
    [
        (
            host_checks.pressure_off,
            {"has_pressure": False, "command_line": ("quiet", "psi=0")},
            "warning",
            "there is no /proc/pressure: the kernel's command line has psi=0, so that a container's stalls are",
        ),
        (host_checks.pressure_off, {"has_pressure": False}, "warning", "the running kernel does not keep it"),
        (
            host_checks.end_of_life,
            {"pve_manager": "8.4.14"},
            "warning",
            "Proxmox VE 8.4.14 gets no more updates since August 2026, no fixes for backups either",
        ),
        (
            host_checks.older_kernel_runs,
            {"kernel": "6.17.4-2-pve"},
            "note",
            "6.17.4-2-pve runs, and 7.0.14-14-pve is installed: its fixes come with the next boot",
        ),
        (
            host_checks.lockups,
            {"events": events("rcu-stall", 2)},
            "warning",
            "2 lines of kind rcu-stall since the boot; what stops the node stops every guest."
            " The last, 1h00 ago: the line",
        ),
        (host_checks.lockups, {"events": events("soft-lockup", ago_s=8 * DAY_S)}, "note", "8d00h ago"),
        (host_checks.lockups, {"events": events("hung-task", is_whole=False)}, "warning", "still has"),
        (host_checks.disk_trouble, {"events": events("storage-timeout")}, "warning", "1 line of kind storage-timeout"),
        (host_checks.long_interrupts, {"events": events("long-interrupt", 10)}, "note", "10 lines of the kernel say"),
        (
            host_checks.swap_on_zvol,
            {"swaps": (SwapPlace(Swap("/dev/zd0", GIB, 0), True, {}),)},
            "warning",
            "swap is on the zvol /dev/zd0",
        ),
        (
            host_checks.swap_beside_guests,
            {"swaps": (used(SWAP, sda=("storage local-lvm (guests)", "storage dump (archives)")),),
             "swapped_in_bytes": 3 * GIB},
            "note",
            "2.0 GiB of memory is in swap /dev/dm-1 on sda, the disk of storage local-lvm (guests) and"
            " storage dump (archives), and 3.0 GiB were read back since the boot",
        ),
        (
            host_checks.memory_pressure,
            {"memory": Memory(64 * GIB, 4 * GIB, (0.1, 0.04))},
            "warning",
            "in 10% of the last five minutes a process waited for memory, in 4% all did (under 5% was expected);"
            " 4.0 of 64.0 GiB of memory can be had",
        ),
        (
            host_checks.memory_pressure,
            {"memory": Memory(64 * GIB, 3 * GIB, (0.0, 0.0))},
            "note",
            "3.0 of 64.0 GiB of memory can be had, under 5%",
        ),
        (host_checks.stolen_time, {"stolen": 0.02}, "note", "took 2.0% of its CPU time since the boot"),
        (host_checks.stolen_time, {"stolen": 0.06}, "warning", "took 6.0% of its CPU time"),
        (host_checks.huge_pages, {"huge_pages": "always"}, "note", "is always (Proxmox VE's own is madvise)"),
    ],
)  # fmt: skip
def test_what_is_found(find: Find, changed: dict[str, Any], severity: str, said: str) -> None:
    (found,) = find(facts(**changed))
    assert (found.subject, found.severity) == ("node", severity)
    assert said in found.evidence
    assert found.remedy


@pytest.mark.parametrize(
    ("find", "changed"),
    [
        (host_checks.end_of_life, {"pve_manager": "8.4.14", "now": datetime(2026, 8, 31, 23, 0, tzinfo=UTC)}),
        (host_checks.end_of_life, {"pve_manager": "10.0.1"}),
        (host_checks.end_of_life, {"pve_manager": Absent("not here")}),
        (host_checks.older_kernel_runs, {"kernel": "6.17.4-2-pve", "pinned": "6.17.4-2-pve"}),
        (host_checks.older_kernel_runs, {"kernel": "7.0.14-15-pve"}),
        (host_checks.older_kernel_runs, {"kernel": "6.12.57+deb13-amd64"}),
        (host_checks.older_kernel_runs, {"kernel": "6.17.4-2-pve", "newest_kernel": ""}),
        (host_checks.lockups, {"events": events("storage-timeout")}),
        (host_checks.lockups, {"events": Absent("no log")}),
        (host_checks.disk_trouble, {"events": events("soft-lockup")}),
        (host_checks.long_interrupts, {"events": events("long-interrupt", 9)}),
        (host_checks.swap_on_zvol, {"swaps": (used(SWAP),)}),
        (host_checks.swap_beside_guests, {"swaps": (used(SWAP, sda=("storage a (guests)",)),)}),
        (host_checks.swap_beside_guests, {"swaps": (used(SWAP),), "swapped_in_bytes": 3 * GIB}),
        (
            host_checks.swap_beside_guests,
            {"swaps": (used(SWAP._replace(used_bytes=1), sda=("storage a (guests)",)),), "swapped_in_bytes": 3 * GIB},
        ),
        (host_checks.memory_pressure, {"memory": Broken("unreadable")}),
        (host_checks.stolen_time, {"stolen": 0.009}),
        (host_checks.huge_pages, {"huge_pages": "always", "containers": 0}),
        (host_checks.huge_pages, {"huge_pages": "never"}),
    ],
)
def test_what_is_nothing_to_find(find: Find, changed: dict[str, Any]) -> None:
    assert list(find(facts(**changed))) == []


def test_what_could_not_be_read_is_reported() -> None:
    gone = facts(events=Broken("no answer"), huge_pages=Absent("none"), stolen=Broken("/proc/stat: odd"))
    assert GROUP.missing(gone._replace(unknown=("disks: no answer",))) == (
        "the kernel's log: no answer",
        "stolen CPU time: /proc/stat: odd",
        "disks: no answer",
    )


# A node


def package(name: str, version: str) -> str:
    return f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n"


PRESSURE = "{} avg10=0.00 avg60=0.00 avg300={} total=1\n"
NODE = {
    "/proc/sys/kernel/osrelease": "6.17.4-2-pve\n",
    "/proc/cmdline": "quiet psi=1\n",
    "/proc/pressure/cpu": PRESSURE.format("some", "0.00"),
    "/proc/pressure/memory": PRESSURE.format("some", "7.50") + PRESSURE.format("full", "2.00"),
    "/proc/meminfo": "MemTotal:       8388608 kB\nMemAvailable:    1048576 kB\n",
    "/proc/spl/kstat/zfs/arcstats": "name type data\nsize 4 3221225472\nc_min 4 1073741824\n",
    "/proc/swaps": "Filename Type Size Used Priority\n/dev/zd16 partition 1024 0 -2\n/srv/swap file 2048 0 -3\n",
    "/proc/vmstat": "pswpin 10\npswpout 20\n",
    "/proc/stat": "cpu  90 0 0 0 0 0 0 10 0 0\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "/sys/fs/cgroup/lxc/105/cgroup.procs": "",
    "/etc/kernel/proxmox-boot-pin": "6.17.4-2-pve\n",
    "/var/lib/dpkg/status": package("proxmox-kernel-7.0", "7.0.14-14")
    + package("proxmox-kernel-7.0.14-9-pve-signed", "7.0.14-9")
    + package("proxmox-kernel-7.0.14-14-pve-signed", "7.0.14-14")
    + package("pve-kernel-6.2.16-5-pve", "6.2.16-6")
    + package("pve-manager", "9.2.11"),
}


def sources(tmp_path: Path, files: dict[str, str]) -> Sources:
    for path, text in files.items():
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    node, reader = Node(str(tmp_path)), TimelyReader()
    in_force = Configuration(node, reader, None, remembers=False).now()
    return Sources(node, "pve1", in_force, reader, NOW, Deadline.after(10.0), ())


def test_what_the_checks_go_by_is_read_from_the_node(tmp_path: Path) -> None:
    seen = gather(sources(tmp_path, NODE))
    assert isinstance(seen.events, Absent)
    assert seen == HostFacts(
        now=NOW,
        kernel="6.17.4-2-pve",
        pve_manager="9.2.11",
        newest_kernel="7.0.14-14-pve",
        pinned="6.17.4-2-pve",
        has_pressure=True,
        command_line=("quiet", "psi=1"),
        events=seen.events,
        memory=Memory(8 * GIB, 3 * GIB, (0.075, 0.02)),
        swaps=(
            SwapPlace(Swap("/dev/zd16", 1 << 20, 0), True, {}),
            SwapPlace(Swap("/srv/swap", 2 << 20, 0), False, {}),
        ),
        swapped_in_bytes=10 * 4096,
        stolen=0.1,
        huge_pages="madvise",
        containers=1,
        unknown=(),
    )


def test_what_is_on_the_disks_of_swap_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Proxmox's installer leaves a node: swap, the root and the guests are volumes of one group on one disk."""
    tree = BlockTree(tmp_path)
    monkeypatch.setattr(block, "device_of", tree.device_of)
    disk = tree.device("sda", (8, 0), under="pci0000:00/host0/target0:0:0/0:0:0:0")
    tree.partition(disk, "sda3", (8, 3))
    for number, name in enumerate(("pve-swap", "pve-root", "pve-vm--101--disk--0")):
        home = tree.device(f"dm-{number}", (252, number), slaves=("sda3",))
        (home / "dm").mkdir()
        (home / "dm/name").write_text(f"{name}\n")
    tree.place("/dev/dm-0", (252, 0))
    tree.place("/var/lib/vz/dump", (252, 1))
    tree.mount("/", "ext4", "/dev/mapper/pve-root")
    tree.mount("/dev", "devtmpfs", "udev")
    storages = "lvm: local-lvm\n\tvgname pve\n\tcontent images\n\nnfs: nas\n\tserver a\n\texport /b\n\tcontent backup\n"
    swaps = "Filename Type Size Used Priority\n/dev/dm-0 partition 8388604 1048576 -2\n"
    seen = gather(sources(tmp_path, {"/etc/pve/storage.cfg": storages, "/proc/swaps": swaps}))
    on_sda = ("storage local (archives)", "storage local-lvm (guests)")
    assert [place.shared for place in seen.swaps] == [{"sda": on_sda}]
    assert seen.unknown == ()


def test_an_empty_node_costs_lines_and_no_findings_but_the_missing_pressure(tmp_path: Path) -> None:
    seen = gather(sources(tmp_path, {}))
    found = [check.id for check in GROUP.checks for _ in check.find(seen)]
    assert found == ["PVH-501"]
    assert [text.partition(":")[0] for text in GROUP.missing(seen)] == [
        "the running kernel",
        "memory",
        "stolen CPU time",
    ]


def test_the_kernels_log_is_told_by_kind_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        KernelLine(1_000_000, "rcu: INFO: rcu_sched self-detected stall on CPU"),
        KernelLine(2_000_000, "usb 1-1: new device"),
        KernelLine(90_000_000, "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\x1b[31m"),
    )
    monkeypatch.setattr(host_facts, "read_past_log", lambda *_: PastLog(lines, False))
    seen = gather(sources(tmp_path, {"/proc/uptime": "100.50 200.00\n"}))
    assert seen.events == KernelEvents(
        {"rcu-stall": Seen(2, 10.5, "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\\x1b[31m")}, False, 100.5
    )
