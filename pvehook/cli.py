"""The `pvehook` command.

Each subcommand's work is a function of its own module; here are only the words, the exit codes and what a person
reads. Modules are imported when their subcommand runs: `pvehook window` is asked by scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pvehook import __version__
from pvehook.contract.text import printable
from pvehook.errors import ConfigError, NodeError
from pvehook.host.clock import SystemClock, at, local_zone
from pvehook.host.node import Node

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from pvehook.config.in_force import InForce
    from pvehook.rescue.speed_record import Restored
    from pvehook.rescue.thaw import Report
    from pvehook.rules.admission import Allowance
    from pvehook.settings import Config

EXIT_OPEN, EXIT_CLOSED, EXIT_ERROR = 0, 1, 2

YEARS = (1970, 9000)
"""Of a time that can be asked for; far enough from the ends of Python's calendar to look ahead in any zone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (ConfigError, NodeError, UsageError) as error:
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # `pvehook ... | head` is no error; keep Python from complaining when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # say, a file that only root may read: no code but 2 may mean an error
        print(f"pvehook: {error}", file=sys.stderr)
        return EXIT_ERROR


class UsageError(Exception):
    """A command line that is well formed but cannot be done; the text says why."""


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", metavar="FILE", help="use this file instead of /etc/pve/pvehook.yaml and /etc/pvehook.yaml"
    )
    common.add_argument("--root", default="/", help="directory tree to use as the node (default: /)")
    parser = argparse.ArgumentParser(prog="pvehook", description="Keeps Proxmox VE backups from freezing their guests.")
    parser.add_argument("--version", action="version", version=f"pvehook {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", parents=[common], help="answer vzdump's hook (systemd starts this)")
    serve.add_argument(
        "--idle-exit", type=duration_s, metavar="TIME", help="leave after this long without a job (default 60s)"
    )
    serve.add_argument("--clock", metavar="FILE", help="rehearsals only: add the seconds in FILE to the clock")
    serve.add_argument("--halt-at", metavar="STEP", help="rehearsals only: stop at this step of a freeze")
    serve.set_defaults(run=_serve)

    window = commands.add_parser(
        "window", parents=[common], help="say whether backups may run: exit 0 open, 1 closed, 2 error"
    )
    window.add_argument("--at", metavar="ISO-TIME", help="ask for another time, such as 2026-03-29T02:30")
    window.add_argument("--json", action="store_true")
    window.set_defaults(run=_window)

    allow = commands.add_parser("allow", parents=[common], help="let backups run outside of the window for a while")
    allow.add_argument(
        "--vmid", type=vmid, action="append", default=[], metavar="N", help="only this guest (can be repeated)"
    )
    allow.add_argument("--for", dest="for_s", type=duration_s, metavar="TIME", help="for how long, such as 2h or 90m")
    allow.add_argument("--reason", metavar="TEXT", help="why; it is written to the journal")
    allow.add_argument("--list", action="store_true", help="show the exceptions in force")
    allow.add_argument("--revoke", metavar="ID", help="end an exception early (`all` ends every one)")
    allow.set_defaults(run=_allow)

    config = commands.add_parser("config", help="check or show the configuration")
    config_commands = config.add_subparsers(required=True, metavar="check|show")
    check = config_commands.add_parser(
        "check", parents=[common], help="exit 0 when it can be used, else say what is wrong where"
    )
    check.set_defaults(run=_config_check)
    show = config_commands.add_parser(
        "show", parents=[common], help="every key, its effective value and where it comes from"
    )
    show.set_defaults(run=_config_show)

    guest = commands.add_parser("guest", help="look at one running guest")
    guest.add_argument("vmid", type=vmid, metavar="VMID")
    guest_commands = guest.add_subparsers(required=True, metavar="freeze-check")
    freeze_check = guest_commands.add_parser(
        "freeze-check",
        parents=[common],
        help="facts, verdict and reasons, without freezing; exit 0 when it would be frozen",
    )
    freeze_check.add_argument("--json", action="store_true")
    freeze_check.add_argument(
        "--forget", action="store_true", help="first drop the history of slow and hung freezes: its cause was mended"
    )
    freeze_check.set_defaults(run=_freeze_check)

    _add_looking_back(commands, common)

    thaw = commands.add_parser(
        "thaw", parents=[common], help="thaw guests that pvehook froze; exit 0 when they are thawed"
    )
    thaw.add_argument("vmid", type=vmid, nargs="?", metavar="VMID")
    thaw.add_argument(
        "--left-over",
        action="store_true",
        help="every guest that a record calls frozen by pvehook, and every backup that one calls slowed",
    )
    thaw.add_argument("--force", action="store_true", help="thaw VMID whoever froze it")
    thaw.set_defaults(run=_thaw)

    rehearse = commands.add_parser(
        "rehearse", parents=[common], help="say what tonight's backups would do, without starting one"
    )
    rehearse.add_argument("--at", metavar="ISO-TIME", help="as if the backups began then")
    rehearse.add_argument(
        "--vmid", type=vmid, action="append", default=[], metavar="N", help="only this guest (can be repeated)"
    )
    rehearse.add_argument("--json", action="store_true")
    rehearse.add_argument(
        "--simulated", action="store_true", help="play a night with invented guests; runs on any Linux"
    )
    rehearse.set_defaults(run=_rehearse)
    return parser


