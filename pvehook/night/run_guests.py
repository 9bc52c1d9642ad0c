"""Which guests a run has. vzdump does not say: they are its job's, those of the command that started it, or the one
that its task is named after. Of a run for several guests that was started on the web page it is not known."""

from __future__ import annotations

from pvehook.contract.upid import parse_upid
from pvehook.host.backup_jobs import Job, vzdump_options
from pvehook.host.node import Node
from pvehook.host.processes import vzdump_command_of
from pvehook.host.timely_files import TimelyReader
from pvehook.night.promises import guests_taken, read_promises
from pvehook.records.run_state import RunState
from pvehook.settings import Exempt


def guests_of_run(node: Node, reader: TimelyReader, run: RunState) -> list[int]:
    """In vzdump's order; empty: not known. Raises NodeError where the jobs cannot be read in time."""
    if run.job_id is not None:
        promises = read_promises(node, reader, Exempt())
        if found := [vmid for vmid, jobs in promises.of.items() if run.job_id in (each.job for each in jobs)]:
            return found
    upid = parse_upid(run.upid)
    if upid is not None and upid.vmid is not None:
        return [upid.vmid]
    options = vzdump_options(vzdump_command_of(node, run.worker.pid))
    return guests_taken(node, reader, Job("its command", options, None)) if options is not None else []
