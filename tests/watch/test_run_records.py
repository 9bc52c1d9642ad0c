"""What is kept at a run's end of guests that were watched beside the backups of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.deadline import Deadline
from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.records.beside_record import BesideRecord
from pvehook.records.context import Context
from pvehook.records.history import history_file
from pvehook.records.journal import journal_log
from pvehook.records.run_state import RunState
from pvehook.rehearsal.journal_receiver import JournalReceiver
from pvehook.settings import MetricsConfig
from pvehook.watch.run_records import RunRecords
from tests.records.backups import beside, record

CONFIG = MetricsConfig(textfile="/srv/pvehook.prom")


class Kept:
    """A node, and what runs leave on it."""

    def __init__(self, root: Path) -> None:
        self.node = Node(str(root))
        for name in ("qemu-server", "lxc"):
            (root / "etc/pve" / name).mkdir(parents=True)
        for vmid in (101, 105):
            (root / f"etc/pve/qemu-server/{vmid}.conf").touch()
        (root / "srv").mkdir()
        self.socket = str(root / "journal")
        self.textfile = root / "srv/pvehook.prom"

    def run(self, *records: BesideRecord, config: MetricsConfig = CONFIG, began: bool = True) -> None:
        run = RunState(ProcessId(1, 1), "UPID:", 0.0, began=began)
        kept = RunRecords(Context(self.node, SystemClock(), Readers(), journal_log(self.socket)), run)
        if began:
            kept.keep(record(vmid=101), config, Deadline.after(60))
        kept.keep_beside(records, config, Deadline.after(60))

    def beside_of(self, vmid: int) -> list[str]:
        lines = self.textfile.read_text().splitlines()
        return [line for line in lines if "beside" in line and f'vmid="{vmid}"' in line]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_prometheus_gets_a_guest_in_no_job_until_the_next_run_in_which_it_is_well(kept: Kept) -> None:
    kept.run(beside(vmid=105))
    assert 'pvehook_stalled_seconds{id="qemu/105",vmid="105",part="beside"} 17.0' in kept.beside_of(105)
    kept.run(began=False)
    assert kept.beside_of(105)  # a run that was refused tells nothing of anybody
    kept.run()
    assert kept.beside_of(105) == []


def test_without_metrics_nothing_is_kept(kept: Kept) -> None:
    kept.run(beside(vmid=105), config=MetricsConfig(mode="off"), began=False)
    assert not Path(history_file(kept.node)).exists()


def test_a_history_that_cannot_be_kept_costs_a_line_and_the_journal_has_it_all_the_same(kept: Kept) -> None:
    Path(history_file(kept.node)).mkdir(parents=True)
    with JournalReceiver(kept.socket) as journal:
        kept.run(beside(vmid=105))
        journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == "guest-suffered", "the guest's suffering")
        journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == "history-not-kept", "the history's trouble")
