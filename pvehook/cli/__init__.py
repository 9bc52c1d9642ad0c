"""The `pvehook` command: one file per subcommand, which says its words and does its work.

A subcommand's own modules are imported when it runs: scripts call `pvehook window`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pvehook import __version__
from pvehook.cli import allow, config, doctor, governor, guest, guests, night, rehearse, report, serve, thaw, window
from pvehook.cli.arguments import UsageError
from pvehook.errors import ConfigError, NodeError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `pvehook ... | head` is no error; keep Python from complaining when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ConfigError, NodeError, UsageError, OSError) as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return 2  # in all commands this, and nothing else, means an error


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    words = argparse.ArgumentParser(prog="pvehook", description="Keeps Proxmox VE backups from freezing their guests.")
    words.add_argument("--version", action="version", version=f"pvehook {__version__}")
    commands = words.add_subparsers(required=True, metavar="COMMAND")
    for command in (serve, window, allow, config, guest, guests, night, report, doctor, governor, thaw, rehearse):
        command.add(commands)
    return words