def _add_looking_back(commands: Commands, common: argparse.ArgumentParser) -> None:
    """`report` and `governor status`."""
    report = commands.add_parser(
        "report", parents=[common], help="which guest suffered, how much, why, and is it worse than before the upgrade"
    )
    report.add_argument("--since", default="30d", metavar="TIME", help="how far back: 30d, or a day (default 30d)")
    report.add_argument("--vmid", type=vmid, metavar="N", help="one guest's nights, and its last one in detail")
    report.add_argument("--night", metavar="DAY", help="as of that night, such as 2026-11-23")
    report.add_argument("--worst", type=positive, metavar="N", help="only the N guests that suffered most")
    report.add_argument("--html", metavar="FILE", help="write a page with charts, one file")
    report.add_argument("--json", action="store_true")
    report.add_argument("--history", metavar="FILE", help="read this database instead of the node's")
    report.set_defaults(run=_report)

    governor = commands.add_parser("governor", help="the governor of the backups that run now")
    governor_commands = governor.add_subparsers(required=True, metavar="status")
    status = governor_commands.add_parser(
        "status", parents=[common], help="how fast each backup may run, and whether the governor holds it"
    )
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_governor_status)


# Values


def positive(text: str) -> int:
    """A number of things. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of guests; expected one from 1 on")
    return int(text)


def duration_s(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d` in seconds. Raises argparse.ArgumentTypeError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    is_number = number.isascii() and number.isdigit() and len(number) <= 9
    if unit not in units or not is_number or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected a number with a unit such as 90s, 30m, 2h")
    return float(int(number) * units[unit])


def vmid(text: str) -> int:
    """A guest's number. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 100 <= int(text) <= 999_999_999):
        raise argparse.ArgumentTypeError(f"{text!r} is no guest; expected a number from 100 to 999999999")
    return int(text)


def _instant(text: str | None, in_force: InForce) -> datetime:
    """The time asked for, in the window's zone; a text without an offset means that zone's wall clock."""
    zone = in_force.window.zone
    if text is None:
        return at(SystemClock(), zone)
    try:
        asked = datetime.fromisoformat(text)
        if not YEARS[0] <= asked.year <= YEARS[1]:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{text!r} is no time; expected something like 2026-03-29T02:30 or 2026-03-29T02:30+01:00"
        ) from None
    if asked.tzinfo is not None:
        return asked.astimezone(zone)
    real = asked.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    if real.replace(tzinfo=None) != asked:
        print(
            f"pvehook: {text} does not exist on that day, the clocks are set forward; meant is {_stamp(real)}",
            file=sys.stderr,
        )
    return real


def _in_force(arguments: argparse.Namespace) -> InForce:
    """The configuration by which the node acts now. What is wrong with the files is said on stderr."""
    from pvehook.config.in_force import Configuration
    from pvehook.host.timely_files import TimelyReader

    in_force = Configuration(Node(arguments.root), TimelyReader(), arguments.config, remembers=False).now()
    if in_force.problems and arguments.config is not None:
        raise ConfigError("\n".join(in_force.problems))
    for problem in in_force.problems:
        print(f"pvehook: {problem}; in force: {in_force.source}", file=sys.stderr)
    return in_force


# Commands


def _serve(arguments: argparse.Namespace) -> int:
    from pvehook.daemon.serve import IDLE_EXIT_S, serve

    return serve(
        arguments.root,
        idle_exit_s=arguments.idle_exit or IDLE_EXIT_S,
        clock_file=arguments.clock,
        config_file=arguments.config,
        halt_at=arguments.halt_at,
    )


