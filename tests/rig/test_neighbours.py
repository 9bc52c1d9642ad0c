"""Who suffers beside somebody else's backup, on a real node: Debian 13 under systemd, two real QEMU guests, one disk.

VM 101 does nothing and is backed up; VM 103, which is in no job, writes to the same slow disk all the while. Both disks
are partitions of it, laid down as logical volumes of one storage, so that the installed pvehook finds out by itself
what they share. QEMU is this machine's, in the node's PID namespace.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pvehook.contract.measured import value_of
from pvehook.records.beside_history import beside_records
from pvehook.records.beside_record import BesideRecord
from pvehook.records.history import reading
from tests.rig.debian_node import REPO_INSIDE, DebianNode, booted, what_is_missing
from tests.rig.disk_writer import lasted_s, p99_s, writes, writing
from tests.rig.guest_on_node import Span, ask
from tests.rig.played_neighbours import ENDS_WITHIN_S, GOES_WITHIN_S
from tests.rig.qemu_guest import CannotStart, QemuGuest, lay_out, qemu_guest
from tests.rig.shared_disk import partitions
from tests.rig.shared_disk import what_is_missing as no_disk

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(what_is_missing()), reason=f"real Debian systems: {what_is_missing()}"),
    pytest.mark.skipif(bool(no_disk()), reason=f"one disk for two guests: {no_disk()}"),
]

QUIET, BUSY = 101, 103
SIZES_MIB = (256, 128)
DISK_MIB_PER_S, SEEK_MS = 12.0, 8.0
"""The 16 MiB that a backup has in flight take over a second."""
WRITERS, PAUSE_MS = 3, 40
BEFORE_S = 21.0
"""pvehook takes 20 s before a guest's backup for how it is without one."""

STORAGES = "lvmthin: shared\n\tvgname shared\n\tthinpool data\n\tcontent images\n"
CONFIG = "name: {name}\nscsi0: shared:vm-{vmid}-disk-0,size={mib}M\n"
WINDOW = 'window: {open: ["00:00-24:00"]}\n'
UNIT = "pvehook.service"
PAGE = "/root/report.html"
SPEED_BACK_S = 30.0
REMOVED_WITHIN_S = 30.0


