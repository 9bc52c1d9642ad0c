"""The backup jobs that run on this node, from where Proxmox and people keep them.

    /etc/pve/jobs.cfg       Proxmox's own, since PVE 7.1
    /etc/pve/vzdump.cron    older ones, which still run
    /etc/cron.d, crontabs   lines that an administrator wrote

    30 2 * * 6 root vzdump 102 --quiet 1 --mode snapshot --storage nas --script /root/own.sh
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pvehook.contract.guest_config import boolean, split_list
from pvehook.contract.section_config import parse_sections
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader

READ_DEADLINE_S = 5.0

JOBS = "/etc/pve/jobs.cfg"
_CRON_FILES = ("/etc/pve/vzdump.cron", "/etc/crontab")
_CRON_DIRECTORY = "/etc/cron.d"
_ROOTS_CRONTAB = "/var/spool/cron/crontabs/root"
"""Without the field for the user that the others have."""

_TIME_FIELDS = 5
_FLAGS = frozenset({"all", "quiet", "stdexcludes", "stop", "remove", "protected", "stdout", "pbs-change-detection"})
"""Options of vzdump's command line that may stand without a value."""
_SHELL = frozenset({";", "&", "&&", "|", "||", ">", ">>", "2>", "2>&1", "<"})
_CRON_LINES = 1000

Pools = Mapping[str, Collection[int]]
"""Each pool's guests (contract/pools.py)."""


class Job(NamedTuple):
    id: str
    """Its id, or for a line of cron the file and the line's number."""
    options: Mapping[str, str]
    """As the job sets them; `vmid` is a list with commas."""
    schedule: str | None
    is_cron: bool = False


def jobs_of_node(node: Node, reader: TimelyReader, node_name: str) -> list[Job]:
    """The enabled jobs that run on this node. Raises NodeError when /etc/pve does not answer."""
    return [
        job
        for job in all_jobs(node, reader)
        if boolean(job.options.get("enabled")) is not False and job.options.get("node", node_name) == node_name
    ]


def all_jobs(node: Node, reader: TimelyReader) -> list[Job]:
    """The jobs of the whole cluster, and this node's lines of cron; disabled ones too. install.sh reads them as well.
    Raises NodeError when /etc/pve does not answer."""
    sections = parse_sections(reader.text(node.path(JOBS), READ_DEADLINE_S) or "")
    jobs = [
        Job(section.id, section.properties, section.properties.get("schedule"))
        for section in sections
        if section.type == "vzdump"
    ]
    directory = node.path(_CRON_DIRECTORY)
    names = reader.within(READ_DEADLINE_S, _CRON_DIRECTORY, lambda: sorted(glob.glob("*", root_dir=directory)))
    files = [f"{_CRON_DIRECTORY}/{name}" for name in names if "." not in name]  # cron(8) skips the others
    for path in (*_CRON_FILES, *files):
        jobs += parse_cron(reader.text(node.path(path), READ_DEADLINE_S) or "", path)
    return jobs + parse_cron(
        reader.text(node.path(_ROOTS_CRONTAB), READ_DEADLINE_S) or "", _ROOTS_CRONTAB, has_user=False
    )


def takes(job: Job, vmid: int, pools: Pools) -> bool:
    """Whether the job takes this guest. Of a pool it takes all, whatever `exclude` says; `exclude` alone is all others
    (`get_included_guests` in PVE/VZDump.pm)."""
    options = job.options
    if "pool" in options or "vmid" in options:
        return vmid in named_guests(job, pools)
    takes_all = boolean(options.get("all")) or "exclude" in options
    return bool(takes_all) and str(vmid) not in split_list(options.get("exclude", ""))


def named_guests(job: Job, pools: Pools) -> Collection[int]:
    """Those that the job names, by itself or by a pool, whichever node they are on."""
    if "pool" in job.options:
        return pools.get(job.options["pool"], ())
    return {int(each) for each in split_list(job.options.get("vmid", "")) if re.fullmatch("[0-9]{1,9}", each)}


def parse_cron(text: str, path: str, has_user: bool = True) -> list[Job]:
    """The lines that call vzdump. What else a line does, in a pipe or after a semicolon, is not read."""
    found = []
    for number, line in enumerate(text.splitlines()[:_CRON_LINES], 1):
        times = 1 if line.lstrip().startswith("@") else _TIME_FIELDS  # `@daily`
        fields = line.split(None, times + has_user)
        if len(fields) <= times + has_user or fields[0].startswith("#"):
            continue  # of another kind
        options = _vzdump_options(fields[-1].rstrip())
        if options is not None:
            found.append(Job(f"{path}:{number}", options, " ".join(fields[:times]), is_cron=True))
    return found


def _vzdump_options(command: str) -> dict[str, str] | None:
    """The options of a command that calls vzdump, by its own rules (PVE/CLIHandler.pm); None if it calls none."""
    try:
        return vzdump_options(shlex.split(command, comments=False))
    except ValueError:  # a quote without its end
        return None


def vzdump_options(words: Sequence[str]) -> dict[str, str] | None:
    """As the job's `options`, of a command's words; None where it does not call vzdump."""
    start = next((index for index, word in enumerate(words) if os.path.basename(word) == "vzdump"), None)
    if start is None:
        return None
    options: dict[str, str] = {}
    vmids = []
    rest = list(words[start + 1 :])
    while rest:
        word = rest.pop(0)
        if word in _SHELL or word.startswith(">"):
            break
        if not word.startswith("-"):
            vmids += word.replace(",", " ").split()
            continue
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            has_value = bool(rest) and (boolean(rest[0]) is not None if key in _FLAGS else not rest[0].startswith("--"))
            value = rest.pop(0) if has_value else "1"
        options[key] = value.rstrip(";")
    if vmids:
        options["vmid"] = ",".join(vmids)
    return options
