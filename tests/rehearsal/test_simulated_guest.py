"""What the simulated guest adds to QEMU's sockets: who froze it and for how long, exec, a pause, faults."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.deadline import Deadline
from pvehook.errors import Refused, TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.block_stats import read_disks
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import fitting_address
from tests.guest_files import SimulatedGuest
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest

SHORT_S = 0.2
LONG_S = 20.0


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        yield guest


@pytest.fixture(scope="module")
def real() -> Iterator[QemuGuest]:
    try:
        with qemu_guest(101, agent="7.2") as guest:
            yield guest
    except CannotStart as error:
        pytest.skip(f"no real QEMU guest: {error}")


def send_and_die(path: str, *commands: str) -> None:
    """A client that is gone before it is answered, as one that was killed."""
    with socket.socket(socket.AF_UNIX) as client, fitting_address(path) as address:
        client.connect(address)
        client.sendall(b"".join(json.dumps({"execute": command}).encode() + b"\n" for command in commands))


# Freezes


def test_every_freeze_is_reported_with_its_thaw(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(guest.qga_path, deadline) as agent:
        agent.fsfreeze_freeze(["/home"], deadline)
    with open_agent(guest.qga_path, deadline) as agent:
        agent.fsfreeze_thaw(deadline)
        assert agent.fsfreeze_freeze([], deadline) == 0
        agent.fsfreeze_freeze(None, deadline)
    first, second = guest.frozen_intervals
    assert first.until_s is not None
    assert first.asked_at_s <= first.since_s <= first.until_s <= second.asked_at_s
    assert first.mountpoints == frozenset({"/home"})
    assert second.mountpoints == frozenset({"/home", "/"})
    assert (first.frozen_by, first.thawed_by) == ((1, os.getpid()), (2, os.getpid()))
    assert (second.until_s, second.thawed_by) == (None, None)


def test_a_thaw_on_the_same_connection_waits_behind_a_freeze_that_hangs(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    guest.stick("freeze")
    with open_agent(guest.qga_path, deadline) as agent:
        freeze, thaw = agent.send_freeze(None, deadline), agent.send_thaw(deadline)
        with pytest.raises(TimedOut):
            agent.receive_count(freeze, Deadline.after(SHORT_S))
        assert not guest.frozen_intervals
        guest.unstick("freeze")
        assert agent.receive_count(freeze, deadline) == agent.receive_count(thaw, deadline) == 2
    (frozen,) = guest.frozen_intervals
    assert frozen.frozen_by == frozen.thawed_by


def test_the_thaw_of_a_client_that_died_waits_for_the_next_client(guest: SimulatedGuest) -> None:
    guest.stick("freeze")
    send_and_die(guest.qga_path, "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
    guest.unstick("freeze")
    assert guest.wait_until(lambda: guest.is_frozen, LONG_S)
    assert not guest.wait_until(lambda: not guest.is_frozen, SHORT_S)
    with open_agent(guest.qga_path, Deadline.after(LONG_S)):
        assert not guest.is_frozen


@pytest.mark.rig
def test_the_same_of_a_real_agent(real: QemuGuest) -> None:
    real.run("dd if=/dev/zero of=/data/dirty bs=1M count=20")  # so that the freeze outlasts its client
    send_and_die(real.qga, "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
    # A writer asleep in the kernel (state D) shows that it is frozen, with nobody connected.
    write = "echo x >/data/written & writer=$!"
    asleep = "grep -q '^State:.*D' /proc/$writer/status"
    real.run(f"while :; do {write}; usleep 20000; {asleep} && break; done; sleep 1; {asleep}")
    with open_agent(real.qga, Deadline.after(LONG_S)):
        pass
    assert real.run("wait; cat /data/written") == "x\n"


# Disks and the guest itself


def test_requests_are_counted_where_they_were_served(tmp_path: Path) -> None:
    deadline = Deadline.after(LONG_S)
    simulated = SimulatedGuest(str(tmp_path), 101, disks=("scsi0", "scsi1"))
    with simulated as guest, open_qmp(guest.qmp_path, deadline) as qmp:
        guest.serve_requests("read", 2.0, 5, disk="scsi1", size_bytes=65536)
        guest.serve_requests("flush", 0.5, 4)
        first, second = read_disks(qmp, deadline)
        assert (first.read, first.flush) == ((0, 0, 0, None), (4, 0, 2_000_000, None))
        assert (second.read, second.flush) == ((5, 327_680, 10_000_000, None), (0, 0, 0, None))


def test_a_speed_is_noted_and_shown_until_the_next_backup(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    with open_qmp(guest.qmp_path, deadline) as qmp:
        for speeds in ((3, 0), (7,)):
            qmp.execute("backup", {"backup-file": "/dev/fdname/backup"}, deadline=deadline)
            assert qmp.query_block_jobs(deadline)[0].speed_bytes_per_s == 0
            for speed in speeds:
                qmp.set_job_speed("drive-scsi0", speed, deadline)
            guest.finish_backup()
        assert guest.speeds_set == (3, 0, 7)


def test_what_the_agent_opened_stays_open_until_it_is_closed(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(guest.qga_path, deadline) as agent:
        handle = agent.file_open("/proc/uptime", deadline)
    assert list(guest.files.open_paths) == ["/proc/uptime"]
    with open_agent(guest.qga_path, deadline) as agent:
        assert float(agent.file_read(handle, 100, deadline).split()[0]) > 0
        agent.file_close(handle, deadline)
    assert list(guest.files.open_paths) == []


# Commands


def test_a_sync_runs_by_exec_until_it_has_ended(tmp_path: Path) -> None:
    deadline = Deadline.after(LONG_S)
    with SimulatedGuest(str(tmp_path), 101, sync_s=SHORT_S) as guest, open_agent(guest.qga_path, deadline) as agent:
        started = agent.execute("guest-exec", {"path": "/bin/sync", "arg": ["-f", "/"]}, deadline=deadline)
        assert isinstance(started, dict)
        shown = [{"exited": False}]
        while shown[-1] == {"exited": False} and deadline.left_s():
            shown.append(agent.execute("guest-exec-status", started, deadline=deadline))  # type: ignore[arg-type]
        assert shown[1] == {"exited": False}
        assert shown[-1] == {"exited": True, "exitcode": 0}
        assert guest.executed == (("/bin/sync", "-f", "/"),)
        with pytest.raises(Refused, match="does not exist"):
            agent.execute("guest-exec-status", started, deadline=deadline)


@pytest.mark.parametrize(
    ("version", "text"),
    [("7.2.22", "exec has been disabled$"), ("10.0.2", "exec has been disabled: the command is not allowed$")],
)
def test_a_blocked_command_is_reported_as_such_and_refused(tmp_path: Path, version: str, text: str) -> None:
    deadline = Deadline.after(LONG_S)
    simulated = SimulatedGuest(str(tmp_path), 101, agent_version=version, blocked=("guest-exec",))
    with simulated as guest, open_agent(guest.qga_path, deadline) as agent:
        commands = agent.guest_info(deadline).commands
        assert (commands["guest-exec"], commands["guest-exec-status"]) == (False, True)
        with pytest.raises(Refused, match=text):
            agent.execute("guest-exec", {"path": "sync"}, deadline=deadline)
        assert guest.executed == ()


def test_only_the_agent_of_a_running_guest_answers(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    with open_qmp(guest.qmp_path, deadline) as qmp:
        qmp.execute("stop", deadline=deadline)
        assert qmp.query_status(deadline) == "paused"
        with pytest.raises(TimedOut), open_agent(guest.qga_path, Deadline.after(SHORT_S)):
            pass
        qmp.execute("cont", deadline=deadline)
        assert qmp.query_status(deadline) == "running"
    with open_agent(guest.qga_path, deadline) as agent:
        agent.ping(deadline)


def test_it_tells_its_system_and_whether_it_moves(tmp_path: Path) -> None:
    deadline = Deadline.after(LONG_S)
    with SimulatedGuest(str(tmp_path), 101, os_id="mswindows") as guest:
        with open_agent(guest.qga_path, deadline) as agent:
            shown = agent.execute("guest-get-osinfo", deadline=deadline)
            assert isinstance(shown, dict)
            assert shown["id"] == "mswindows"
        with open_qmp(guest.qmp_path, deadline) as qmp:
            assert qmp.execute("query-migrate", deadline=deadline) == {}
            guest.migrating = True
            shown = qmp.execute("query-migrate", deadline=deadline)
            assert isinstance(shown, dict)
            assert shown["status"] == "active"
