"""`pvehook serve`: puts the daemon together and lets it answer."""

from __future__ import annotations

import os
import signal

from pvehook import __version__
from pvehook.config.in_force import Configuration
from pvehook.daemon.daemon import Daemon
from pvehook.daemon.hook_socket import listen
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.host import systemd
from pvehook.host.clock import Clock, RehearsalClock, SystemClock
from pvehook.host.node import Node
from pvehook.host.timely_files import Readers
from pvehook.night.notifier import Notifier
from pvehook.records.context import Context
from pvehook.records.journal import journal_log

IDLE_EXIT_S = 60.0
"""How long the daemon stays when nothing is left to watch. Starting it again costs the next hook some 100 ms."""


def serve(
    root: str, *, idle_exit_s: float, clock_file: str | None, config_file: str | None, halt_at: str | None = None
) -> int:
    """Answers until nothing is left to watch. Returns the exit code."""
    node = Node(root)
    clock: Clock = RehearsalClock(clock_file) if clock_file else SystemClock()
    readers = Readers()
    freezes = OpenFreezes(lambda step: _halt() if step == halt_at else None)
    configuration = Configuration(node, readers.config, config_file)
    notifier = Notifier(Context(node, clock, readers, journal_log(node.journal_socket)), configuration)
    log = journal_log(node.journal_socket, hear=notifier.hear)
    context = Context(node, clock, readers, log, notifier.tell)
    listener = systemd.listening_socket() or listen(node.hook_socket)
    log.debug("daemon-started", message=f"pvehook {__version__} answers vzdump", version=__version__)
    with listener:
        Daemon(context, configuration, freezes, notifier, idle_exit_s).serve(listener)
    log.debug("daemon-left", message="nothing is left to watch")
    return 0


def _halt() -> None:
    """For the kill matrix of the tests: stand still at one step of a freeze until somebody kills or continues us."""
    os.kill(os.getpid(), signal.SIGSTOP)
