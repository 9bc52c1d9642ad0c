"""`pvehook config check|show`: what is written, and what is in force."""

from __future__ import annotations

import argparse

from pvehook.cli.arguments import Commands, configuration_in_force
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.settings import Config


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
    print("the configuration can be used")
    return 0


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
