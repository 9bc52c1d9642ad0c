"""`pvehook config check|show`: what is written, and what is in force."""

from __future__ import annotations

from collections import defaultdict

from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force


def add(commands: Commands) -> None:
    config = commands.add_parser("config", help="check or show the configuration")
    ways = config.add_subparsers(required=True, metavar="check|show")
    add_command(ways, "check", _config_check, "exit 0 if it is valid, else report each problem with its line")
    add_command(ways, "show", _config_show, "every key, its effective value and where it comes from")


def _config_check(arguments: Arguments) -> int:
    from pvehook.config.in_force import Configuration, read_files
    from pvehook.host.hook_script import look_at_script
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
    if chain is not None and ((script := look_at_script(node, chain)).is_ours or script.calls_ours):
        print(f"chain: {chain} calls pvehook's own hook, which would call it again; name another script")
        return 1
    print("the configuration can be used")
    return 0


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
