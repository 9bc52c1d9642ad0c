"""What belongs to a backup and what to a guest: real processes, and /proc as a tree for cgroups.

Other backups may be played on this machine at the same time, so of what is found anywhere only the own
processes are looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pvehook.host.ioprio import IDLE, restore_normal, set_all_threads
from pvehook.host.node import Node
from pvehook.host.processes import (
    Found,
    ProcessId,
    backup_processes,
    command_line,
    guests_left_idle,
    identify,
    parent_of,
    qemu_of,
    running_containers,
    running_vms,
    vm_processes,
)
from tests.host.players import argv

if TYPE_CHECKING:
    from tests.host.players import Player

REAL = Node()
UPID = "task UPID:pve:0000A1B2:00C3D4E5:6564A0F1:vzdump:101:root@pam:"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """This machine's processes, and pid files and cgroups of its own."""
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "var/run/qemu-server").mkdir(parents=True)
    return Node(str(tmp_path))


def write(node: Node, path: str, text: str) -> None:
    file = Path(node.path(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def process(pid: int) -> ProcessId:
    found = identify(REAL, pid)
    assert found is not None
    return found


def pids(found: list[Found]) -> set[int]:
    return {each.process.pid for each in found}


def ticks_since_boot() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def idle_worker(start: Callable[..., Player]) -> Player:
    worker = start(UPID)
    set_all_threads(REAL, worker.pid, IDLE)
    return worker


def younger_worker(start: Callable[..., Player], than: int) -> Player:
    """A worker whose start shows as later: start times have a grain of 10 ms."""
    for _ in range(50):
        worker = start(UPID)
        if process(worker.pid).start_ticks > process(than).start_ticks:
            return worker
    raise AssertionError("no process is younger than another one")


def ioclass(pid: int) -> int:
    return int(psutil.Process(pid).ionice().ioclass)


# One process


def test_a_process_is_known_by_its_start_and_gone_when_it_has_ended(start: Callable[..., Player]) -> None:
    before = ticks_since_boot()
    player = start(UPID, "and more")
    assert before <= process(player.pid).start_ticks <= ticks_since_boot()
    assert parent_of(REAL, player.pid) == os.getpid()
    assert command_line(REAL, player.pid) == UPID
    player.end()
    assert identify(REAL, player.pid) is None
    assert parent_of(REAL, player.pid) is None
    assert command_line(REAL, player.pid) == ""


# The backup's processes


def test_the_worker_and_all_it_forked_are_found(start: Callable[..., Player]) -> None:
    worker = idle_worker(start)
    child = worker.tell("start", argv("zstd"))
    stranger = start("zstd")
    orphan = worker.tell("start_orphan", argv("daemon"))
    found = backup_processes(REAL, process(worker.pid), [])
    assert found[0][:3] == (process(worker.pid), found[0].comm, "the vzdump worker")
    assert pids(found) == {worker.pid, child}
    assert stranger.pid not in pids(found)
    assert orphan not in pids(found)  # init's child by now; it inherited its priority when it was forked
    assert ioclass(child) == ioclass(orphan) == IDLE.io_class


def test_grandchildren_are_found(node: Node, tmp_path: Path) -> None:
    tree = FakeProc(tmp_path / "other")
    tree.process(10, parent=1, start=500, name="task UPID:pve", argv0=UPID)
    tree.process(11, parent=10, start=501, name="sh")
    tree.process(12, parent=11, start=502, name="tar")
    tree.process(13, parent=1, start=503, name="tar")
    assert pids(backup_processes(tree.node, ProcessId(10, 500), [])) == {10, 11, 12}


def test_a_worker_whose_pid_is_used_again_is_not_touched(start: Callable[..., Player]) -> None:
    player = start()
    player.tell("start", argv("zstd"))
    earlier = ProcessId(player.pid, process(player.pid).start_ticks - 1)
    assert backup_processes(REAL, earlier, []) == []


def test_a_caller_that_is_no_vzdump_task_is_not_the_backups(start: Callable[..., Player]) -> None:
    shell = start("-bash")
    shell.tell("start", argv("zstd"))
    assert backup_processes(REAL, process(shell.pid), []) == []


def test_configured_processes_are_picked_by_name_and_argument(tmp_path: Path, start: Callable[..., Player]) -> None:
    dump = f"{tmp_path}/dump"
    worker = start(UPID)
    copying = start("/usr/bin/rsync", "-a", f"{dump}/", "nas:backup")
    elsewhere = start("rsync", "-a", "/home", "nas:home")
    reading = start("less", f"{dump}/x.log")
    renamed = start()
    renamed.tell("call_yourself", "mycopy")

    found = backup_processes(REAL, process(worker.pid), [("rsync", dump), ("mycopy", "")])
    assert pids(found) == {worker.pid, copying.pid, renamed.pid}
    assert not pids(found) & {elsewhere.pid, reading.pid}
    whys = {each.process.pid: each.why for each in found}
    assert whys[copying.pid] == f"configured: rsync that mentions {dump}"
    assert whys[renamed.pid] == "configured: mycopy"


def test_a_slash_at_the_end_of_the_dump_directory_makes_no_difference(start: Callable[..., Player]) -> None:
    worker = start(UPID)
    copying = start("rsync", "/mnt/nas/dump", "far:")
    found = backup_processes(REAL, process(worker.pid), [("rsync", "/mnt/nas/dump/")])
    assert copying.pid in pids(found)


@pytest.mark.parametrize(
    ("arguments", "directory", "dump", "named"),
    [
        ("-a /backup-mysql/ h:/y", "/", "/backup", False),
        ("-a /srv/www/ h:/srv/backup/www", "/", "/backup", False),
        ("-a /home/ h:/backup", "/", "/backup", False),
        ("-a --exclude=/backup /home/ h:/home", "/", "/backup", False),
        ("-a /backup/ h:/y", "/", "/backup", True),
        ("-a /backup/x.vma h:/y", "/", "/backup", True),
        ("-a h:/x /backup", "/", "/backup", True),
        ("-a --link-dest=/backup/old h:/x /y", "/", "/backup", True),
        ("-a /var/lib/vz/ h:/full", "/", "/var/lib/vz/dump", True),
        ("-a / h:/full", "/", "/var/lib/vz/dump", False),
        ("-a . h:/x", "/var/lib/vz/dump", "/var/lib/vz/dump", True),
        ("-a dump/../dump h:/x", "/var/lib/vz", "/var/lib/vz/dump", True),
        ("-a . h:/x", "/home", "/var/lib/vz/dump", False),
    ],
)
def test_a_copy_is_recognised_by_the_path_that_it_copies(
    tmp_path: Path, arguments: str, directory: str, dump: str, named: bool
) -> None:
    tree = FakeProc(tmp_path)
    tree.process(10, parent=1, start=500, name="task UPID:pve", argv0=UPID)
    tree.process(11, parent=1, start=501, name="rsync")
    write(tree.node, "/proc/11/cmdline", "rsync\0" + arguments.replace(" ", "\0") + "\0")
    os.symlink(directory, tree.node.path("/proc/11/cwd"))
    assert (11 in pids(backup_processes(tree.node, ProcessId(10, 500), [("rsync", dump)]))) is named


@pytest.mark.parametrize("name", ["kvm", "/usr/bin/qemu-system-x86_64", "swtpm", "/usr/libexec/virtiofsd"])
def test_a_guests_process_is_not_the_backups_though_the_worker_started_it(
    start: Callable[..., Player], name: str
) -> None:
    worker = start(UPID)
    guest = worker.tell("start", argv(name, "-id", "101"))
    backup = worker.tell("start", argv("tar"))
    found = pids(backup_processes(REAL, process(worker.pid), [(os.path.basename(name), "")]))
    assert backup in found
    assert guest not in found


def test_what_is_in_a_guests_cgroup_is_not_the_backups(tmp_path: Path) -> None:
    tree = FakeProc(tmp_path)
    tree.process(10, parent=1, start=500, name="task", argv0=UPID, cgroup="/system.slice/pvedaemon.service")
    tree.process(11, parent=10, start=501, name="tar", cgroup="/system.slice/pvedaemon.service")
    tree.process(12, parent=10, start=501, name="task UPID:pve", cgroup="/qemu.slice/101.scope")
    tree.process(13, parent=12, start=502, name="ls", cgroup="/system.slice/pvedaemon.service")
    tree.process(14, parent=1, start=600, name="rsync", cgroup="/lxc/103/ns/system.slice/cron.service")
    tree.process(15, parent=1, start=600, name="rsync", cgroup="/system.slice/cron.service")
    tree.process(16, parent=1, start=600, name="rsync", cgroup="/user.slice/lxc-tools/103")
    found = pids(backup_processes(tree.node, ProcessId(10, 500), [("rsync", "")]))
    assert found == {10, 11, 15, 16}


def test_odd_entries_of_proc_do_no_harm(tmp_path: Path) -> None:
    tree = FakeProc(tmp_path)
    tree.process(10, parent=1, start=500, name="task (UPID) S 1 2", argv0=UPID)
    tree.process(11, parent=10, start=501, name="gone by now", state="Z")
    tree.process(12, parent=10, start=501, name="half gone", state="Z", threads=2)
    Path(tree.node.path("/proc/13")).mkdir()  # vanished after the listing
    tree.process(14, parent=10, start=501, name="short")
    write(tree.node, "/proc/14/stat", "14 (short) S 10")
    assert pids(backup_processes(tree.node, ProcessId(10, 500), [])) == {10, 12}
    assert identify(tree.node, 13) is None


# A VM's processes


def test_a_vm_that_an_idle_worker_started_is_found_and_put_back(node: Node, start: Callable[..., Player]) -> None:
    worker = idle_worker(start)
    kvm = worker.tell("start", argv("/usr/bin/kvm", "-id", "101", "-pidfile", f"{node.root}/101.pid"))
    write(node, "/var/run/qemu-server/101.pid", f"{kvm}\n")
    assert ioclass(kvm) == IDLE.io_class  # the trap itself

    (stray,) = [each for each in guests_left_idle(node, process(worker.pid)) if each.process == process(kvm)]
    assert stray.vmid == 101  # known without its pid file, which QEMU writes a moment after its start
    (found,) = vm_processes(node, 101, process(worker.pid))
    assert (found.process, found.why) == (process(kvm), "QEMU of VM 101, by its pid file")
    done = restore_normal(node, found.process.pid)
    assert (done.was_idle, done.confirmed) == (done.threads, done.threads)

    assert ioclass(kvm) == 0
    assert kvm not in pids(guests_left_idle(node, process(worker.pid)))
    assert ioclass(worker.pid) == IDLE.io_class  # the backup's own priority stays


def test_a_pid_file_that_points_at_a_stranger_hits_nobody(node: Node, start: Callable[..., Player]) -> None:
    stranger = start("postgres", "-D", "/id", "101")
    other_vm = start("kvm", "-id", "1010")
    for pid in (stranger.pid, other_vm.pid, 999_999_999):
        write(node, "/var/run/qemu-server/101.pid", f"{pid}\n")
        assert vm_processes(node, 101, None) == []


@pytest.mark.parametrize("text", ["", "nonsense\n", "-1\n", "0\n", "9" * 5000])
def test_a_broken_pid_file_names_no_process(node: Node, text: str) -> None:
    write(node, "/var/run/qemu-server/101.pid", text)
    assert vm_processes(node, 101, None) == []
    assert qemu_of(node, 101) is None
    assert running_vms(node) == {}


def test_the_vms_that_run_here(node: Node, start: Callable[..., Player]) -> None:
    assert running_vms(node) == {}
    one, other = start("/usr/bin/kvm", "-id", "101"), start("/usr/bin/kvm", "-id", "1010")
    stopped, stranger = start("/usr/bin/kvm", "-id", "103"), start("postgres")
    for vmid, player in ((101, one), (1010, other), (103, stopped), (104, stranger), (105, one)):
        write(node, f"/var/run/qemu-server/{vmid}.pid", f"{player.pid}\n")
    for name in ("101.swtpm.pid", "0101.pid", "101.pid.tmp", "x.pid", "1" * 200 + ".pid"):
        write(node, f"/var/run/qemu-server/{name}", f"{one.pid}\n")
    expected = {101: process(one.pid), 1010: process(other.pid)}
    stopped.end()
    assert running_vms(node) == expected
    assert [qemu_of(node, vmid) for vmid in (101, 103, 104, 105, 106)] == [process(one.pid), None, None, None, None]


def test_a_node_on_which_no_vm_ever_ran(tmp_path: Path) -> None:
    assert running_vms(Node(str(tmp_path))) == {}


def test_a_vm_that_ran_before_the_backup_is_left_alone(node: Node, start: Callable[..., Player]) -> None:
    kvm = start("kvm", "-id", "101")
    write(node, "/var/run/qemu-server/101.pid", f"{kvm.pid}\n")
    set_all_threads(node, kvm.pid, IDLE)  # as its administrator wanted it
    worker = younger_worker(start, than=kvm.pid)
    assert vm_processes(node, 101, process(worker.pid)) == []
    assert kvm.pid not in pids(guests_left_idle(node, process(worker.pid)))
    assert pids(vm_processes(node, 101, None)) == {kvm.pid}


def test_swtpm_is_found_by_its_own_pid_file(node: Node, start: Callable[..., Player]) -> None:
    worker = idle_worker(start)
    control = "type=unixio,path=/var/run/qemu-server/101.swtpm,mode=0600"
    swtpm = worker.tell("start_orphan", argv("swtpm", "socket", "--ctrl", control))
    write(node, "/var/run/qemu-server/101.swtpm.pid", f"{swtpm}\n")
    write(node, "/var/run/qemu-server/102.swtpm.pid", f"{swtpm}\n")
    assert pids(vm_processes(node, 101, process(worker.pid))) == {swtpm}
    assert vm_processes(node, 102, process(worker.pid)) == []


def test_a_virtiofsd_given_to_init_is_found_by_being_idle(node: Node, start: Callable[..., Player]) -> None:
    worker = idle_worker(start)
    virtiofsd = worker.tell("start_orphan", argv("/usr/libexec/virtiofsd", "--shared-dir", node.root))
    assert vm_processes(node, 101, process(worker.pid)) == []
    whys = {each.process: each.why for each in guests_left_idle(node, process(worker.pid))}
    assert whys[process(virtiofsd)] == "1 of 1 threads at idle I/O priority"
    restore_normal(node, virtiofsd)
    assert virtiofsd not in pids(guests_left_idle(node, process(worker.pid)))


def test_parentage_finds_this_vms_processes_and_not_another_vms(node: Node, start: Callable[..., Player]) -> None:
    worker = start(UPID)
    mine = worker.tell("start", argv("kvm", "-id", "101"))
    beside = worker.tell("start", argv("virtiofsd", "--fd=20"))
    worker.tell("start", argv("kvm", "-id", "102"))
    worker.tell("start", argv("swtpm", "--pid", "file=/var/run/qemu-server/102.swtpm.pid"))
    worker.tell("start", argv("zstd"))
    assert pids(vm_processes(node, 101, process(worker.pid))) == {mine, beside}
    assert vm_processes(node, 101, None) == []


def test_everything_in_a_vms_scope_is_the_vms(node: Node, start: Callable[..., Player]) -> None:
    worker = start(UPID)
    helper = worker.tell("start", argv("whatever", node.root))
    write(node, "/sys/fs/cgroup/qemu.slice/101.scope/cgroup.procs", f"{helper}\n999999999\n")
    assert pids(vm_processes(node, 101, process(worker.pid))) == {helper}
    assert vm_processes(node, 102, process(worker.pid)) == []


def test_a_rehearsals_tree_touches_no_process_that_does_not_name_it(node: Node, start: Callable[..., Player]) -> None:
    """Its /proc is the machine's: a real VM there must not become part of the play."""
    worker = idle_worker(start)
    foreign = worker.tell("start_orphan", argv("/usr/bin/kvm", "-id", "101"))
    write(node, "/sys/fs/cgroup/qemu.slice/101.scope/cgroup.procs", f"{foreign}\n")
    assert foreign not in pids(guests_left_idle(node, process(worker.pid)))
    assert foreign in pids(guests_left_idle(REAL, process(worker.pid)))
    assert vm_processes(node, 101, process(worker.pid)) == []


@pytest.mark.parametrize(
    ("name", "cgroup", "is_vms"),
    [
        ("updatedb", "/qemu.slice/101.scope", True),
        ("kvm", "/system.slice/pvedaemon.service", True),
        ("updatedb", "/user.slice", False),
        ("updatedb", "/lxc/103/ns", False),
        ("kvm", "/lxc/103/ns", False),  # a container's own business
    ],
)
def test_only_a_vms_idle_process_is_left_idle(
    tmp_path: Path, start: Callable[..., Player], name: str, cgroup: str, is_vms: bool
) -> None:
    player = start("ionice", "-c3")
    set_all_threads(REAL, player.pid, IDLE)
    tree = FakeProc(tmp_path)
    tree.process(player.pid, parent=1, start=500, name=name, cgroup=cgroup)
    Path(tree.node.path(f"/proc/{player.pid}/task")).symlink_to(f"/proc/{player.pid}/task")
    assert bool(guests_left_idle(tree.node, None)) == is_vms


class FakeProc:
    """/proc as a directory: what cannot be arranged without root, other people's cgroups above all."""

    def __init__(self, root: Path) -> None:
        self.node = Node(str(root))

    def process(
        self,
        pid: int,
        *,
        parent: int,
        start: int,
        name: str,
        cgroup: str = "/",
        state: str = "S",
        threads: int = 1,
        argv0: str = "",
    ) -> None:
        fields = ["0"] * 50
        fields[0], fields[1], fields[17], fields[19] = state, str(parent), str(threads), str(start)
        write(self.node, f"/proc/{pid}/stat", f"{pid} ({name}) {' '.join(fields)}\n")
        write(self.node, f"/proc/{pid}/cmdline", f"{argv0 or name}\0")
        write(self.node, f"/proc/{pid}/cgroup", f"0::{cgroup}\n")


def test_containers_that_run_are_told_by_their_cgroups(tmp_path: Path) -> None:
    node = Node(str(tmp_path))
    assert running_containers(node) == {}
    lxc = tmp_path / "sys/fs/cgroup/lxc"
    for name in ("102", "110", "pve", "7"):
        (lxc / name / "ns").mkdir(parents=True)
    (lxc / "cgroup.procs").write_text("")
    assert running_containers(node) == {each: (lxc / str(each)).stat().st_ino for each in (102, 110)}