class Node(NamedTuple):
    """The system and its two VMs."""

    debian: DebianNode
    quiet: QemuGuest
    busy: QemuGuest
    dumpdir: str

    def configure(self, more: str) -> None:
        """The next phase starts a daemon that reads this."""
        self.debian.write("/etc/pvehook.yaml", WINDOW + more)
        self.debian.run("systemctl", "stop", UNIT)

    @contextmanager
    def night(self) -> Iterator[Future[dict[str, Any]]]:
        """A night that has come to its one backup, with the other guest busy since before it."""
        go, stands = Path(self.dumpdir, "go"), Path(self.dumpdir, "stands")
        for file in (go, stands):
            file.unlink(missing_ok=True)
        with writing(self.busy, PAUSE_MS, WRITERS), ThreadPoolExecutor(1) as player:
            played = player.submit(self._play)
            try:
                self._write_until(stands.exists, played)
                before = len(writes(self.busy))
                self._write_until(lambda: lasted_s(writes(self.busy)[before:]) > BEFORE_S, played)
            finally:
                go.touch()
            yield played
            played.result()

    def _play(self) -> dict[str, Any]:
        """In a unit of its own, as Proxmox's scheduler would run it."""
        played = self.debian.run(
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--setenv=LC_ALL=C.UTF-8"),
            *("python3", f"{REPO_INSIDE}/tests/rig/played_neighbours.py", self.dumpdir),
            timeout_s=GOES_WITHIN_S + ENDS_WITHIN_S,
        )
        result: dict[str, Any] = json.loads(played.out)
        return result

    def _write_until(self, is_so: Callable[[], bool], played: Future[Any]) -> None:
        """Lets the busy guest write."""
        while not is_so():
            assert not played.done(), played.result()
            self.busy.run("usleep 500000")

    def cursor(self) -> str:
        """The end of the journal now."""
        return str(self.debian.journal("--lines=1")[-1]["__CURSOR"])

    def events(self, after: str, name: str) -> list[dict[str, Any]]:
        return [each for each in self._entries(after) if each.get("PVEHOOK_EVENT") == name]

    def said_by_unit(self, after: str) -> list[str]:
        """What the unit's processes printed, ExecStopPost among them."""
        return [str(each["MESSAGE"]) for each in self._entries(after) if each.get("_SYSTEMD_UNIT") == UNIT]

    def _entries(self, after: str) -> list[dict[str, Any]]:
        # Without matches: systemd 252 then takes the first that matches for the cursor's own entry, and skips it.
        return self.debian.journal(f"--after-cursor={after}")

    def record_of_busy(self) -> BesideRecord:
        """Of the last night, as the history keeps it."""
        with reading(self.debian.path("/var/lib/pvehook/history.db")) as history:
            records = [each for each in beside_records(history, 0.0, time.time()) if each.vmid == BUSY]
        return max(records, key=lambda each: each.ended_s)

    def wait_until_slowed_for_busy(self, played: Future[Any]) -> None:
        """Until the daemon itself tells that it slows the backup, and for whom."""
        while True:
            assert not played.done(), "the backup is over, and was not slowed for the guest beside it"
            status = json.loads(self.debian.run("pvehook", "governor", "status", "--json").out)
            if status["watch"].get("steers") == BUSY and any(each["throttled"] for each in status["backups"]):
                return

    def wait_until_noted(self, played: Future[Any]) -> None:
        """Until the run's recovery note tells what the busy guest has suffered."""
        while f'\\"vmid\\": {BUSY}' not in self.debian.run("sh", "-c", "cat /run/pvehook/jobs/*.json", ok=(0, 1)).out:
            assert not played.done(), "the backup is over, and nothing was written down"

    def speed(self) -> int:
        """The limit of the backup's job, in bytes per second; 0: none."""
        return next((int(job["speed"]) for job in ask(self.quiet.events, "query-block-jobs")), 0)

    def assert_report_and_page(self) -> None:
        """The busy guest, which is in no job, is in all of them."""
        shown = self.debian.run("pvehook", "report").out
        beside = shown[shown.index("beside the backups of others") :]
        assert f"VM {BUSY} busy" in beside
        assert f"VM {QUIET}" in beside
        told = json.loads(self.debian.run("pvehook", "report", "--json").out)["beside"][-1]
        assert (told["vmid"], told["name"], told["worst_vmid"]) == (BUSY, "busy", QUIET)
        assert told["record"]["beside"][0]["exposure"] == "shared"
        self.debian.run("pvehook", "report", "--html", PAGE)
        page = self.debian.read(PAGE)
        assert f"VM {BUSY} busy" in page
        assert f"beside VM {QUIET}" in page
        if pictures := os.environ.get("PVEHOOK_SCREENSHOTS"):
            Path(pictures, "neighbours.html").write_text(page, encoding="utf-8")

    def assert_no_histograms(self) -> None:
        """By each VM's own socket; they are removed by a thread, which no phase waits for."""
        until_s = time.monotonic() + REMOVED_WITHIN_S
        left = [QUIET, BUSY]
        while left and time.monotonic() < until_s:
            left = [
                vm.vmid
                for vm in (self.quiet, self.busy)
                if "latency_histogram" in json.dumps(ask(vm.events, "query-blockstats"))
            ]
        assert left == []


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    scratch = tmp_path_factory.mktemp("trixie")
    try:
        # A short path: QEMU takes 108 bytes for a socket.
        with (
            tempfile.TemporaryDirectory(prefix="vm-") as tree,
            # Not under /tmp: the daemon has one of its own.
            tempfile.TemporaryDirectory(prefix="dump-", dir="/srv") as dumpdir,
            partitions(Path(tree, "disk"), SIZES_MIB, DISK_MIB_PER_S, SEEK_MS) as devices,
        ):
            lay_out(Path(tree))
            volumes = {
                device: f"/dev/shared/vm-{vmid}-disk-0" for vmid, device in zip((QUIET, BUSY), devices, strict=True)
            }
            binds = {f"{tree}/run/qemu-server": "/run/qemu-server", dumpdir: dumpdir, **volumes}
            with booted("trixie", str(scratch), binds) as debian:
                debian.copy_repo_in()
                debian.write("/etc/pvehook.yaml", WINDOW)
                debian.write("/etc/pve/storage.cfg", STORAGES)
                for vmid, name, mib in zip((QUIET, BUSY), ("quiet", "busy"), SIZES_MIB, strict=True):
                    debian.write(f"/etc/pve/qemu-server/{vmid}.conf", CONFIG.format(vmid=vmid, name=name, mib=mib))
                debian.run(f"{REPO_INSIDE}/install.sh", "--force", timeout_s=120)
                inside = ("nsenter", "--target", str(debian.leader), "--pid", "--")
                with (
                    qemu_guest(QUIET, tree=tree, launcher=inside, devices=devices[:1]) as quiet,
                    qemu_guest(BUSY, tree=tree, launcher=inside, devices=devices[1:]) as busy,
                ):
                    yield Node(debian, quiet, busy, dumpdir)
    except CannotStart as reason:
        pytest.skip(f"real guests: {reason}")


