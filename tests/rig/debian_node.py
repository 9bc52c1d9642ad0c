"""A real Debian system to install into: systemd as PID 1, its journal, its own Python, under systemd-nspawn.

The pristine tree of each release is built once by debootstrap and kept outside the repository:

    ${XDG_CACHE_HOME:-~/.cache}/pvehook/trees/
        trixie-4f1c2a9be07d/        the tree; the hash is of its list of packages
        trixie-4f1c2a9be07d.lock    held while it is built, so two test runs build it once

A test never writes there: each boot gets an overlay of its own whose upper layer is thrown away.
The system is only ever reached through its PID 1 (nsenter), so nothing has to be configured inside it.

TasksMax and MemoryMax of pvehook.service hold as they do on a node. Where the host keeps the pids and memory
controllers in cgroup v1, systemd cannot pass them into a container; then each boot gets a cgroup in both, and a
drop-in of the unit moves the daemon there as soon as it is up (`ENFORCE_LIMITS`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

REPO: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPO_INSIDE: Final = "/root/pvehook"
"""Where `copy_repo_in` puts the working tree of this repository."""

SUITES: Final = ("trixie", "bookworm")
"""Debian 13 under Proxmox VE 9, Debian 12 under Proxmox VE 8."""

PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "tzdata", "zstd"),
    *("python3", "python3-psutil", "python3-yaml", "python3-structlog"),
    *("python3-pytest", "python3-pytest-xdist", "python3-hypothesis", "python3-prometheus-client"),
    *("e2fsprogs", "lz4", "perl"),  # what the tests of the rehearsal and the disks run
)
TOOLS: Final = ("debootstrap", "systemd-nspawn", "nsenter", "flock", "mount", "umount")
PUBLIC_MIRROR: Final = "http://deb.debian.org/debian"
PATH_INSIDE: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"

CONTROLLERS: Final = ("pids", "memory")
CONTROLLERS_INSIDE: Final = "/rig"
"""Where a booted system sees its cgroups of `CONTROLLERS`."""

LIMITS_DROP_IN: Final = "/etc/systemd/system/pvehook.service.d/limits.conf"
ENFORCE_LIMITS: Final = f"""\
#!/bin/sh
set -eu
limit() {{ systemctl show --value --property="$1" pvehook.service; }}
limit TasksMax | sed s/infinity/max/ >{CONTROLLERS_INSIDE}/pids/pids.max
limit MemoryMax | sed s/infinity/-1/ >{CONTROLLERS_INSIDE}/memory/memory.limit_in_bytes
for controller in {" ".join(CONTROLLERS)}; do
    echo "$MAINPID" >{CONTROLLERS_INSIDE}/$controller/cgroup.procs
done
"""
"""Runs as ExecStartPost. What the daemon took before READY=1 is not charged to it: some 25 MB."""

BUILD_DEADLINE_S: Final = 900
BOOT_DEADLINE_S: Final = 90
POWEROFF_DEADLINE_S: Final = 20


class RigError(Exception):
    """The rig itself failed, not what it was built to test."""


class Result(NamedTuple):
    code: int
    out: str
    """Both streams in the order in which they were written."""


def what_is_missing() -> str:
    """Why no Debian system can be booted here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root (systemd-nspawn, debootstrap)"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)} (./install.sh --test installs them)" if missing else ""


def pristine_tree(suite: str) -> str:
    """The cached tree of `suite`, built first if it is not there. To be read, never written."""
    wanted = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    cache = os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pvehook", "trees"
    )
    os.makedirs(cache, exist_ok=True)
    tree = os.path.join(cache, f"{suite}-{wanted}")
    with open(tree + ".lock", "w", encoding="ascii") as lock:
        # flock(1) waits with a deadline; the lock stays with our descriptor, which it inherits.
        wait = ["flock", "--exclusive", "--timeout", str(BUILD_DEADLINE_S), str(lock.fileno())]
        if subprocess.run(wait, pass_fds=[lock.fileno()], check=False).returncode != 0:
            raise RigError(f"{lock.name}: another run has been building for {BUILD_DEADLINE_S} s")
        if not os.path.isdir(tree):
            unfinished = tree + ".unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was killed
            _debootstrap(suite, unfinished)
            os.rename(unfinished, tree)
    return tree