def _window(arguments: argparse.Namespace) -> int:
    from pvehook.rules.window import window_state

    in_force = _in_force(arguments)
    now = _instant(arguments.at, in_force)
    state = window_state(in_force.window, now)
    if arguments.json:
        body = {
            "open": state.open,
            "reason": state.reason,
            "closes_at": state.closes_at.isoformat() if state.closes_at else None,
            "opens_at": state.opens_at.isoformat() if state.opens_at else None,
        }
        print(json.dumps(body))
    elif state.open:
        until = f"closes {_stamp(state.closes_at)}" if state.closes_at else "does not close"
        print(f"open at {_stamp(now)}: {state.reason}; {until}")
    else:
        until = f"opens {_stamp(state.opens_at)}" if state.opens_at else "never opens, as configured"
        print(f"closed at {_stamp(now)}: {state.reason}; {until}")
    if arguments.at is None:
        from pvehook.rescue import allowances

        for each in allowances.in_force(Node(arguments.root), now.timestamp()):
            print(f"exception {_allowance_text(each, now)}", file=sys.stderr if arguments.json else sys.stdout)
    return EXIT_OPEN if state.open else EXIT_CLOSED


def _allow(arguments: argparse.Namespace) -> int:
    from pvehook.records.journal import journal_log
    from pvehook.rescue import allowances
    from pvehook.rules.admission import Allowance

    node = Node(arguments.root)
    log = journal_log(node.journal_socket)
    now = at(SystemClock(), local_zone(node))
    allowances.drop_expired(node, now.timestamp())
    if arguments.list:
        found = allowances.in_force(node, now.timestamp())
        for each in found:
            print(_allowance_text(each, now))
        if not found:
            print("no exceptions; the window alone decides")
        return 0
    if arguments.revoke:
        return _revoke(node, arguments.revoke, now)
    if arguments.for_s is None or not (arguments.reason or "").strip():
        raise UsageError(
            "an exception needs --for TIME and --reason TEXT, such as: "
            'pvehook allow --vmid 101 --for 2h --reason "restore test"'
        )
    if arguments.for_s > allowances.LONGEST_S:
        raise UsageError(
            f"--for {arguments.for_s / 3600:.0f}h is longer than {allowances.LONGEST_S / 3600:.0f}h; "
            "what is meant to last belongs into window: in /etc/pvehook.yaml"
        )
    allowance = Allowance(
        id=secrets.token_hex(3),
        vmids=tuple(sorted(set(arguments.vmid))),
        until=now.timestamp() + arguments.for_s,
        reason=arguments.reason.strip(),
        who=_who(),
    )
    try:
        allowances.grant(node, allowance)
    except OSError as error:
        raise UsageError(f"the exception could not be written ({error}); this needs root") from None
    text = _allowance_text(allowance, now)
    log.warning(
        "allowance-made",
        message=f"exception {text}",
        allowance=allowance.id,
        vmid=allowance.vmids[0] if len(allowance.vmids) == 1 else None,
        vmids=",".join(map(str, allowance.vmids)) or "all",
        until=datetime.fromtimestamp(allowance.until, now.tzinfo).isoformat(timespec="seconds"),
        reason=allowance.reason,
        who=allowance.who,
    )
    print(f"exception {text}\nend it early with: pvehook allow --revoke {allowance.id}")
    return 0


def _revoke(node: Node, identifier: str, now: datetime) -> int:
    from pvehook.records.journal import journal_log
    from pvehook.rescue import allowances

    found = allowances.in_force(node, now.timestamp())
    chosen = [each for each in found if identifier in ("all", each.id)]
    if not chosen and identifier != "all":
        raise UsageError(f"no exception {identifier!r}; in force: {', '.join(each.id for each in found) or 'none'}")
    for each in chosen:
        if allowances.revoke(node, each.id):
            journal_log(node.journal_socket).warning(
                "allowance-revoked",
                message=f"exception {each.id} ended early by {_who()}",
                allowance=each.id,
                who=_who(),
            )
            print(f"exception {each.id} has ended")
    return 0


def _config_check(arguments: argparse.Namespace) -> int:
    from pvehook.config.in_force import read_files
    from pvehook.host.timely_files import TimelyReader

    loaded = read_files(Node(arguments.root), TimelyReader(), arguments.config)
    for problem in loaded.problems:
        print(problem)
    if loaded.problems:
        print(f"{len(loaded.problems)} problem(s); until they are mended, what was in force before stays so")
        return 1
    if arguments.config is None and loaded.config is not None:
        _remember_as_good(Node(arguments.root), loaded.config)
    print("the configuration can be used")
    return 0


def _remember_as_good(node: Node, config: Config) -> None:
    """What was checked is what the hook falls back to, also if the daemon should never come up. Needs root; a check
    by somebody else is a check all the same."""
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
        loaded = merge(None, None)._replace(config=None)  # the reason is said below
    if loaded.config is None:
        # What acts now is what is asked for, also while the files are wrong.
        in_force = _in_force(arguments)
        loaded = Loaded(in_force.config, (), dict.fromkeys(loaded.origins, in_force.source))
    for line in describe(loaded):
        print(line)
    return 0


