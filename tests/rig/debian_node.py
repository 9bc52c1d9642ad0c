"""A real Debian system to install into: systemd as PID 1, its journal, its own Python, under systemd-nspawn.

The pristine tree of each release is built once by debootstrap and kept outside the repository:

    ${XDG_CACHE_HOME:-~/.cache}/pvehook/trees/
        trixie-4f1c2a9be07d/        the tree; the hash is of its list of packages
        trixie-4f1c2a9be07d.lock    held while it is built, so two test runs build it once

A test never writes there: each boot gets an overlay of its own whose upper layer is thrown away.
The system is only ever reached through its PID 1 (nsenter), so nothing has to be configured inside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final, NamedTuple
from urllib.parse import urlsplit

REPO: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPO_INSIDE: Final = "/root/pvehook"
"""Where `copy_repo_in` puts the working tree of this repository."""

SUITES: Final = ("trixie", "bookworm")
"""Debian 13 under Proxmox VE 9, Debian 12 under Proxmox VE 8."""

PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "tzdata", "zstd"),
    *("python3", "python3-psutil", "python3-yaml", "python3-structlog"),
    *("python3-pytest", "python3-hypothesis"),
)
TOOLS: Final = ("debootstrap", "systemd-nspawn", "nsenter", "mount", "umount")
PUBLIC_MIRROR: Final = "http://deb.debian.org/debian"

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
        _take(lock, time.monotonic() + BUILD_DEADLINE_S)
        if not os.path.isdir(tree):
            unfinished = tree + ".unfinished"
            _remove_tree(unfinished)  # of a build that was killed
            _debootstrap(suite, unfinished)
            os.rename(unfinished, tree)
    return tree


def _take(lock: IO[str], until: float) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RigError(f"{lock.name}: another run has been building for {BUILD_DEADLINE_S} s") from None
            time.sleep(0.5)
        else:
            return


def _debootstrap(suite: str, into: str) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, into, _mirror()]
    environment = dict(os.environ)
    proxy = _apt_says("apt-config", "dump", "--format=%v%n", "Acquire::http::Proxy").strip()
    if proxy:
        environment["http_proxy"] = proxy
    done = subprocess.run(  # its output is small and needed when it fails
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=BUILD_DEADLINE_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    for package in os.scandir(os.path.join(into, "var/cache/apt/archives")):
        if package.name.endswith(".deb"):
            os.unlink(package.path)


def _mirror() -> str:
    """Where this machine's own apt takes Debian from; the public mirror if it takes it from nowhere."""
    sites = _apt_says("apt-get", "indextargets", "--format=$(SITE)", "Created-By: Packages").split()
    return next((site for site in sites if urlsplit(site).path.rstrip("/").endswith("/debian")), PUBLIC_MIRROR)


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
        """Run a command inside. Raises RigError if its exit code is not one of `ok`."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.leader), "--all", "--wdns=/", "--",
             "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root",
             *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode not in ok:
            raise RigError(f"{self.suite}: {' '.join(command)}: exit code {done.returncode}\n{done.stdout[-6000:]}")
        return Result(done.returncode, done.stdout)

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
        """Write a file under the system's root. Not for /run, which the system mounts for itself."""
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(inside), mode)

    def copy_repo_in(self) -> None:
        """The working tree as it is now, without what a clone would not have."""
        shutil.copytree(
            REPO, self.path(REPO_INSIDE), symlinks=True,
            ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info"),
        )  # fmt: skip

    def has_ended(self, pid: int) -> bool:
        return not os.path.exists(f"/proc/{self.leader}/root/proc/{pid}")

    def wait_until(self, what: str, *command: str, deadline_s: float = 20) -> Result:
        """Run `command` again and again until it exits with 0. `what` names the wait in the error."""
        until = time.monotonic() + deadline_s
        while True:
            result = self.run(*command, ok=tuple(range(256)))
            if result.code == 0:
                return result
            if time.monotonic() > until:
                raise RigError(f"{self.suite}: {what}: not within {deadline_s} s\n{result.out}")
            time.sleep(0.1)


@contextmanager
def booted(suite: str, scratch: str) -> Iterator[DebianNode]:
    """Boot a fresh `suite` whose changes live under `scratch`, until systemd says that it is up; end it afterwards."""
    name = f"pvehook-{suite}-{os.getpid()}-{hashlib.sha256(scratch.encode()).hexdigest()[:6]}"
    with ExitStack() as stack:
        root = stack.enter_context(_fresh_copy(pristine_tree(suite), scratch))
        _prepare(root, name)
        console = stack.enter_context(open(os.path.join(scratch, "console.log"), "w+b"))
        nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "-D", root, "--boot", "--register=no", "--keep-unit",
             f"--machine={name}", "--console=pipe"],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        stack.callback(_end, nspawn)
        try:
            node = DebianNode(suite, root, _wait_for_leader(nspawn))
            _wait_until_up(node, nspawn)
        except RigError as error:
            console.seek(0)
            raise RigError(f"{error}\nconsole:\n{console.read()[-4000:].decode(errors='replace')}") from None
        yield node


def _prepare(root: str, name: str) -> None:
    """What a minimal tree lacks of an installed system, so that its first boot asks and writes nothing."""
    for path, text in {"/etc/hostname": name, "/etc/machine-id": hashlib.md5(name.encode()).hexdigest()}.items():
        with open(root + path, "w", encoding="ascii") as file:
            file.write(text + "\n")


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
            _remove_tree(part)


def _wait_for_leader(nspawn: subprocess.Popen[bytes]) -> int:
    """systemd-nspawn's child that is PID 1 of a PID namespace of its own."""
    until = time.monotonic() + BOOT_DEADLINE_S
    while nspawn.poll() is None and time.monotonic() < until:
        for child in _children(nspawn.pid):
            try:
                with open(f"/proc/{child}/status", encoding="ascii", errors="replace") as status:
                    ids = next(line.split()[1:] for line in status if line.startswith("NSpid:"))
            except (OSError, StopIteration):
                continue
            if len(ids) > 1 and ids[-1] == "1":
                return child
        time.sleep(0.05)
    raise RigError(f"systemd-nspawn did not start a system (exit code {nspawn.poll()})")


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            return [int(child) for child in listed.read().split()]
    except OSError:
        return []


def _wait_until_up(node: DebianNode, nspawn: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + BOOT_DEADLINE_S
    said = ""
    while nspawn.poll() is None and time.monotonic() < until:
        # Before systemd has mounted its own /run there is nobody to ask: every exit code only means "not yet".
        said = node.run("systemctl", "is-system-running", ok=tuple(range(256))).out.strip()
        if said in {"running", "degraded"}:
            return
        time.sleep(0.1)
    raise RigError(f"{node.suite}: not up after {BOOT_DEADLINE_S} s, systemd says {said!r}")


def _end(nspawn: subprocess.Popen[bytes]) -> None:
    """SIGTERM makes systemd-nspawn power the system off; one that does not obey is killed with all its processes."""
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


def _remove_tree(path: str) -> None:
    """Remove what the system left; it may hold mount points or immutable files only after a failure."""
    if os.path.lexists(path):
        shutil.rmtree(path)
