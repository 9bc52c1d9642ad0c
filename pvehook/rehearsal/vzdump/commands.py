"""How PVE runs a command and reads its output (PVE::Tools::run_command, PVE::VZDump::run_command).

stdout and stderr are read line by line until both are at their end, and only then PVE waits for the command's exit: a
child that keeps one of them open holds everything up.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO

LEAKED_DESCRIPTOR = 5
"""PVE's worker leaves it open for its children; what it is does not matter to a hook."""

_LINE_END = re.compile(rb"\n|\x08+|\r\n?")  # \x08 is BS


class CommandError(Exception):
    """The text is PVE's: `command 'COMMAND' failed: exit code N`."""


class InterruptError(Exception):
    """SIGTERM or the like arrived while PVE was polling."""


class Signals:
    """Signals that end a task, seen only where the worker waits: never in the middle of a step of its own."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._read

    def check(self) -> None:
        """Raises InterruptError when a signal has come; it is then spent."""
        try:
            came = os.read(self._read, 64)
        except BlockingIOError:
            return
        if came:
            raise InterruptError("interrupted by signal")


def run_command(
    argv: Sequence[str],
    to_line: Callable[[bytes], object],
    signals: Signals,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run `argv`, give each line of its output to `to_line`, return its exit code (negative: a signal's number).

    Has no deadline, as PVE has none. Raises CommandError when it cannot be started, or on a signal to
    ourselves: the command is then left running.
    """
    try:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            umask=0o022,
            pass_fds=(LEAKED_DESCRIPTOR,),
        )
    except OSError as error:
        raise _failed(argv, f"unable to run it - {error.strerror}") from error
    assert process.stdout is not None  # noqa: S101 - both are pipes, as requested above
    assert process.stderr is not None  # noqa: S101
    try:
        _listen((process.stdout, process.stderr), to_line, signals)
    except InterruptError as interrupted:
        raise _failed(argv, str(interrupted)) from interrupted
    finally:
        process.stdout.close()
        process.stderr.close()
    return process.wait()


def check(argv: Sequence[str], code: int) -> None:
    """Raises CommandError with PVE's text, unless `code` is 0."""
    if code != 0:
        raise _failed(argv, f"got signal {-code}" if code < 0 else f"exit code {code}")


def _failed(argv: Sequence[str], why: str) -> CommandError:
    return CommandError(f"command '{' '.join(argv)}' failed: {why}")


def _split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines, and the rest that waits for its end. CR and BS end a line like LF does."""
    lines, end = [], 0
    for found in _LINE_END.finditer(data):
        lines.append(data[end : found.start()])
        end = found.end()
    return lines, data[end:]


def _listen(pipes: Sequence[IO[bytes]], to_line: Callable[[bytes], object], signals: Signals) -> None:
    begun: dict[IO[bytes], list[bytes]] = {pipe: [] for pipe in pipes}
    """The pieces of each stream's last line, joined once: a line of 2 MB comes in hundreds."""
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ, pipe)
        selector.register(signals, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            ready = [key.data for key, _ in selector.select()]
            # First: a Stop in the GUI reaches the command too, and its death must not hide the signal to us.
            signals.check()
            for pipe in ready:
                if pipe is None:
                    continue
                data = os.read(pipe.fileno(), 65536)
                lines, rest = _split_lines(data)
                for line in lines:
                    to_line(b"".join([*begun[pipe], line]))
                    begun[pipe].clear()
                if rest:
                    begun[pipe].append(rest)
                if not data:
                    selector.unregister(pipe)
                    if begun[pipe]:
                        to_line(b"".join(begun[pipe]))
    signals.check()
