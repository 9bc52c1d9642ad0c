"""One place for every path: the whole program can be run against a directory tree. On a node the root is `/`. In tests
and rehearsals it is a directory whose `proc` and `sys` are links to the real ones, or fixture trees of their own."""

from __future__ import annotations

import os

INSTALLED_UNDER = "/usr/local/lib/pvehook"
"""Where install.sh puts the program; the hook finds its root by taking this off its own path."""
HOOK = f"{INSTALLED_UNDER}/hooks/vzdump-hook"
"""What `script:` names in /etc/vzdump.conf."""


class Node:
    """Paths of one node under `root` (`/` on a real one)."""

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.abspath(root)

    def path(self, absolute: str) -> str:
        """Where `absolute`, a path as Proxmox or Linux spells it, lies under this node's root."""
        if self.root == "/":
            return absolute
        return self.root + absolute

    def read(self, absolute: str) -> bytes:
        """A whole file of /proc or /sys; b"" where it cannot be read: what it describes has gone, or is not for us."""
        try:
            with open(self.path(absolute), "rb") as file:
                return file.read()
        except OSError:
            return b""

    @property
    def is_real(self) -> bool:
        """Whether this is the running system itself and not a tree of a test or a rehearsal."""
        return self.root == "/"

    @property
    def borrows_processes(self) -> bool:
        """Whether this is a tree whose `proc` is the running system's: it shows processes that are not its own."""
        return not self.is_real and os.path.islink(self.path("/proc"))

    @property
    def hook_socket(self) -> str:
        return self.path("/run/pvehook/hook.sock")

    @property
    def notify_socket(self) -> str:
        """Behind it systemd starts hooks/notify."""
        return self.path("/run/pvehook/notify.sock")

    @property
    def run_dir(self) -> str:
        """What must survive the daemon, but not a reboot: running runs, recovery notes, exceptions from the window."""
        return self.path("/run/pvehook")

    @property
    def state_dir(self) -> str:
        """What must survive a reboot: the last good configuration, the history, what was told tonight."""
        return self.path("/var/lib/pvehook")

    @property
    def journal_socket(self) -> str:
        return self.path("/run/systemd/journal/socket")
