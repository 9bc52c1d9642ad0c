"""Which processes belong to the backup, and which to a guest.

/proc is read directly, once per call: psutil gives no start time in the kernel's own ticks, which are an identity, and
reads one fixed /proc. Processes come and go while we read: one that ends is left out, never an error.

What belongs to a guest (source: QemuServer.pm and Virtiofs.pm of qemu-server, LXC.pm of pve-container):
  kvm          /var/run/qemu-server/ID.pid, cmdline `/usr/bin/kvm -id ID ...`, cgroup qemu.slice/ID.scope
  swtpm        /var/run/qemu-server/ID.swtpm.pid, cmdline with `/qemu-server/ID.swtpm`; makes itself a daemon
  virtiofsd    no pid file and no VMID in its cmdline; reparented to init, stays in its starter's cgroup
  a container  cgroup lxc/ID
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pvehook.contract.upid import Upid, parse_upid
from pvehook.host import ioprio
from pvehook.host.node import Node

_VM_COMMANDS = frozenset({"kvm", "swtpm", "virtiofsd"})
_VM_COMMAND_PREFIX = "qemu-system-"
_GUEST_CGROUP = re.compile(rb"/(?:qemu\.slice/\d+\.scope|lxc/\d+)(?:/|$)", re.MULTILINE)  # `0::/qemu.slice/101.scope`
_CONTAINER_CGROUP = re.compile(rb"/lxc/\d+(?:/|$)", re.MULTILINE)
_VM_PID_FILE = re.compile(r"([1-9][0-9]{2,8})\.pid")  # beside ID.swtpm.pid; Proxmox numbers guests from 100 on
_GUEST_ID = re.compile(r"[1-9][0-9]{2,8}")
_PID_DIGITS = 10
_ANCESTORS_LIMIT = 8
_COMMAND_WITHIN = 3
"""Words of `/usr/bin/perl -T /usr/bin/vzdump ...` until its own name."""
_SWTPM_PATH = re.compile(r"/qemu-server/(\d+)\.swtpm")


class ProcessId(NamedTuple):
    """Identifies one process: a pid alone is reused. The start is in clock ticks since boot."""

    pid: int
    start_ticks: int


class Found(NamedTuple):
    """A process, the kernel's short name for it, and why it was picked, for the log."""

    process: ProcessId
    comm: str
    why: str
    vmid: int | None = None
    """The VM that its command line names, where that was read."""


class _Row(NamedTuple):
    process: ProcessId
    parent: int
    comm: str
    argv: tuple[str, ...]

    @property
    def title(self) -> str:
        """The first word of its command line, which a vzdump worker has replaced by its task's name."""
        return self.argv[0] if self.argv else ""

    @property
    def names(self) -> tuple[str, str]:
        """What the process is called: by the kernel (15 bytes at most) and by its own argv[0]."""
        return self.comm, os.path.basename(self.title)


def identify(node: Node, pid: int) -> ProcessId | None:
    """The process that has this pid now; None if there is none."""
    row = _read_row(node, pid)
    return row.process if row else None


def parent_of(node: Node, pid: int) -> int | None:
    """The pid of the process that started this one; None if it is gone."""
    row = _read_row(node, pid)
    return row.parent if row else None


def command_line(node: Node, pid: int) -> str:
    """The first word of the process's command line, a vzdump worker's UPID; "" if gone."""
    row = _read_row(node, pid)
    return row.title if row else ""


def ancestors_of(node: Node, pid: int) -> list[str]:
    """What the kernel calls the process's parent, its parent and so on."""
    names: list[str] = []
    row = _read_row(node, pid)
    while row is not None and row.parent > 0 and len(names) < _ANCESTORS_LIMIT:
        row = _read_row(node, row.parent)
        names += [row.comm] if row is not None else []
    return names


def vzdump_task_of(node: Node, pid: int) -> int | None:
    """The nearest vzdump task from this process upwards: a wrapper script may stand between a hook and its worker."""
    for _ in range(_ANCESTORS_LIMIT):
        row = _read_row(node, pid)
        if row is None:
            return None
        if _is_vzdump_task(row):
            return pid
        pid = row.parent
    return None