def _freeze_check(arguments: argparse.Namespace) -> int:
    from pvehook.freeze.facts import CONFIG_S, gather, qmp_path
    from pvehook.freeze.history import forget_freezes
    from pvehook.host.timely_files import TimelyReader
    from pvehook.report.freeze_check import freeze_check_json, freeze_check_lines
    from pvehook.rules.freeze_policy import policy_for
    from pvehook.rules.freeze_safety import decide

    node = Node(arguments.root)
    in_force = _in_force(arguments)
    if arguments.forget:
        forgotten = forget_freezes(node, arguments.vmid)
        print("history: forgotten" if forgotten else "history: there was none", file=sys.stderr)
    freeze = in_force.config.freeze
    reader = TimelyReader()
    runs = os.path.exists(qmp_path(node, arguments.vmid))
    if not runs and reader.text(node.path(f"/etc/pve/qemu-server/{arguments.vmid}.conf"), CONFIG_S) is None:
        raise UsageError(f"there is no VM {arguments.vmid} on this node (containers are never frozen)")
    # As its backup would find it: in mode snapshot, or, if it does not run, in the mode that vzdump takes then.
    mode = "snapshot" if runs else "stop"
    known = gather(node, reader, arguments.vmid, "qemu", mode, freeze.facts_within_s, SystemClock().now_s())
    verdict = decide(known.facts, policy_for(freeze, arguments.vmid, known.name, known.tags))
    if arguments.json:
        print(json.dumps(freeze_check_json(arguments.vmid, known.name, known.facts, verdict)))
    else:
        print("\n".join(freeze_check_lines(arguments.vmid, known.name, known.facts, verdict)))
    return 0 if verdict.action == "freeze" else 1


def _thaw(arguments: argparse.Namespace) -> int:
    from pvehook.rescue.left_over import undo_left_over
    from pvehook.rescue.thaw import thaw_guest

    node = Node(arguments.root)
    if (arguments.vmid is None) is not arguments.left_over:
        raise UsageError("name one guest, or --left-over for every guest that pvehook left frozen")
    guest = arguments.vmid
    reports: Sequence[Report | Restored] = (
        undo_left_over(node) if guest is None else [thaw_guest(node, guest, force=arguments.force)]
    )
    if guest is None and not reports and sys.stdout.isatty():  # systemd asks at every stop; that is no news
        print("no guest is recorded as frozen by pvehook, no backup as slowed")
    for report in reports:
        print(report.text, file=sys.stdout if report.done else sys.stderr)
    return 0 if all(report.done for report in reports) else 1


def _report(arguments: argparse.Namespace) -> int:
    from pvehook.report.report import run_report
    from pvehook.watch.run_records import history_file

    node = Node(arguments.root)
    return run_report(
        arguments.history or history_file(node),
        sys.stdout,
        at(SystemClock(), local_zone(node)),
        since=arguments.since,
        vmid=arguments.vmid,
        backup=arguments.night,
        worst=arguments.worst,
        html=arguments.html,
        as_json=arguments.json,
    )


def _governor_status(arguments: argparse.Namespace) -> int:
    from pvehook.throttle.governor_status import running_backups

    in_force = _in_force(arguments)
    backups = running_backups(Node(arguments.root), in_force.config.governor)
    if arguments.json:
        print(json.dumps([backup._asdict() for backup in backups]))
        return 0
    print(f"governor: {in_force.config.governor.mode}")
    for backup in backups:
        print(backup.text)
    if not backups:
        print("no backup runs that pvehook knows of")
    return 0


def _rehearse(arguments: argparse.Namespace) -> int:
    if arguments.simulated:
        from pvehook.rehearsal.demo import simulated_night

        return simulated_night(sys.stdout)
    from pvehook.preview import rehearse_tonight

    in_force = _in_force(arguments)
    when = _instant(arguments.at, in_force) if arguments.at else None
    return rehearse_tonight(
        Node(arguments.root), in_force, when, tuple(arguments.vmid), as_json=arguments.json, out=sys.stdout
    )


# Words


def _allowance_text(each: Allowance, now: datetime) -> str:
    guests = "guests " + ", ".join(map(str, each.vmids)) if each.vmids else "every guest"
    until = datetime.fromtimestamp(each.until, now.tzinfo)
    return f"{each.id}: {guests} until {_stamp(until)}, by {printable(each.who)}: {printable(each.reason)}"


def _stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} {when.tzname()}"


def _who() -> str:
    """Who asked: behind sudo the person, else the user."""
    import pwd

    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


if __name__ == "__main__":
    sys.exit(main())
