"""`pvehook report`: which guest suffered, how much, and why."""

from __future__ import annotations

import argparse
import sys

from pvehook.cli.arguments import Commands, positive, vmid
from pvehook.host.clock import SystemClock, at, local_zone
from pvehook.host.node import Node


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    report = commands.add_parser(
        "report", parents=[common], help="which guest suffered, how much, why, and is it worse than before the upgrade"
    )
    report.add_argument("--since", default="30d", metavar="TIME", help="how far back: 30d, or a day (default 30d)")
    report.add_argument("--vmid", type=vmid, metavar="N", help="one guest's backups, and its last one in detail")
    report.add_argument("--night", metavar="DAY", help="as of that night, such as 2026-11-23")
    report.add_argument("--worst", type=positive, metavar="N", help="only the N guests that suffered most")
    report.add_argument("--html", metavar="FILE", help="write a page with charts, one file")
    report.add_argument("--json", action="store_true")
    report.add_argument("--history", metavar="FILE", help="read this database instead of the node's")
    report.set_defaults(run=_report)


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
