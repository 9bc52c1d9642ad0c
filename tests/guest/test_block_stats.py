"""Disk counters from a QEMU that says strange things, and from one with many disks."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from pvehook.contract.latency import DiskCounters, Histogram, our_boundaries_ns
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, NotActive, TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.block_stats import DISKS_LIMIT, arm_histograms, disarm_histograms, read_disks
from pvehook.guest.qmp import QmpConnection, open_qmp
from tests.guest.hostile import NASTY, Script, peer, qmp_that_returns, qmp_that_sends, read_line
from tests.guest_files import SimulatedGuest

T = TypeVar("T")

ANSWER_S = 30.0
SHORT_S = 0.1

_READ = {"rd_operations": 7, "rd_bytes": 10240, "rd_total_time_ns": 6490537}
_WRITE = {"wr_operations": 1, "wr_bytes": 1024, "wr_total_time_ns": 286124}
STATS: Mapping[str, object] = {**_READ, **_WRITE, "flush_operations": 2, "flush_total_time_ns": 220142}
DISK: Mapping[str, object] = {"device": "drive-scsi0", "qdev": "scsi0", "node-name": "#block357", "stats": STATS}


def ask(tmp_path: Path, script: Script, question: Callable[[QmpConnection, Deadline], T]) -> T:
    deadline = Deadline.after(ANSWER_S)
    with peer(str(tmp_path), script) as path, open_qmp(path, deadline) as qmp:
        return question(qmp, deadline)


def read(tmp_path: Path, script: Script, known: tuple[str, ...] = ("scsi0",)) -> tuple[DiskCounters, ...]:
    return ask(tmp_path, script, lambda qmp, deadline: read_disks(qmp, deadline, known))


def with_stats(**changed: object) -> list[object]:
    return [{**DISK, "stats": {**STATS, **changed}}]


def test_a_disk_as_qemu_tells_it(tmp_path: Path) -> None:
    histogram = {"boundaries": [1000, 2000], "bins": [3, 4, 0]}
    shown = with_stats(rd_latency_histogram=histogram)
    (disk,) = read(tmp_path, qmp_that_returns(shown))
    assert disk.read == (7, 10240, 6490537, Histogram((1000, 2000), (3, 4, 0)))
    assert disk.write == (1, 1024, 286124, None)
    assert disk.flush == (2, 0, 220142, None)


@pytest.mark.parametrize(
    ("qdev", "name"),
    [
        *(("scsi30", "scsi30"), ("sata1", "sata1"), ("/machine/peripheral/virtio15/virtio-backend", "virtio15")),
        ("a\nb\x1b[2J", "a\\nb\\x1b[2J"),
    ],
)
def test_a_disk_is_called_what_proxmox_calls_it(tmp_path: Path, qdev: str, name: str) -> None:
    (disk,) = read(tmp_path, qmp_that_returns([{**DISK, "qdev": qdev}]), known=(qdev,))
    assert (disk.qdev, disk.name) == (qdev, name)


@pytest.mark.parametrize(
    "other",
    [
        {"device": "drive-ide2", "qdev": "ide2", "stats": STATS},  # a drive without a medium
        {"device": "drive-efidisk0", "node-name": "#block1", "stats": STATS},
        {**DISK, "qdev": "/machine/unattached/device[19]"},
        {**DISK, "qdev": "/machine/system.flash1"},
    ],
)
def test_what_is_no_disk_of_the_guests_is_left_out(tmp_path: Path, other: Mapping[str, object]) -> None:
    assert [disk.qdev for disk in read(tmp_path, qmp_that_returns([other, DISK]))] == ["scsi0"]


@pytest.mark.parametrize(("kind", "is_read"), [("scsi-hd", True), ("scsi-cd", False), ("ide-cd", False), (NASTY, True)])
def test_a_cd_drive_with_a_medium_is_left_out(tmp_path: Path, kind: str, is_read: bool) -> None:
    def script(client: socket.socket) -> None:
        qmp_that_returns([DISK])(client)
        asked = read_line(client)
        assert asked["arguments"] == {"path": "/machine/peripheral/scsi0", "property": "type"}
        client.sendall(json.dumps({"return": kind, "id": asked["id"]}).encode() + b"\r\n")

    assert len(read(tmp_path, script, known=())) == is_read


@pytest.mark.parametrize(
    "value",
    [
        *(7, None, {}, "x", [7], [[DISK]], [DISK] * (DISKS_LIMIT + 1), [DISK] * 9000),
        *([{**DISK, "qdev": wrong}] for wrong in (7, None, ["scsi0"], "x" * 5000)),
        *([{**DISK, "stats": wrong}] for wrong in (7, None, NASTY, [7])),
        *([{**DISK, "qdev": {}}], [{**DISK, "stats": {}}]),
        *(with_stats(rd_operations=wrong) for wrong in (-1, 1.5, True, None, "7", 2**63, 10**300, [NASTY])),
        *(with_stats(wr_bytes=wrong) for wrong in (-1, None, {NASTY: 1})),
        *(with_stats(flush_total_time_ns=wrong) for wrong in (-1, None)),
    ],
)
def test_counters_of_a_wrong_shape_are_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-blockstats") as caught:
        read(tmp_path, qmp_that_returns(value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "histogram",
    [
        *(7, [], "x", {}, {"boundaries": [1]}, {"bins": [1, 2]}, {"boundaries": 7, "bins": [1]}),
        *({"boundaries": [1, 2], "bins": wrong} for wrong in ([1, 2], [1, 2, 3, 4], [1, 2, -3], [1, 2, None])),
        *(
            {"boundaries": wrong, "bins": [0, 0, 0]}
            for wrong in ([2, 1], [1, 1], [0, 1], [-1, 1], [1, "2"], [1, 2**64])
        ),
        {"boundaries": list(range(1, 9001)), "bins": [0] * 9001},
    ],
)
def test_a_histogram_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, histogram: object) -> None:
    with pytest.raises(BadReply, match="latency_histogram") as caught:
        read(tmp_path, qmp_that_returns(with_stats(wr_latency_histogram=histogram)))
    assert str(caught.value).isprintable()


def test_a_million_disks_are_cut_off_at_the_limit(tmp_path: Path) -> None:
    entry = json.dumps(DISK).encode()

    def script(client: socket.socket) -> None:
        qmp_that_sends(b'{"return": [')(client)
        for _ in range(100):
            client.sendall((entry + b", ") * 10_000)

    with pytest.raises(BadReply, match="longer than 4194304 bytes"):
        read(tmp_path, script)


def test_as_many_disks_as_proxmox_allows_fit_with_full_histograms(tmp_path: Path) -> None:
    most = 9_999_999_999
    histogram = {"boundaries": list(our_boundaries_ns()), "bins": [most] * (len(our_boundaries_ns()) + 1)}
    full = dict.fromkeys(("rd_latency_histogram", "wr_latency_histogram", "flush_latency_histogram"), histogram)
    names = [f"scsi{number}" for number in range(31)] + [f"virtio{number}" for number in range(16)]
    names += [f"sata{number}" for number in range(6)] + [f"ide{number}" for number in range(4)]
    shown = [{**DISK, "qdev": name, "stats": {**STATS, **full}, "parent": DISK} for name in names]
    assert [disk.name for disk in read(tmp_path, qmp_that_returns(shown), known=tuple(names))] == names


def test_several_disks_are_told_apart_by_their_qdev(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    disks = ("scsi0", "virtio1", "sata2")
    with SimulatedGuest(str(tmp_path), 101, disks=disks) as guest, open_qmp(guest.qmp_path, deadline) as qmp:
        theirs = {"id": "sata2", "boundaries": [1_000_000]}
        qmp.execute("block-latency-histogram-set", theirs, deadline=deadline)
        armed = arm_histograms(qmp, read_disks(qmp, deadline), deadline)
        virtio = "/machine/peripheral/virtio1/virtio-backend"
        assert armed == (("scsi0", virtio), ("sata2",), ())
        guest.serve_requests("write", 1000.0, 2, disk="virtio1", size_bytes=8192)
        scsi, second, _ = read_disks(qmp, deadline)
        assert (scsi.write.operations, second.write[:3]) == (0, (2, 16384, 2_000_000_000))
        assert second.write.histogram is not None
        # 1 s is exactly a boundary, and a request of 1 s is in the bin that begins there.
        assert second.write.histogram.counts[second.write.histogram.boundaries_ns.index(1_000_000_000) + 1] == 2
        assert disarm_histograms(qmp, [virtio, "sata2"], deadline) == (virtio,)
        assert [disk.write.histogram is None for disk in read_disks(qmp, deadline)] == [False, True, False]


def test_a_monitor_that_hangs_times_out(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest, open_qmp(guest.qmp_path, Deadline.after(ANSWER_S)) as qmp:
        guest.stick("qmp")
        with pytest.raises(TimedOut):
            read_disks(qmp, Deadline.after(SHORT_S))
        guest.unstick("qmp")


@pytest.mark.parametrize(
    "value", [7, None, {}, {"qemu": {}}, {"qemu": {"major": 10, "minor": 0, "micro": -1}, "package": ""}, NASTY]
)
def test_a_version_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-version") as caught:
        ask(tmp_path, qmp_that_returns(value), QmpConnection.query_version)
    assert str(caught.value).isprintable()


def test_a_version_without_a_package_is_its_number(tmp_path: Path) -> None:
    shown = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}
    assert ask(tmp_path, qmp_that_returns(shown), QmpConnection.query_version) == "10.0.2"


def test_the_threads_of_the_cpus_come_in_the_cpus_order(tmp_path: Path) -> None:
    shown = [{"cpu-index": 1, "thread-id": 11}, {"cpu-index": 0, "thread-id": 12}]
    assert ask(tmp_path, qmp_that_returns(shown), QmpConnection.query_cpus_fast) == (12, 11)


@pytest.mark.parametrize("value", [7, {}, [7], [{}], [{"cpu-index": 0}], [{"cpu-index": 0, "thread-id": -1}]])
def test_cpus_of_a_wrong_shape_are_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-cpus-fast"):
        ask(tmp_path, qmp_that_returns(value), QmpConnection.query_cpus_fast)


PORT = {"label": "qga0", "filename": "disconnected:unix:/var/run/qemu-server/101.qga,server=on", "frontend-open": True}


@pytest.mark.parametrize(
    "value", [7, {}, [7], [{}], [{**PORT, "filename": None}], [{**PORT, "frontend-open": 1}], [PORT] * 9000]
)
def test_ports_of_a_wrong_shape_are_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-chardev"):
        ask(tmp_path, qmp_that_returns(value), lambda qmp, deadline: qmp.is_agent_running(101, deadline))


def test_a_guest_without_an_agent_says_so_on_qmp(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    simulated = SimulatedGuest(str(tmp_path), 101, has_agent=False)
    with simulated as guest, open_qmp(guest.qmp_path, deadline) as qmp:
        assert not qmp.is_agent_running(101, deadline)
        with pytest.raises(TimedOut), open_agent(guest.qga_path, Deadline.after(SHORT_S)):
            pass


def test_a_job_that_has_ended_is_told_from_another_refusal(tmp_path: Path) -> None:
    deadline = Deadline.after(ANSWER_S)
    with SimulatedGuest(str(tmp_path), 101) as guest, open_qmp(guest.qmp_path, deadline) as qmp:
        qmp.execute("backup", {"backup-file": "/dev/fdname/backup"}, deadline=deadline)
        qmp.set_job_speed("drive-scsi0", 5_000_000, deadline)
        guest.finish_backup()
        with pytest.raises(NotActive):
            qmp.set_job_speed("drive-scsi0", 0, deadline)
        assert guest.speeds_set == (5_000_000,)
