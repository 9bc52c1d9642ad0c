"""`pvehook config check|show`: what is written, and what is in force."""

from __future__ import annotations

import os
from collections import defaultdict

from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force
from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.host.regular_file import read_regular_file

SCRIPT_LIMIT_BYTES = 1 << 20


def add(commands: Commands) -> None:
    config = commands.add_parser("config", help="check or show the configuration")
    ways = config.add_subparsers(required=True, metavar="check|show")
    add_command(ways, "check", _config_check, "exit 0 if it is valid, else report each problem with its line")
    add_command(ways, "show", _config_show, "every key, its effective value and where it comes from")


def _config_check(arguments: Arguments) -> int:
    from pvehook.config.in_force import Configuration, read_files
    from pvehook.host.timely_files import TimelyReader

    node, reader = arguments.node, TimelyReader()
    loaded = read_files(node, reader, arguments.config)
    # Also writes a good one down, by which the hook acts even if the daemon never starts. That needs root.
    in_force = Configuration(node, reader, arguments.config).now()
    for problem in loaded.problems:
        print(problem)
    if loaded.problems:
        print(f"{len(loaded.problems)} problem{'s' if len(loaded.problems) > 1 else ''}")
        if arguments.config is None:
            spans = ", ".join(span.text for span in in_force.window.spans) or "never"
            zone = getattr(in_force.window.zone, "key", None) or "the node's time zone"
            print(f"in force until that is fixed: {in_force.source}; backups may run {spans} ({zone})")
        return 1
    chain = in_force.config.chain
    if chain is not None and _leads_back(node, chain):
        print(f"chain: {chain} calls pvehook's own hook, which would call it again; name another script")
        return 1
    print("the configuration can be used")
    return 0


def _leads_back(node: Node, chain: str) -> bool:
    """Whether the chained script is the hook itself, or names it."""
    script, hook = node.path(chain), f"{INSTALLED_UNDER}/hooks/vzdump-hook"
    try:
        names_it = hook.encode() in read_regular_file(script, SCRIPT_LIMIT_BYTES)
        return names_it or os.path.samefile(script, node.path(hook))
    except OSError:
        return False  # a script that is not there leads nowhere; the run itself reports it


def _config_show(arguments: Arguments) -> int:
    from pvehook.config import Loaded, describe
    from pvehook.config.in_force import read_files
    from pvehook.host.timely_files import TimelyReader

    in_force = configuration_in_force(arguments)  # also while the files are wrong, and says so
    origins: dict[str, str] = defaultdict(lambda: in_force.source)
    if in_force.source == "files":
        origins = read_files(arguments.node, TimelyReader(), arguments.config).origins
    print("\n".join(describe(Loaded(in_force.config, (), origins))))
    return 0