def _debootstrap(suite: str, into: str) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, into, _mirror()]
    environment = dict(os.environ)
    proxy = _apt_says("apt-config", "dump", "--format=%v%n", "Acquire::http::Proxy").strip()
    if proxy:
        environment["http_proxy"] = proxy
    done = subprocess.run(
        command, env=environment, timeout=BUILD_DEADLINE_S, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    for package in os.scandir(os.path.join(into, "var/cache/apt/archives")):
        if package.name.endswith(".deb"):
            os.unlink(package.path)


def _mirror() -> str:
    """Where this machine's own apt takes Debian from; the public mirror if it takes it from nowhere."""
    sites = _apt_says("apt-get", "indextargets", "--format=$(SITE)", "Created-By: Packages").split()
    return next((site for site in sites if site.rstrip("/").endswith("/debian")), PUBLIC_MIRROR)


def _apt_says(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


class DebianNode:
    """One booted system. `root` is its directory as this machine sees it, `leader` its PID 1."""

    def __init__(self, suite: str, root: str, leader: int) -> None:
        self.suite = suite
        self.root = root
        self.leader = leader

    def run(self, *command: str, timeout_s: float = 60, ok: tuple[int, ...] = (0,)) -> Result:
        """Run a command inside. Raises RigError if its exit code is not one of `ok`, or it does not end in time."""
        try:
            done = subprocess.run(
                ["nsenter", "--target", str(self.leader), "--all", "--wdns=/", "--",
                 "env", "-i", f"PATH={PATH_INSIDE}", "LC_ALL=C.UTF-8", "HOME=/root", *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise RigError(f"{self.suite}: {late}\n{self._what_it_does()}") from None
        if done.returncode not in ok:
            output = done.stdout[-6000:]
            raise RigError(f"{self.suite}: {' '.join(command)}: exit code {done.returncode}\n{output}")
        return Result(done.returncode, done.stdout)

    def _what_it_does(self) -> str:
        """Of a system that does not answer: its jobs, processes and last lines, and where the kernel is in its PID 1
        and in whatever of this machine waits uninterruptibly."""
        shown = []
        for command in ("systemctl list-jobs", "systemctl status pvehook.service", "ps axf", "journalctl -n 60"):
            command_line = ["nsenter", "--target", str(self.leader), "--all", "--wdns=/", "--", *command.split()]
            try:
                done = subprocess.run(command_line, capture_output=True, text=True, timeout=10, check=False)
                shown.append(f"{command}:\n{done.stdout[-6000:]}")
            except subprocess.TimeoutExpired:
                shown.append(f"{command}: no answer within 10 s")
        for task in sorted(glob.glob("/proc/[0-9]*/task/[0-9]*")):
            try:
                comm, _, state = Path(task, "stat").read_text().partition("(")[2].rpartition(")")
                if state.split()[0] == "D" or task.startswith(f"/proc/{self.leader}/"):
                    shown.append(f"{task} {comm}\n{Path(task, 'stack').read_text()}")
            except OSError:
                continue  # it has ended
        return "\n".join(shown)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of the system's journal, as `journalctl -o json` gives them."""
        self.run("journalctl", "--sync")
        listed = self.run("journalctl", "--quiet", "--no-pager", "--output=json", *matches, ok=(0, 1)).out
        return [json.loads(line) for line in listed.splitlines()]

    def path(self, inside: str) -> str:
        return self.root + inside

    def read(self, inside: str) -> str:
        return self.run("cat", inside).out

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file from outside. Not under /run or /tmp, which the system mounts for itself."""
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(inside), mode)

    def copy_repo_in(self) -> None:
        """The working tree as it is now, without what a clone would not have."""
        made = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
        ignore = shutil.ignore_patterns(*made)
        shutil.copytree(REPO, self.path(REPO_INSIDE), symlinks=True, ignore=ignore)


@contextmanager
def booted(suite: str, scratch: str, binds: Mapping[str, str] | None = None) -> Iterator[DebianNode]:
    """Boot a fresh `suite` whose changes live under `scratch`; end it with the block, however that ends.

    `binds` are directories of this machine that the system sees too, writable: here -> inside.
    """
    name = f"pvehook-{suite}-{os.getpid()}-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        root = stack.enter_context(_fresh_copy(pristine_tree(suite), scratch))
        _prepare(root, name)
        cgroups = stack.enter_context(_cgroups(name, scratch))
        if cgroups:
            _enforce_limits(root)
        console = stack.enter_context(open(os.path.join(scratch, "console.log"), "w+b"))
        ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind(f"\0{name}")
        nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "-D", root, "--boot", "--register=no", "--keep-unit",
             "--notify-ready=yes", f"--machine={name}", "--console=pipe",
             *(f"--bind={here}:{inside}" for here, inside in {**(binds or {}), **cgroups}.items())],
            env={**os.environ, "NOTIFY_SOCKET": f"@{name}"},
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        stack.callback(_end, nspawn)
        try:
            _wait_until_ready(ready, nspawn)
            # Each daemon-reload is notified too: left unread they fill the queue, and PID 1 waits for us for ever.
            ready.close()
            node = DebianNode(suite, root, _leader_of(nspawn))
            node.run("systemctl", "is-system-running", "--wait", timeout_s=BOOT_DEADLINE_S, ok=(0, 1))
        except RigError as error:
            console.seek(0)
            output = console.read()[-4000:].decode(errors="replace")
            raise RigError(f"{suite}: {error}\nconsole:\n{output}") from None
        yield node


def _prepare(root: str, name: str) -> None:
    """What a minimal tree lacks of an installed system, so that its first boot asks and writes nothing."""
    for path, text in (("/etc/hostname", name), ("/etc/machine-id", secrets.token_hex(16))):
        with open(root + path, "w", encoding="ascii") as file:
            file.write(text + "\n")


@contextmanager
def _cgroups(name: str, scratch: str) -> Iterator[dict[str, str]]:
    """A cgroup v1 of this name in each of `CONTROLLERS`: here -> inside. None if the host has them in cgroup v2."""
    with ExitStack() as stack:
        binds = {}
        for controller in CONTROLLERS:
            hierarchy = _hierarchy(controller) or stack.enter_context(_mounted_hierarchy(controller, scratch))
            if not hierarchy:
                break
            cgroup = os.path.join(hierarchy, name)
            os.mkdir(cgroup)
            stack.callback(_remove_cgroup, cgroup)
            binds[cgroup] = f"{CONTROLLERS_INSIDE}/{controller}"
        yield binds if len(binds) == len(CONTROLLERS) else {}


def _remove_cgroup(cgroup: str) -> None:
    """Once its last process is gone for the kernel too, which may be a moment after its system has ended."""
    until = time.monotonic() + POWEROFF_DEADLINE_S
    while True:
        try:
            os.rmdir(cgroup)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _hierarchy(controller: str) -> str:
    """Where this machine has a cgroup v1 hierarchy of `controller` mounted; empty if nowhere."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, mounted_at, kind, options = line.split(" ")[:4]
            if kind == "cgroup" and controller in options.split(","):
                return mounted_at
    return ""


@contextmanager
def _mounted_hierarchy(controller: str, scratch: str) -> Iterator[str]:
    """The same, mounted for the time of the block; empty if the kernel refuses, as it does when cgroup v2 has it."""
    at = os.path.join(scratch, f"cgroup-{controller}")
    os.mkdir(at)
    mount = ["mount", "-t", "cgroup", "-o", controller, "pvehook-rig", at]
    if subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode != 0:
        yield ""
        return
    try:
        yield at
    finally:
        subprocess.run(["umount", at], timeout=30, check=True)


def _enforce_limits(root: str) -> None:
    script = os.path.join(CONTROLLERS_INSIDE, "enforce-limits")
    drop_in = f"[Service]\nExecStartPost=+{script}\n"
    for path, text, mode in ((script, ENFORCE_LIMITS, 0o755), (LIMITS_DROP_IN, drop_in, 0o644)):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(root + path, mode)


@contextmanager
def _fresh_copy(tree: str, scratch: str) -> Iterator[str]:
    root, upper, work = (os.path.join(scratch, part) for part in ("root", "upper", "work"))
    for part in (root, upper, work):
        os.makedirs(part)
    options = f"lowerdir={tree},upperdir={upper},workdir={work}"
    mount = ["mount", "-t", "overlay", "pvehook-rig", "-o", options, root]
    overlaid = subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode == 0
    if not overlaid:  # no overlay here, or one on top of an overlay: a real copy is slower and as good
        subprocess.run(["cp", "-a", "--reflink=auto", f"{tree}/.", root], timeout=300, check=True)
    try:
        yield root
    finally:
        if overlaid:
            subprocess.run(["umount", "--lazy", root], timeout=30, check=True)
        for part in (root, upper, work):
            shutil.rmtree(part)


def _wait_until_ready(ready: socket.socket, nspawn: subprocess.Popen[bytes]) -> None:
    """Until the system's PID 1 has sent READY=1 (sd_notify(3), handed on by systemd-nspawn)."""
    until = time.monotonic() + BOOT_DEADLINE_S
    ended = os.pidfd_open(nspawn.pid)
    waiting: list[socket.socket | int] = [ready, ended]
    try:
        while (left_s := until - time.monotonic()) > 0:
            heard, _, _ = select.select(waiting, [], [], left_s)
            if ready in heard and b"READY=1" in ready.recv(4096).split(b"\n"):
                return
            if ended in heard:
                raise RigError("systemd-nspawn ended before the system was up")
    finally:
        os.close(ended)
    raise RigError(f"the system was not up within {BOOT_DEADLINE_S} s")


def _leader_of(nspawn: subprocess.Popen[bytes]) -> int:
    """systemd-nspawn's child that is PID 1 of a PID namespace of its own."""
    for child in _children(nspawn.pid):
        with open(f"/proc/{child}/status", encoding="ascii", errors="replace") as status:
            ids = next(line.split()[1:] for line in status if line.startswith("NSpid:"))
        if len(ids) > 1 and ids[-1] == "1":
            return child
    raise RigError("systemd-nspawn has no child that is PID 1")


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            return [int(child) for child in listed.read().split()]
    except OSError:
        return []


def _end(nspawn: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets systemd-nspawn power the system off; one that does not obey is killed with all it runs."""
    leaders = _children(nspawn.pid)
    nspawn.terminate()
    try:
        nspawn.wait(POWEROFF_DEADLINE_S)
    except subprocess.TimeoutExpired:
        nspawn.kill()
        for leader in leaders:  # PID 1 of its namespace: the kernel ends the others with it
            try:
                os.kill(leader, signal.SIGKILL)
            except ProcessLookupError:
                continue
        nspawn.wait(POWEROFF_DEADLINE_S)
