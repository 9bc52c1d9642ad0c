"""`pvehook serve`: the daemon; systemd starts it."""

from __future__ import annotations

from pvehook.cli.arguments import Arguments, Commands, add_command, duration_s


def add(commands: Commands) -> None:
    serve = add_command(commands, "serve", _serve, "answer vzdump's hook (systemd starts this)")
    serve.add_argument(
        "--idle-exit", type=duration_s, metavar="TIME", help="exit after this long without a run (default 60s)"
    )
    serve.add_argument("--clock", metavar="FILE", help="rehearsals only: add the seconds in FILE to the clock")
    serve.add_argument("--halt-at", metavar="STEP", help="rehearsals only: stop at this step of a freeze")


def _serve(arguments: Arguments) -> int:
    from pvehook.daemon.serve import IDLE_EXIT_S, serve

    return serve(
        arguments.node.root,
        idle_exit_s=arguments.idle_exit or IDLE_EXIT_S,
        clock_file=arguments.clock,
        config_file=arguments.config,
        halt_at=arguments.halt_at,
    )
