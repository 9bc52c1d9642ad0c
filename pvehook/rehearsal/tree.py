"""A node in a directory, with the real hook and the real daemon.

    ROOT/proc, sys                              symbolic links to the real ones: priorities are really set
    ROOT/etc/pvehook.yaml, etc/pve/...          as on a node
    ROOT/usr/local/lib/pvehook/{hooks,pvehook}  links to this program: the hook finds ROOT by its own path
    ROOT/clock                                  the daemon's clock, see RehearsalClock
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Self

from pvehook.host.clock import RehearsalClock
from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.rehearsal import PROGRAM
from pvehook.rehearsal.journal_receiver import JournalReceiver
from pvehook.rehearsal.vzdump.player import WAIT_S

_SYSTEM_PYTHON = "/usr/bin/python3"
_DIRECTORIES = (
    *("/etc/pve/qemu-server", "/etc/pve/lxc", "/run/pvehook", "/var/lib/vz/dump", "/var/lib/pvehook"),
    *("/var/run/qemu-server", "/var/log"),
)


class RehearsalNode:
    """The tree, its journal and its daemon; leaving the `with` block ends the daemon. The tree is the caller's."""

    def __init__(self, root: str, files: Mapping[str, str]) -> None:
        """`root` must be short: a unix socket's path has at most 108 bytes. `files`: path on the node to text."""
        self.node = Node(root)
        self.clock_file = os.path.join(root, "clock")
        self.journal = JournalReceiver(self.node.journal_socket, RehearsalClock(self.clock_file).now_s)
        self._daemon: subprocess.Popen[bytes] | None = None
        for directory in _DIRECTORIES:
            os.makedirs(self.node.path(directory), exist_ok=True)
        for name in ("proc", "sys"):
            os.symlink(f"/{name}", os.path.join(root, name))
        for path, text in files.items():
            self.write(path, text)
        self.run_clock_from(time.time())
        self.hook = self._place_program()

    def __enter__(self) -> Self:
        self.journal.__enter__()
        try:
            self.start_daemon()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.journal.__exit__(*exception)

    @property
    def daemon(self) -> subprocess.Popen[bytes]:
        if self._daemon is None:
            raise RuntimeError("the daemon was not started")
        return self._daemon

    def start_daemon(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `pvehook serve`; returns when its socket answers."""
        before = len(self.journal.events)
        options = ["--root", self.node.root, "--clock", self.clock_file, *arguments]
        self._daemon = subprocess.Popen(
            [*pvehook_command(), "serve", *options],
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        )
        self.wait_for_event("daemon-started", after=before)
        return self._daemon

    def kill_daemon(self) -> None:
        """SIGKILL: the daemon gets no chance to put anything right."""
        self.daemon.kill()
        self.daemon.wait(WAIT_S)

    def stop(self) -> None:
        """SIGTERM, as systemd stops it."""
        if self._daemon is None or self._daemon.poll() is not None:
            return
        self._daemon.terminate()
        try:
            self._daemon.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill_daemon()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the node, complete at once: the daemon may read it at any time."""
        real = self.node.path(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(real + ".new", mode)
        os.rename(real + ".new", real)

    def run_clock_from(self, now_s: float) -> None:
        """From now on it is `now_s` (epoch seconds), and time goes on from there."""
        self.write("/clock", f"{now_s - time.time():.3f}\n")

    def stop_clock_at(self, now_s: float, steady_s: float) -> None:
        """From now on it is `now_s`, until the clock is set again. `steady_s`: what durations are taken from."""
        self.write("/clock", f"@{now_s:.3f} {steady_s:.3f}\n")

    def wait_for_event(self, name: str, after: int = 0, **fields: str) -> dict[str, str]:
        """The fields of the journal's event of that name and these PVEHOOK_ fields, after the first `after` events."""
        wanted = {"PVEHOOK_EVENT": name, **{f"PVEHOOK_{key.upper()}": value for key, value in fields.items()}}
        return self.journal.wait_for(
            lambda event: wanted.items() <= event.items(), f"{wanted}, seen: {self.event_names()}", after
        )

    def event_names(self) -> list[str]:
        """Of the journal, as far as it came; "" for what somebody else logged."""
        return [event.fields.get("PVEHOOK_EVENT", "") for event in self.journal.events]

    def _place_program(self) -> str:
        """The hook as installed; returns its path.

        Only where the system's Python is missing or too old for pvehook (the demo runs on any Linux), the hook is a
        copy whose first line names this interpreter.
        """
        program = self.node.path(INSTALLED_UNDER)
        hooks = os.path.join(program, "hooks")
        hook = os.path.join(hooks, "vzdump-hook")
        os.makedirs(program)
        os.symlink(os.path.join(PROGRAM, "pvehook"), os.path.join(program, "pvehook"))
        if _system_python_will_do():
            os.symlink(os.path.join(PROGRAM, "hooks"), hooks)
            return hook
        os.makedirs(hooks)
        with open(os.path.join(PROGRAM, "hooks", "vzdump-hook"), encoding="utf-8") as file:
            text = file.read().partition("\n")[2]
        with open(hook, "w", encoding="utf-8") as file:
            file.write(f"#!{sys.executable} -IS\n{text}")
        os.chmod(hook, 0o700)
        return hook


def pvehook_command() -> list[str]:
    """This program's `pvehook`, run by this interpreter."""
    code = f"import sys; sys.path.insert(0, {PROGRAM!r}); from pvehook.cli import main; sys.exit(main())"
    return [sys.executable, "-I", "-c", code]


def _system_python_will_do() -> bool:
    command = [_SYSTEM_PYTHON, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    return os.path.exists(_SYSTEM_PYTHON) and subprocess.run(command, timeout=WAIT_S, check=False).returncode == 0
