"""A node in a directory, with the real hook, the real daemon as a process, and a journal that can be read back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.rehearsal.journal_receiver import JournalReceiver
from pvehook.rehearsal.vzdump.run import Guest, Mode, Run

REPO = Path(__file__).parent.parent
ALWAYS = 'window: {open: ["00:00-24:00"]}\n'
NEVER = "window: {open: []}\n"

AS_WORKER = ("/bin/sh", "-c", '"$0" "$@"; exit $?')
"""A process of its own as the hook's parent: whoever that is goes to idle I/O priority, and it must not be pytest."""


class NodeUnderTest:
    """One node's tree and the daemon that serves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = Node(str(root))
        self._daemon: subprocess.Popen[bytes] | None = None
        program = root / INSTALLED_UNDER.lstrip("/")
        program.mkdir(parents=True)
        for part in ("hooks", "pvehook"):
            (program / part).symlink_to(REPO / part)
        for part in ("proc", "sys"):
            (root / part).symlink_to(f"/{part}")
        for part in ("etc/pve/qemu-server", "etc/pve/lxc", "run/systemd/journal", "var/run/qemu-server"):
            (root / part).mkdir(parents=True)
        self.hook = str(program / "hooks" / "vzdump-hook")
        self.clock_file = root / "clock"
        self.clock_file.write_text("0")
        self.configure(ALWAYS)
        self.journal = JournalReceiver(self.node.journal_socket)

    def configure(self, text: str) -> None:
        (self.root / "etc/pvehook.yaml").write_text(text)

    def set_clock(self, iso: str) -> None:
        """From now on the daemon's clock reads `iso`, and goes on from there."""
        replacement = self.clock_file.with_suffix(".new")
        replacement.write_text(str(datetime.fromisoformat(iso).timestamp() - time.time()))
        replacement.rename(self.clock_file)

    def start_daemon(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts `pvehook serve` and returns when its socket answers."""
        code = (
            f"import sys; sys.path.insert(0, {str(REPO)!r}); from pvehook.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-I", "-c", code, "serve", "--root", str(self.root), "--clock", str(self.clock_file)]
        before = len(self.journal.events)
        self._daemon = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL)
        self.wait_for_event("daemon-started", after=before)
        return self._daemon

    @property
    def daemon(self) -> subprocess.Popen[bytes]:
        assert self._daemon is not None
        return self._daemon

    def kill_daemon(self) -> None:
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait(10)

    def stop(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.kill_daemon()

    def wait_for_event(self, name: str, after: int = 0, **fields: str) -> dict[str, str]:
        wanted = {"PVEHOOK_EVENT": name, **{f"PVEHOOK_{key.upper()}": value for key, value in fields.items()}}
        seen_before = self.journal.events[:after]
        return self.journal.wait_for(
            lambda event: (
                wanted.items() <= event.items() and not any(event is earlier.fields for earlier in seen_before)
            ),
            f"{wanted}, seen: {self.event_names()}",
        )

    def event_names(self) -> list[str]:
        return [event.fields["PVEHOOK_EVENT"] for event in self.journal.events]

    def run(self, *guests: Guest, mode: Mode = "snapshot", pauses: tuple[str, ...] = (), upid_id: str = "") -> Run:
        """A run of vzdump on this node."""
        return Run(
            guests=guests or (Guest(101, name="web"),),
            hook=self.hook,
            root=str(self.root),
            mode=mode,
            compress="zstd",
            ionice=8,
            pauses=pauses,
            upid_id=upid_id,
        )
