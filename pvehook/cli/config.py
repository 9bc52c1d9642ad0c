"""`pvehook config check|show`: what is written, and what is in force."""

from __future__ import annotations

import argparse
import os

from pvehook.cli.arguments import Commands, configuration_in_force
from pvehook.errors import NodeError
from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.host.regular_file import read_regular_file
from pvehook.settings import Config

SCRIPT_LIMIT_BYTES = 1 << 20


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    config = commands.add_parser("config", help="check or show the configuration")
    config_commands = config.add_subparsers(required=True, metavar="check|show")
    check = config_commands.add_parser(
        "check", parents=[common], help="exit 0 if it is valid, else report each problem with its line"
    )
    check.set_defaults(run=_config_check)
    show = config_commands.add_parser(
        "show", parents=[common], help="every key, its effective value and where it comes from"
    )
    show.set_defaults(run=_config_show)


def _config_check(arguments: argparse.Namespace) -> int:
    from pvehook.config.in_force import Configuration, read_files
    from pvehook.host.timely_files import TimelyReader

    reader = TimelyReader()
    loaded = read_files(Node(arguments.root), reader, arguments.config)
    for problem in loaded.problems:
        print(problem)
    if loaded.problems:
        print(f"{len(loaded.problems)} problem{'s' if len(loaded.problems) > 1 else ''}")
        if arguments.config is None:
            in_force = Configuration(Node(arguments.root), reader, remembers=False).now()
            spans = ", ".join(span.text for span in in_force.window.spans) or "never"
            zone = getattr(in_force.window.zone, "key", None) or "the node's time zone"
            print(f"in force until that is fixed: {in_force.source}; backups may run {spans} ({zone})")
        return 1
    if arguments.config is None and loaded.config is not None:
        _remember_as_good(Node(arguments.root), loaded.config)
    if loaded.config is not None and _leads_back(Node(arguments.root), loaded.config.chain):
        print(f"chain: {loaded.config.chain} calls pvehook's own hook, which would call it again; name another script")
        return 1
    print("the configuration can be used")
    return 0


def _leads_back(node: Node, chain: str | None) -> bool:
    """Whether the chained script is the hook itself, or names it."""
    if chain is None:
        return False
    script, hook = node.path(chain), f"{INSTALLED_UNDER}/hooks/vzdump-hook"
    try:
        if hook.encode() in read_regular_file(script, SCRIPT_LIMIT_BYTES):
            return True
        return os.path.samefile(script, node.path(hook))
    except OSError:
        return False  # a script that is not there leads nowhere; the run itself reports it


def _remember_as_good(node: Node, config: Config) -> None:
    """The hook falls back to what was checked, even if the daemon never starts. Needs root; a check by another user is
    not stored."""
    from pvehook.rescue.last_good import store_config

    try:
        store_config(node, config)
    except OSError:
        pass


def _config_show(arguments: argparse.Namespace) -> int:
    from pvehook.config import Loaded, describe, merge
    from pvehook.config.in_force import read_files
    from pvehook.host.timely_files import TimelyReader

    try:
        loaded = read_files(Node(arguments.root), TimelyReader(), arguments.config)
    except NodeError:
        loaded = merge(None, None)._replace(config=None)  # configuration_in_force reports the reason
    if loaded.config is None:
        # The configuration in force is shown even while the files are wrong.
        in_force = configuration_in_force(arguments)
        loaded = Loaded(in_force.config, (), dict.fromkeys(loaded.origins, in_force.source))
    for line in describe(loaded):
        print(line)
    return 0
