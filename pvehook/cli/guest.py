"""`pvehook guest VMID freeze-check`: would this VM be frozen, and why."""

from __future__ import annotations

import json
import os
import sys

from pvehook.cli.arguments import Arguments, Commands, UsageError, add_command, configuration_in_force, vmid
from pvehook.host.clock import SystemClock


def add(commands: Commands) -> None:
    guest = commands.add_parser("guest", help="examine one running guest")
    guest.add_argument("vmid", type=vmid, metavar="VMID")
    purpose = "facts, verdict and reasons, without a freeze; exit 0 if it would be frozen"
    checks = guest.add_subparsers(required=True, metavar="freeze-check")
    freeze_check = add_command(checks, "freeze-check", _freeze_check, purpose)
    freeze_check.add_argument("--json", action="store_true")
    freeze_check.add_argument(
        "--forget", action="store_true", help="first forget slow and hung freezes, once their cause is fixed"
    )


def _freeze_check(arguments: Arguments) -> int:
    from pvehook.freeze.facts import CONFIG_S, gather, qmp_path
    from pvehook.freeze.history import forget_freezes
    from pvehook.host.timely_files import TimelyReader
    from pvehook.report.freeze_check import freeze_check_json, freeze_check_lines
    from pvehook.rules.freeze_policy import policy_for
    from pvehook.rules.freeze_safety import decide

    node, in_force = arguments.node, configuration_in_force(arguments)
    if arguments.forget:
        forgotten = forget_freezes(node, arguments.vmid)
        print("history: forgotten" if forgotten else "history: there was none", file=sys.stderr)
    freeze = in_force.config.freeze
    reader = TimelyReader()
    runs = os.path.exists(qmp_path(node, arguments.vmid))
    if not runs and reader.text(node.path(f"/etc/pve/qemu-server/{arguments.vmid}.conf"), CONFIG_S) is None:
        raise UsageError(f"there is no VM {arguments.vmid} on this node (containers are never frozen)")
    # As its backup would find it: in mode snapshot or, if it does not run, in the mode that vzdump uses then.
    mode = "snapshot" if runs else "stop"
    facts, vm = gather(node, reader, arguments.vmid, "qemu", mode, freeze.facts_within_s, SystemClock().now_s())
    verdict = decide(facts, policy_for(freeze, arguments.vmid, vm.name, vm.tags))
    if arguments.json:
        print(json.dumps(freeze_check_json(arguments.vmid, vm.name, facts, verdict)))
    else:
        print("\n".join(freeze_check_lines(arguments.vmid, vm.name, facts, verdict)))
    return 0 if verdict.action == "freeze" else 1
