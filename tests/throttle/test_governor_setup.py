"""How a guest is backed up, as Proxmox merges the options of its job and of the node."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.governor_policy import advice
from pvehook.settings import GovernorConfig
from pvehook.throttle.governor_setup import look_up


@pytest.mark.parametrize(
    ("job", "remedy"),
    [
        ("performance pbs-entries-max=100000", None),  # merged with the node's: one worker
        ("performance max-workers=2", "set `max-workers=1` in the performance of job nightly: it wins"),
        ("mode snapshot", None),
    ],
)
def test_the_advice_about_workers_names_where_they_are_set(tmp_path: Path, job: str, remedy: str | None) -> None:
    (tmp_path / "etc/pve/qemu-server").mkdir(parents=True)
    (tmp_path / "etc/pve/qemu-server/101.conf").write_text("name: a\n")
    (tmp_path / "etc/vzdump.conf").write_text("performance: max-workers=1\n")
    (tmp_path / "etc/pve/jobs.cfg").write_text(f"vzdump: nightly\n\tvmid 101\n\t{job}\n")
    _, setup = look_up(Node(str(tmp_path)), TimelyReader(), GovernorConfig(), 101, None, "nightly")
    found = advice(101, setup, None)
    assert len(found) == (0 if remedy is None else 1)
    assert remedy is None or remedy in found[0]