def vzdump_command_of(node: Node, pid: int) -> tuple[str, ...]:
    """The words of the command that started this task, by hand or from cron; empty where none of its ancestors is one:
    a task of Proxmox's own daemons has its options from them."""
    row = _read_row(node, pid)
    for _ in range(_ANCESTORS_LIMIT):
        row = _read_row(node, row.parent) if row is not None and row.parent > 0 else None
        if row is None:
            break
        if any(os.path.basename(word) == "vzdump" for word in row.argv[:_COMMAND_WITHIN]):
            return row.argv
    return ()


def _is_vzdump_task(row: _Row) -> bool:
    """PVE runs every vzdump in a worker that takes its task's name, `--stdout` too (RESTEnvironment::fork_worker)."""
    return row.title.startswith("task UPID:") and ":vzdump:" in row.title


def running_tasks(node: Node) -> list[Upid]:
    """All of Proxmox's workers on this node. Raises OSError where /proc cannot be read."""
    titles = (row.title for row in _read_table(node) if row.title.startswith("task UPID:") and _is_of(node, row))
    return [upid for title in titles if (upid := parse_upid(title)) is not None]


def sockets_of(node: Node, pid: int) -> frozenset[int] | None:
    """The inodes of a process's open sockets; None: not permitted. Empty for one that has ended.
    Reads procfs only, which is no disk; some 100 microseconds."""
    directory = node.path(f"/proc/{pid}/fd")
    try:
        links = [_link(f"{directory}/{fd}") for fd in os.listdir(directory)]
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
    except OSError:
        return None
    return frozenset(int(link[8:-1]) for link in links if link.startswith("socket:["))


def backup_processes(node: Node, worker: ProcessId, also: Iterable[tuple[str, str]]) -> list[Found]:
    """The vzdump worker, what it forked, and the configured other processes; nothing of any guest.
    `also` holds (command, text): a process whose name is the command and one of whose arguments contains the text, or
    names that path, something below it or a directory above it; the text "" is any. A worker that is gone is left out,
    and so is one that is no vzdump task: a hook called by hand must not leave the caller's shell in the idle class,
    nor one whose worker was killed the node's first process.
    """
    rows = {row.process.pid: row for row in _read_table(node)}
    found: dict[int, Found] = {}

    def is_guests(row: _Row) -> bool:
        return _has_vm_name(row) or bool(_GUEST_CGROUP.search(_read_cgroup(node, row)))

    if (first := rows.get(worker.pid)) and first.process == worker and _is_vzdump_task(first):
        found[worker.pid] = Found(worker, first.comm, "the vzdump worker")
        for row in _descendants(rows.values(), worker.pid, leave_out=is_guests):
            found[row.process.pid] = Found(row.process, row.comm, "started by the vzdump worker")
    for command, text in also:
        for row in rows.values():
            if command in row.names and row.process.pid not in found and not is_guests(row):
                wanted = text.rstrip("/") or text
                if _names_path(node, row, wanted) if wanted.startswith("/") else wanted in "\0".join(row.argv):
                    why = f"configured: {command}" + (f" that mentions {wanted}" if wanted else "")
                    found[row.process.pid] = Found(row.process, row.comm, why)
    return list(found.values())


