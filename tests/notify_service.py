"""What systemd does with pvehook-notify.socket and pvehook-notify@.service: hooks/notify for each connection, with the
connection as its input and output. Proxmox's modules are those of tests/data/perl, which write down what they get."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from pvehook.rehearsal.vzdump.player import WAIT_S

REPO = Path(__file__).parent.parent
HELPER = REPO / "hooks" / "notify"
STUBS = REPO / "tests" / "data" / "perl"


def helper_command(*options: str, with_proxmox: bool = True) -> list[str]:
    """perl ignores PERL5LIB under -T."""
    return ["/usr/bin/perl", "-T", *(("-I", str(STUBS)) if with_proxmox else ()), *options, str(HELPER)]


class NotifyService:
    """Serves until the `with` block is left."""

    def __init__(self, path: str, given: Path, does: str = "", *, with_proxmox: bool = True) -> None:
        """`does`: `die`, `raise` or `hang`, instead of taking the notice."""
        self.given_file = given
        self.does = does
        self._command = helper_command(with_proxmox=with_proxmox)
        self._listener = socket.socket(socket.AF_UNIX)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._listener.bind(path)
        self._listener.listen()
        self._came = threading.Condition()
        self.calls = 0
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._running:
            each.kill()
            each.wait()

    def given(self) -> list[list[Any]]:
        """What PVE::Notify::notify was called with, call by call."""
        lines = self.given_file.read_text().splitlines() if self.given_file.exists() else []
        return [json.loads(line) for line in lines]

    def events(self) -> list[str]:
        return [fields["pvehook-event"] for _, _, _, fields in self.given()]

    def wait_for_calls(self, number: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: self.calls >= number, WAIT_S), self.calls

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, self._came:
                self.calls += 1
                environment = {"PVEHOOK_TEST_GIVEN": str(self.given_file), "PVEHOOK_TEST_DOES": self.does}
                fd = connection.fileno()
                helper = subprocess.Popen(
                    self._command, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL, env=environment
                )
                self._running.append(helper)
                self._came.notify_all()
