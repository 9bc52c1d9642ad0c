"""`pvehook allow`: lets backups run outside of the window for a while."""

from __future__ import annotations

import os
import pwd
import secrets
from datetime import datetime

from pvehook.cli.arguments import Arguments, Commands, UsageError, add_command, add_vmids, duration_s, stamp
from pvehook.contract.text import printable
from pvehook.host.clock import SystemClock, at, local_zone
from pvehook.host.node import Node
from pvehook.rescue import allowances
from pvehook.rules.admission import Allowance


def add(commands: Commands) -> None:
    allow = add_command(commands, "allow", _allow, "let backups run outside of the window for a while")
    add_vmids(allow)
    allow.add_argument("--for", dest="for_s", type=duration_s, metavar="TIME", help="for how long, such as 2h or 90m")
    allow.add_argument("--reason", metavar="TEXT", help="why; it is written to the journal")
    allow.add_argument("--list", action="store_true", help="show the exceptions in force")
    allow.add_argument("--revoke", metavar="ID", help="end an exception early (`all` ends every one)")


def _allow(arguments: Arguments) -> int:
    from pvehook.records.journal import journal_log

    node: Node = arguments.node
    now = at(SystemClock(), local_zone(node))
    allowances.drop_expired(node, now.timestamp())
    if arguments.list:
        found = [allowance_text(each, now) for each in allowances.in_force(node, now.timestamp())]
        print("\n".join(found) or "no exceptions; the window alone decides")
        return 0
    if arguments.revoke:
        return _revoke(node, arguments.revoke, now)
    if arguments.for_s is None or not (arguments.reason or "").strip():
        example = 'pvehook allow --vmid 101 --for 2h --reason "restore test"'
        raise UsageError(f"an exception needs --for TIME and --reason TEXT, such as: {example}")
    if arguments.for_s > allowances.LONGEST_S:
        too_long = f"--for {arguments.for_s / 3600:.0f}h is longer than {allowances.LONGEST_S / 3600:.0f}h"
        raise UsageError(f"{too_long}; what is meant to last belongs into window: in /etc/pvehook.yaml")
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
    text = allowance_text(allowance, now)
    journal_log(node.journal_socket).warning(
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


def allowance_text(each: Allowance, now: datetime) -> str:
    guests = "guests " + ", ".join(map(str, each.vmids)) if each.vmids else "every guest"
    until = datetime.fromtimestamp(each.until, now.tzinfo)
    return f"{each.id}: {guests} until {stamp(until)}, by {printable(each.who)}: {printable(each.reason)}"


def _who() -> str:
    """Who runs the command: behind sudo the person, else the user."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