def vm_processes(node: Node, vmid: int, born_after: ProcessId | None) -> list[Found]:
    """QEMU of one VM and what runs beside it (swtpm, virtiofsd, all of its scope), QEMU first.
    With `born_after`, the vzdump worker, only what was started after it: a VM that ran before has whatever priority its
    administrator gave it. Descendants of that worker count as well, unless they are known to be another VM's.
    """
    rows = {row.process.pid: row for row in _read_table(node)}
    found: dict[int, Found] = {}

    def add(row: _Row, why: str) -> None:
        if row.process.pid not in found and _is_younger(row, born_after):
            found[row.process.pid] = Found(row.process, row.comm, why)

    # A pid file outlives its process, and the pid may be another process's by now: the cmdline must agree.
    for what, file, vmid_of in (("QEMU", f"{vmid}.pid", _vmid_of_qemu), ("swtpm", f"{vmid}.swtpm.pid", _vmid_of_swtpm)):
        row = rows.get(_read_pid(node, f"/var/run/qemu-server/{file}"))
        if row and vmid_of(row) == vmid:
            add(row, f"{what} of VM {vmid}, by its pid file")
    for pid in _read_pids(node, f"/sys/fs/cgroup/qemu.slice/{vmid}.scope/cgroup.procs"):
        if (row := rows.get(pid)) and _is_of(node, row):
            add(row, f"in the scope of VM {vmid}")
    if born_after and (worker := rows.get(born_after.pid)) and worker.process == born_after:
        for row in _descendants(rows.values(), born_after.pid):
            if _has_vm_name(row) and _known_vmid(row) in (None, vmid):
                add(row, f"{row.comm} that vzdump started while it backed up VM {vmid}")
    return list(found.values())


def qemu_of(node: Node, vmid: int) -> ProcessId | None:
    """QEMU of one VM; None while the VM does not run on this node. Reads its pid file and two files of /proc."""
    # As in `vm_processes`: the file may be stale, and the pid another process's.
    row = _read_row(node, _read_pid(node, f"/var/run/qemu-server/{vmid}.pid"))
    return row.process if row and _vmid_of_qemu(row) == vmid else None


def running_vms(node: Node) -> dict[int, ProcessId]:
    """QEMU of each VM that runs on this node now, by the VM's number."""
    try:
        names = os.listdir(node.path("/var/run/qemu-server"))
    except OSError:
        return {}  # no VM has run here since the start
    vmids = sorted(int(match[1]) for name in names if (match := _VM_PID_FILE.fullmatch(name)))
    return {vmid: qemu for vmid in vmids if (qemu := qemu_of(node, vmid))}


def running_containers(node: Node) -> dict[int, int]:
    """The cgroup's inode of each container that runs on this node now, by the container's number. Another inode tells
    that it was started anew."""
    directory = node.path("/sys/fs/cgroup/lxc")
    found: dict[int, int] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _GUEST_ID.fullmatch(entry.name) and entry.is_dir():
                    found[int(entry.name)] = entry.inode()
    except OSError:
        pass  # no container has run here since the start
    return dict(sorted(found.items()))


def program_is_replaced(node: Node, process: ProcessId) -> bool | None:
    """Whether the file of the program that the process runs is gone: a package with another one was installed since it
    was started (proc(5): `/proc/PID/exe` then reads `/usr/bin/qemu-system-x86_64 (deleted)`). None: not known."""
    program = _link(node.path(f"/proc/{process.pid}/exe"))
    return program.endswith(" (deleted)") if program else None


def guests_left_idle(node: Node, born_after: ProcessId | None) -> list[Found]:
    """VMs' processes anywhere on the node with a thread at idle I/O priority, started after the worker (None: at any
    time). This finds what `vm_processes` cannot: a virtiofsd, which nothing ties to its VM. Processes inside containers
    are left out: what is idle there was set so by its user. Raises NodeError where I/O priorities cannot be read."""
    found = []
    for row in _read_table(node):
        if not _is_younger(row, born_after) or not _is_of(node, row):
            continue
        cgroup = _read_cgroup(node, row)
        if _CONTAINER_CGROUP.search(cgroup) or not (_has_vm_name(row) or _GUEST_CGROUP.search(cgroup)):
            continue
        states = ioprio.read_all_threads(node, row.process.pid).values()
        idle = sum(state.priority == ioprio.IDLE for state in states)
        if idle:
            why = f"{idle} of {len(states)} threads at idle I/O priority"
            found.append(Found(row.process, row.comm, why, _known_vmid(row)))
    return found


