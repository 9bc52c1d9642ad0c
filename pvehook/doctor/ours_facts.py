"""How pvehook itself stands on the node: is it called, does it run, can it keep what it sees. No process is started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from pvehook.config.in_force import NODE_FILE, InForce
from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.vzdump_config import parse_vzdump_config
from pvehook.deadline import Deadline
from pvehook.doctor.finding import Sources
from pvehook.errors import NodeError
from pvehook.host.backup_jobs import Job, jobs_of_node
from pvehook.host.hook_script import HookScript, look_at_script
from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.host.processes import command_line, identify
from pvehook.host.timely_files import TimelyReader
from pvehook.records.history import history_file, why_unusable

T = TypeVar("T")

VZDUMP_CONF: Final = "/etc/vzdump.conf"
HOOK_SOCKET: Final = "pvehook.socket"
NOTIFY_SOCKET: Final = "pvehook-notify.socket"
_DAEMON_CGROUP: Final = "/sys/fs/cgroup/system.slice/pvehook.service/cgroup.procs"
_FAILURES: Final = "/run/pvehook/failures"
_FAILURES_LIMIT_BYTES: Final = 4096
HISTORY_CHECK_S: Final = 2.0
"""Of reading the whole history. The largest (160 MB) takes about a second from a quick disk."""

HISTORY: Final = history_file(Node())
LEAST_FREE_BYTES: Final = 32 << 20
"""Below that SQLite's journal may not fit beside the history."""

Socket: TypeAlias = Literal["listens", "masked", "not enabled", "no unit", "does not listen"]


def socket_link(unit: str) -> str:
    """By which systemd starts a socket at boot (`systemctl enable`)."""
    return f"/etc/systemd/system/sockets.target.wants/{unit}"


class RunningDaemon(NamedTuple):
    pid: int
    started_s: float
    """Seconds since the epoch."""


class History(NamedTuple):
    not_writable: str | None
    """Why; None: the daemon can write it, or make it where there is none."""
    damage: Measured[str]
    """Why it cannot be used; "": it can, as far as that was looked for. Absent: there is none yet."""
    moved_aside: tuple[str, ...]
    """Earlier ones that could not be used."""


class OursFacts(NamedTuple):
    in_force: InForce
    vzdump_conf: Measured[str]
    """Its text; absent: there is no such file."""
    node_yaml: Measured[str]
    """/etc/pvehook.yaml."""
    jobs: Measured[tuple[Job, ...]]
    """The enabled ones of this node, lines of cron too."""
    scripts: Mapping[str, Measured[HookScript]]
    """Of each path that `script:`, a job or `chain:` names."""
    socket: Measured[Socket]
    notify_socket: Measured[Socket]
    failures: int
    """How often in a row the daemon has failed to start or died."""
    daemon: RunningDaemon | None
    """None: none runs, which is usual while no backup runs."""
    program_s: Measured[float]
    """When the program was installed, in seconds since the epoch."""
    history: Measured[History]


def gather(sources: Sources) -> OursFacts:
    """Every file is asked for by itself: one that hangs or cannot be read costs what it would have said."""
    node, local = sources.node, TimelyReader()  # the reader of /etc/pve may hang

    def ask(reader: TimelyReader, what: str, question: Callable[[], T]) -> Measured[T]:
        try:
            return reader.within(sources.deadline.left_s(), what, question)
        except (NodeError, OSError) as error:
            return Broken(str(error))

    def text(path: str) -> Measured[str]:
        try:
            found = local.text(node.path(path), sources.deadline.left_s())
        except NodeError as error:
            return Broken(str(error))
        return Absent(f"there is no {path}") if found is None else found

    vzdump_conf = text(VZDUMP_CONF)
    node_yaml, history = text(NODE_FILE), ask(local, HISTORY, lambda: _history(node, sources.deadline))
    try:
        jobs: Measured[tuple[Job, ...]] = tuple(jobs_of_node(node, sources.reader, sources.node_name))
    except NodeError as error:
        jobs = Broken(str(error))
    named = [parse_vzdump_config(value_of(vzdump_conf) or "").get("script"), sources.in_force.config.chain]
    named += [job.options.get("script") for job in value_of(jobs) or ()]
    return OursFacts(
        in_force=sources.in_force,
        vzdump_conf=vzdump_conf,
        node_yaml=node_yaml,
        jobs=jobs,
        # A script may be on a share that hangs: each is asked by a reader of its own.
        scripts={
            path: ask(TimelyReader(), path, lambda path=path: look_at_script(node, path))  # type: ignore[misc]
            for path in dict.fromkeys(filter(None, named))
        },
        socket=ask(local, HOOK_SOCKET, lambda: _socket(node, HOOK_SOCKET, node.hook_socket)),
        notify_socket=ask(local, NOTIFY_SOCKET, lambda: _socket(node, NOTIFY_SOCKET, node.notify_socket)),
        failures=len(node.read(_FAILURES)[:_FAILURES_LIMIT_BYTES].splitlines()),
        daemon=_daemon(node),
        program_s=ask(local, INSTALLED_UNDER, lambda: os.stat(node.path(_program_file())).st_mtime),
        history=history,
    )