def test_the_neighbour_of_a_backup_is_in_journal_table_report_and_page(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.configure("governor: {mode: observe}\n")
    before = node.cursor()
    with node.night() as played:
        log = played.result()["log"]
    assert played.result()["exit"] == 0, log
    record = node.record_of_busy()
    inside = [each for each in writes(node.busy) if record.started_s <= each.from_s <= record.ended_s]
    p99_ms = 1000 * p99_s(during(node, before, inside))
    with capsys.disabled():
        print(f"\np99 inside {p99_ms:.0f} ms, seen {record.p99_ms} ms; {record}")

    (event,) = node.events(before, "guest-suffered")
    assert event["PVEHOOK_VMID"] == str(BUSY)
    assert node.debian.journal("-t", "pvehook", f"PVEHOOK_VMID={BUSY}", "PVEHOOK_EVENT=guest-suffered")
    assert f"beside VM {QUIET}'s backup" in event["MESSAGE"]
    assert node.events(before, "fault") == []

    (row,) = [line for line in log if f"VM {BUSY} busy" in line and "neighbour" in line]
    assert f"beside VM {QUIET}'s backup" in row
    assert len(row.removeprefix("INFO: ")) <= 80

    assert record.severity == "stalled"
    assert record.seen_by == "requests"
    assert record.unknown == ()
    assert [(each.vmid, each.exposure) for each in record.beside] == [(QUIET, "shared")]
    assert value_of(record.p99_ms) == pytest.approx(p99_ms, rel=0.2)
    baseline_ms = value_of(record.baseline_p99_ms)
    assert baseline_ms is not None
    assert baseline_ms < p99_ms / 4

    node.assert_report_and_page()
    node.assert_no_histograms()


def test_a_daemon_that_is_killed_in_the_middle_leaves_no_limit_no_histogram_and_whole_records(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.configure("")
    before = node.cursor()
    with node.night() as played:
        node.wait_until_slowed_for_busy(played)
        node.wait_until_noted(played)
        killed_s = time.time()
        node.debian.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
        speed = node.speed()
        while speed and time.time() - killed_s < SPEED_BACK_S:
            speed = node.speed()
        took_ms = 1000 * (time.time() - killed_s)
        assert speed == 0
        log = played.result()["log"]
    assert played.result()["exit"] == 0, log
    record = node.record_of_busy()
    with capsys.disabled():
        print(f"\nthe speed was back {took_ms:.0f} ms after SIGKILL; {record}")

    (thawed,) = [line for line in node.said_by_unit(before) if "was throttled by us" in line]
    assert "restored drive-scsi0 to no limit" in thawed
    assert node.events(before, "fault") == []
    assert node.debian.run("systemctl", "is-active", UNIT).out == "active\n"
    node.assert_no_histograms()

    (event,) = node.events(before, "guest-suffered")
    assert event["PVEHOOK_VMID"] == str(BUSY)
    (done,) = node.events(before, "guest-done")
    assert (done["PVEHOOK_VMID"], done["PVEHOOK_RESULT"]) == (str(QUIET), "ok")
    assert record.started_s < killed_s < record.ended_s
    (beside,) = record.beside
    assert beside.slowed_backup_s > 0
    stalled_s = value_of(record.stalled_s)
    assert stalled_s is not None
    assert stalled_s < record.watched_s / 2  # without the governor nearly all of it
    assert value_of(record.baseline_p99_ms) is not None
    assert any(f"VM {BUSY} busy" in line and "neighbour" in line for line in log)
    node.assert_report_and_page()
    assert not node.debian.run("find", "/run/pvehook/speeds", "-type", "f", ok=(0, 1)).out.strip()


def during(node: Node, after: str, seen: list[Span]) -> list[Span]:
    """Those that began while the backup ran."""
    states = node.events(after, "guest-state")
    at_s = {
        name: next(
            int(each["__REALTIME_TIMESTAMP"]) / 1e6
            for each in states
            if each["MESSAGE"].partition("-> ")[2].startswith(name)
        )
        for name in ("archiving", "over")
    }
    return [each for each in seen if at_s["archiving"] <= each.from_s <= at_s["over"]]