def _names_path(node: Node, row: _Row, path: str) -> bool:
    """Whether an argument is this path, lies below it, or is a directory (not `/`) that contains it."""
    directory = _link(node.path(f"/proc/{row.process.pid}/cwd")) or "/"
    for argument in row.argv[1:]:
        option, equals, value = argument.partition("=")
        if argument.startswith("-"):
            if not equals or "exclude" in option or "filter" in option:
                continue
            argument = value  # noqa: PLW2901  (`--repo=/backup`)
        if ":" in argument.partition("/")[0]:
            continue  # `nas:backup`, on another machine
        named = os.path.normpath(os.path.join(directory, argument))
        if _contains(path, named) or (named != "/" and _contains(named, path)):
            return True
    return False


def _contains(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _is_of(node: Node, row: _Row) -> bool:
    """Whether the process is this node's. A rehearsal sees every process of the machine, perhaps real VMs: its own are
    those that name its tree."""
    return not node.borrows_processes or any(node.root in argument for argument in row.argv)


def _descendants(
    rows: Iterable[_Row], ancestor: int, leave_out: Callable[[_Row], bool] = lambda row: False
) -> Iterator[_Row]:
    """Children, their children and so on. Children of what is left out are left out too."""
    children: dict[int, list[_Row]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
    waiting = children.get(ancestor, [])
    while waiting:
        row = waiting.pop()
        if not leave_out(row):
            yield row
            waiting.extend(children.get(row.process.pid, []))


def _is_younger(row: _Row, born_after: ProcessId | None) -> bool:
    # Equal counts as younger: a tick is 10 ms, a worker can start a VM within the tick of its own start.
    return born_after is None or (row.process.start_ticks >= born_after.start_ticks and row.process != born_after)


def _has_vm_name(row: _Row) -> bool:
    return any(name in _VM_COMMANDS or name.startswith(_VM_COMMAND_PREFIX) for name in row.names)


def _known_vmid(row: _Row) -> int | None:
    return _vmid_of_qemu(row) or _vmid_of_swtpm(row)


def _vmid_of_qemu(row: _Row) -> int | None:
    """The number after `-id`, which is how qemu-server starts every VM; None if there is none."""
    for option, value in zip(row.argv, row.argv[1:], strict=False):
        if option == "-id":
            return int(value) if value.isdecimal() else None
    return None


def _vmid_of_swtpm(row: _Row) -> int | None:
    if "swtpm" not in row.names:
        return None
    match = _SWTPM_PATH.search("\n".join(row.argv))
    return int(match[1]) if match else None


def _read_table(node: Node) -> list[_Row]:
    pids = [int(name) for name in os.listdir(node.path("/proc")) if name.isdigit()]
    return [row for pid in pids if (row := _read_row(node, pid))]


def _read_row(node: Node, pid: int) -> _Row | None:
    """One process, None if it is gone or has ended and only waits for its parent.

    Example of /proc/PID/stat, whose second field may itself hold blanks and brackets (proc(5)):
    `4711 (task UPID:pve) S 1 4711 4711 0 -1 ...`; from the state on, the parent is the 2nd field, the number of threads
    the 18th, the start time in ticks the 20th.
    """
    stat = node.read(f"/proc/{pid}/stat")
    fields = stat[stat.rfind(b")") + 1 :].split()
    if len(fields) < 20:
        return None
    if fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None  # a zombie with more threads is only a first thread that ended early
    comm = stat[stat.find(b"(") + 1 : stat.rfind(b")")].decode(errors="replace")
    cmdline = node.read(f"/proc/{pid}/cmdline").rstrip(b"\0")  # empty for a kernel thread
    argv = tuple(os.fsdecode(part) for part in cmdline.split(b"\0")) if cmdline else ()
    return _Row(ProcessId(pid, int(fields[19])), int(fields[1]), comm, argv)


def _read_cgroup(node: Node, row: _Row) -> bytes:
    return node.read(f"/proc/{row.process.pid}/cgroup")


def _read_pid(node: Node, path: str) -> int:
    """The number in a pid file; 0, which is no process, if the file is absent or holds something else."""
    return next(_read_pids(node, path), 0)


def _read_pids(node: Node, path: str) -> Iterator[int]:
    return (int(word) for word in node.read(path).split() if word.isdigit() and len(word) <= _PID_DIGITS)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # closed since the listing