def missing(facts: OursFacts) -> list[str]:
    """What could not be read."""
    named = {
        "the script of vzdump.conf": facts.vzdump_conf,
        "pvehook's configuration": facts.node_yaml,
        "the scripts of jobs": facts.jobs,
        HOOK_SOCKET: facts.socket,
        NOTIFY_SOCKET: facts.notify_socket,
        "the version of the daemon": facts.program_s if facts.daemon else 0.0,
        "the history": facts.history,
        **{f"the script {path}": script for path, script in facts.scripts.items()},
    }
    if isinstance(facts.history, History):
        named["the history's content"] = facts.history.damage
    return [f"{what}: {value.why}" for what, value in named.items() if isinstance(value, Broken)]


def _program_file() -> str:
    return f"{INSTALLED_UNDER}/pvehook/__init__.py"


def _socket(node: Node, unit: str, path: str) -> Socket:
    """By the links that `systemctl enable` and `mask` make, and the sockets that the kernel has."""
    if _link(node, f"/etc/systemd/system/{unit}") == "/dev/null":
        return "masked"
    enabled = _link(node, socket_link(unit))
    if enabled is None:
        return "not enabled"
    if not os.path.exists(node.path(enabled)):
        return "no unit"
    sockets = node.read("/proc/net/unix")
    if not sockets:
        raise NodeError("/proc/net/unix cannot be read")
    return "listens" if path.encode() in sockets else "does not listen"


def _link(node: Node, path: str) -> str | None:
    """Where a link leads, as the node spells it; a relative one cannot be in `.wants`."""
    try:
        return os.readlink(node.path(path))
    except OSError:
        return None


def _daemon(node: Node) -> RunningDaemon | None:
    boot = next((line for line in node.read("/proc/stat").split(b"\n") if line.startswith(b"btime ")), b"")
    for word in node.read(_DAEMON_CGROUP).split():
        process = identify(node, int(word)) if word.isdigit() else None
        if process is not None and boot[6:].isdigit() and "python" in command_line(node, process.pid):
            return RunningDaemon(process.pid, int(boot[6:]) + process.start_ticks / os.sysconf("SC_CLK_TCK"))
    return None


def _history(node: Node, deadline: Deadline) -> History:
    path = history_file(node)
    aside = tuple(each for each in (f"{HISTORY}.damaged", f"{HISTORY}.newer") if os.path.exists(node.path(each)))
    damage: Measured[str] = Absent("there is no history yet")
    if os.path.exists(path):
        damage = _damage(path, deadline.within(HISTORY_CHECK_S))
    return History(_why_not_writable(node), damage, aside)


def _damage(path: str, deadline: Deadline) -> Measured[str]:
    try:
        return why_unusable(path, lambda: not deadline.left_s()) or ""
    except InterruptedError:
        return Broken(f"not read to its end within {HISTORY_CHECK_S:g} s")


def _why_not_writable(node: Node) -> str | None:
    """For root without the capability to write everywhere, as the daemon's sandbox has it. Nothing is written."""
    root = os.stat(node.path("/")).st_uid
    directory = os.path.dirname(HISTORY)
    for path in (directory, HISTORY):
        try:
            found = os.stat(node.path(path))
        except FileNotFoundError:
            continue  # it is made when it is needed
        if found.st_uid != root or not found.st_mode & 0o200:
            return f"{path} belongs to user {found.st_uid}, mode {found.st_mode & 0o777:o}; root must be able to write"
    while not os.path.exists(node.path(directory)):
        directory = os.path.dirname(directory)
    room = os.statvfs(node.path(directory))
    if room.f_flag & os.ST_RDONLY:
        return f"the file system of {directory} is mounted read-only"
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < LEAST_FREE_BYTES:
        return f"{directory} has {free_bytes >> 20} MiB left; expected {LEAST_FREE_BYTES >> 20} MiB or more"
    return None
