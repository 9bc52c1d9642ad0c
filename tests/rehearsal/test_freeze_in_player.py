"""What PVE itself does with a guest's agent around the start of the backup job, on a simulated VM and on a real one."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import fitting_address
from pvehook.rehearsal.vzdump.player import Played, Player, play
from pvehook.rehearsal.vzdump.run import Guest, Run
from tests.guest_files import SimulatedGuest
from tests.native_freeze import NATIVE_FREEZE, freeze_events
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest
from tests.vm_jobs import STOCK

VM = Guest(101, name="web", agent=True)
SHORT_S = 0.2
LONG_S = 20.0

FROZE_BY_ITSELF = [
    *("pve-pings", "pve-pinged", "pve-freezes", "pve-froze"),
    *("job-started", "pve-thaws", "pve-thawed"),
]
NOT_RUNNING = "INFO: skipping guest filesystem freeze - agent configured but not running?"
ALREADY_FROZEN = "INFO: skipping guest filesystem freeze - already frozen"

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run on `tmp_path`, or on the tree of a real guest, with a hook that does nothing."""

    def make(guest: Guest = VM, root: str = str(tmp_path), **how: Any) -> Run:
        hook = tmp_path / "hook"
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        return Run((guest,), hook=str(hook), root=root, freeze=NATIVE_FREEZE, **how)

    return make


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SimulatedGuest]:
    sockets = tmp_path / "var/run/qemu-server"
    sockets.mkdir(parents=True)
    with SimulatedGuest(str(sockets), 101, backup_s=0.01) as guest:
        yield guest


def names(played: Played) -> list[str]:
    return [event.name for event in freeze_events(played)]


def why(played: Played, name: str) -> str:
    return next(event.why for event in freeze_events(played) if event.name == name)


def asked_of_agent(guest: SimulatedGuest) -> list[str]:
    """Without the syncs."""
    return [heard.command for heard in guest.heard if heard.channel == "qga" and "sync" not in heard.command]


def freeze_by_hand(guest: SimulatedGuest) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(guest.qga_path, deadline) as agent:
        assert agent.fsfreeze_freeze(None, deadline) > 0


# The order


def test_the_job_starts_between_freeze_and_thaw(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with Player(make_run()) as player:
        played = player.finish()
        worker = player.pid
    assert played.exit_code == 0
    assert names(played) == FROZE_BY_ITSELF
    assert asked_of_agent(guest) == [
        *("guest-ping", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"),
    ]
    (frozen,) = guest.frozen_intervals
    (backup,) = (heard for heard in guest.heard if heard.command == "backup")
    assert frozen.until_s is not None
    assert frozen.since_s < backup.at_s < frozen.until_s
    assert (frozen.frozen_by.pid, frozen.thawed_by and frozen.thawed_by.pid) == (worker, worker)
    assert not guest.is_frozen


def test_each_command_has_a_connection_of_its_own_with_a_sync_first(guest: SimulatedGuest, make_run: MakeRun) -> None:
    play(make_run())
    by_connection: dict[int, list[str]] = {}
    for heard in guest.heard:
        if heard.channel == "qga":
            by_connection.setdefault(heard.peer.number, []).append(heard.command)
    assert list(by_connection) == [1, 2, 3, 4]
    assert all(len(commands) == 2 for commands in by_connection.values())
    assert all(commands[0] == "guest-sync-delimited" for commands in by_connection.values())


def test_the_moments_are_reported_on_the_clock_of_the_guest(guest: SimulatedGuest, make_run: MakeRun) -> None:
    played = play(make_run())
    at_s = {event.name: event.at_s for event in freeze_events(played)}
    (frozen,) = guest.frozen_intervals
    assert frozen.until_s is not None
    assert at_s["pve-freezes"] < frozen.asked_at_s <= frozen.since_s < at_s["pve-froze"]
    assert at_s["pve-thaws"] < frozen.until_s < at_s["pve-thawed"]
    assert at_s["pve-thawed"] - at_s["pve-freezes"] > frozen.until_s - frozen.asked_at_s


def test_the_compressor_runs_before_the_freeze(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with Player(make_run(compress="zstd", pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        (compressor,) = player.children(101).values()
        assert Path(f"/proc/{compressor}").exists()
        assert asked_of_agent(guest) == []
        player.go_on()
        assert player.finish().exit_code == 0


def test_the_guest_is_frozen_when_the_job_is_about_to_start(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with Player(make_run(pauses=("before backup 101",))) as player:
        player.wait_for("before backup 101")
        assert guest.is_frozen
        assert not guest.backup_runs
        player.go_on()
        player.wait_for_event("pve-thawed", 101)
        assert not guest.is_frozen
        assert player.finish().exit_code == 0


# Where PVE leaves the guest alone


@pytest.mark.parametrize(
    ("vm", "mode"),
    [
        (Guest(101, agent=True, freeze_fs=False), "snapshot"),
        (Guest(101), "snapshot"),
        (VM, "stop"),
        (Guest(101, agent=True, state="paused"), "snapshot"),
        (Guest(101, agent=True, state="stopped"), "snapshot"),
    ],
    ids=["freeze-fs=0", "agent off", "stop mode", "paused", "stopped"],
)
def test_no_connection_to_the_agent_at_all(guest: SimulatedGuest, make_run: MakeRun, vm: Guest, mode: str) -> None:
    played = play(make_run(vm, mode=mode))
    assert played.exit_code == 0
    assert "job-started" in names(played)
    assert [heard for heard in guest.heard if heard.channel == "qga"] == []


def test_the_older_one_pings_also_where_it_will_not_freeze(guest: SimulatedGuest, make_run: MakeRun) -> None:
    played = play(make_run(Guest(101, agent=True, freeze_fs=False), qemu_server="9.0"))
    assert asked_of_agent(guest) == ["guest-ping"]
    assert "INFO: skipping guest-agent 'fs-freeze', disabled in VM options" in played.task_log


def test_a_suspended_guest_does_not_answer_the_ping(guest: SimulatedGuest, make_run: MakeRun) -> None:
    played = play(make_run(mode="suspend", ping_patience_s=SHORT_S))
    assert played.exit_code == 0
    assert NOT_RUNNING in played.task_log
    asked = [heard.command for heard in guest.heard if heard.channel == "qmp"]
    assert asked.index("stop") < asked.index("backup") < asked.index("cont")
    assert guest.frozen_intervals == ()


# Somebody else at the agent's socket


def test_a_held_socket_costs_pve_its_patience_and_nothing_else(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with open_agent(guest.qga_path, Deadline.after(LONG_S)):
        played = play(make_run(ping_patience_s=SHORT_S))
    assert played.exit_code == 0
    assert NOT_RUNNING in played.task_log
    assert names(played) == ["pve-pings", "pve-skipped-freeze", "job-started"]
    assert why(played, "pve-skipped-freeze") == "agent configured but not running?"
    assert guest.frozen_intervals == ()


def test_a_socket_let_go_in_time_costs_nothing(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with Player(make_run(ping_patience_s=LONG_S)) as player:
        with open_agent(guest.qga_path, Deadline.after(LONG_S)):
            player.wait_for_event("pve-pings", 101)
            assert asked_of_agent(guest) == []
        assert names(player.finish()) == FROZE_BY_ITSELF


def test_a_guest_that_is_frozen_already_is_backed_up_and_never_thawed(guest: SimulatedGuest, make_run: MakeRun) -> None:
    freeze_by_hand(guest)
    played = play(make_run())
    assert played.exit_code == 0
    assert names(played) == ["pve-pings", "pve-pinged", "pve-skipped-freeze", "job-started"]
    assert ALREADY_FROZEN in played.task_log
    assert guest.is_frozen
    assert "guest-fsfreeze-thaw" not in asked_of_agent(guest)


def test_the_older_one_fails_to_freeze_it_and_thaws(guest: SimulatedGuest, make_run: MakeRun) -> None:
    freeze_by_hand(guest)
    played = play(make_run(qemu_server="9.0"))
    assert played.exit_code == 0
    assert "guest-fsfreeze-status" not in asked_of_agent(guest)
    failed = "unable to freeze guest fs - Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state"
    assert f"ERROR: {failed}" in played.task_log
    assert names(played)[-3:] == ["job-started", "pve-thaws", "pve-thawed"]
    assert not guest.is_frozen


def test_what_an_earlier_client_left_in_the_agent_is_not_taken_for_an_answer(
    guest: SimulatedGuest, make_run: MakeRun
) -> None:
    guest.stick("agent")
    with socket.socket(socket.AF_UNIX) as gave_up, fitting_address(guest.qga_path) as address:
        gave_up.connect(address)
        gave_up.sendall(b'{"execute":"guest-fsfreeze-status"}\n{"execute":"guest-info"}\n')
    with Player(make_run(ping_patience_s=LONG_S)) as player:
        player.wait_for_event("pve-pings", 101)
        guest.unstick("agent")
        assert names(player.finish()) == FROZE_BY_ITSELF
    assert asked_of_agent(guest)[:3] == ["guest-fsfreeze-status", "guest-info", "guest-ping"]


# What goes wrong


def test_a_job_that_does_not_start_is_no_reason_not_to_thaw(guest: SimulatedGuest, make_run: MakeRun) -> None:
    guest.refused["backup"] = "no space"
    played = play(make_run())
    assert names(played)[-3:] == ["job-failed", "pve-thaws", "pve-thawed"]
    assert "no space" in why(played, "job-failed")
    assert not guest.is_frozen
    assert any(line.startswith("ERROR: Backup of VM 101 failed - ") for line in played.task_log)


def test_a_thaw_that_is_refused_is_a_line_in_the_log(guest: SimulatedGuest, make_run: MakeRun) -> None:
    guest.refused["guest-fsfreeze-thaw"] = "not now"
    played = play(make_run())
    assert played.exit_code == 0
    assert "ERROR: Agent error: not now" in played.task_log
    assert names(played)[-1] == "pve-thaw-failed"
    assert guest.is_frozen


def test_a_freeze_that_ends_late_is_waited_for(guest: SimulatedGuest, make_run: MakeRun) -> None:
    guest.stick("freeze")
    with Player(make_run(freeze_patience_s=0.5)) as player:
        waiting = "still waiting on guest fs freeze"
        player.wait_until(lambda event: event.get("line", "").startswith(waiting), waiting)
        guest.unstick("freeze")
        assert names(player.finish()) == FROZE_BY_ITSELF
    assert not guest.is_frozen


def test_a_freeze_that_hangs_is_given_up_and_its_thaw_stays_behind_it(
    guest: SimulatedGuest, make_run: MakeRun
) -> None:
    guest.stick("freeze")
    played = play(make_run(freeze_patience_s=SHORT_S, thaw_patience_s=SHORT_S))
    assert played.exit_code == 0
    assert names(played)[-4:] == ["pve-freeze-failed", "job-started", "pve-thaws", "pve-thaw-failed"]
    assert any(line.startswith("ERROR: unable to freeze") or "querying status" in line for line in played.task_log)
    guest.unstick("freeze")
    with open_agent(guest.qga_path, Deadline.after(LONG_S)):
        pass  # it is answered only when all that PVE had sent is done
    (frozen,) = guest.frozen_intervals
    assert frozen.thawed_by is not None
    assert frozen.frozen_by.number < frozen.thawed_by.number


# A worker that is ended


def test_a_worker_killed_before_its_ping_leaves_the_guest_alone(guest: SimulatedGuest, make_run: MakeRun) -> None:
    with Player(make_run(pauses=("before ping 101",))) as player:
        player.wait_for("before ping 101")
        player.send_signal(signal.SIGKILL)
        assert player.finish().exit_code == -signal.SIGKILL
    assert asked_of_agent(guest) == []


def test_a_worker_killed_between_freeze_and_thaw_leaves_the_guest_frozen(
    guest: SimulatedGuest, make_run: MakeRun
) -> None:
    with Player(make_run(pauses=("before backup 101",))) as player:
        player.wait_for("before backup 101")
        player.send_signal(signal.SIGKILL)
        player.finish()
        (frozen,) = guest.frozen_intervals
        assert frozen.until_s is None
        assert frozen.frozen_by.pid == player.pid
    deadline = Deadline.after(LONG_S)
    with open_agent(guest.qga_path, deadline) as agent:
        assert agent.fsfreeze_status(deadline) == "frozen"
        assert agent.fsfreeze_thaw(deadline) > 0


def test_stop_during_a_slow_freeze_leaves_the_guest_frozen(guest: SimulatedGuest, make_run: MakeRun) -> None:
    guest.stick("freeze")
    with Player(make_run()) as player:
        assert guest.wait_until(lambda: "guest-fsfreeze-freeze" in asked_of_agent(guest), LONG_S)
        player.send_signal(signal.SIGTERM)  # PVE swallows it, and asks for the status
        waiting = "still waiting on guest fs freeze"
        player.wait_until(lambda event: event.get("line", "").startswith(waiting), waiting)
        player.send_signal(signal.SIGKILL)  # as the GUI does some seconds later
        player.finish()
    guest.unstick("freeze")
    assert guest.wait_until(lambda: guest.is_frozen, LONG_S)


# A real QEMU, which has no `backup` command


@pytest.fixture(scope="module")
def real() -> Iterator[QemuGuest]:
    try:
        with qemu_guest(101, agent="10.0", disks=("/data", "/srv")) as guest:
            yield guest
    except CannotStart as error:
        pytest.skip(f"no real QEMU guest: {error}")


def block_jobs(real: QemuGuest) -> list[tuple[str, str]]:
    deadline = Deadline.after(LONG_S)
    with open_qmp(real.qmp, deadline) as qmp:
        return sorted((job.device, job.type) for job in qmp.query_block_jobs(deadline))


@pytest.mark.rig
def test_a_real_guest_is_frozen_while_its_block_jobs_start(real: QemuGuest, make_run: MakeRun) -> None:
    real.run("echo before >/data/file")
    with Player(make_run(root=real.root, vm_job=STOCK, pauses=("before backup 101", "archive 101"))) as player:
        player.wait_for("before backup 101")
        real.run("(echo after >/data/file; echo done >/tmp/written) & echo $! >/tmp/writer")
        real.run("until grep -q '^State:.*D' /proc/$(cat /tmp/writer)/status; do usleep 1000; done")
        assert block_jobs(real) == []
        player.go_on()
        player.wait_for("archive 101")
        assert block_jobs(real) == [("drive-scsi0", "backup"), ("drive-scsi1", "backup")]
        real.run("until [ -e /tmp/written ]; do usleep 1000; done")
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0
    assert names(played) == FROZE_BY_ITSELF
    assert block_jobs(real) == []
    # What was backed up is the moment of the freeze: what was written later is not in it, and no journal waits.
    copy = f"{real.root}/var/lib/vz/dump/vzdump-qemu-101.drive-scsi0.raw"
    assert _debugfs(copy, "cat /file") == "before\n"
    assert "needs_recovery" not in _debugfs(copy, "features")


@pytest.mark.rig
def test_without_a_freeze_the_copy_of_a_real_guest_needs_its_journal(real: QemuGuest, make_run: MakeRun) -> None:
    assert play(make_run(Guest(101), root=real.root, vm_job=STOCK)).exit_code == 0
    assert "needs_recovery" in _debugfs(f"{real.root}/var/lib/vz/dump/vzdump-qemu-101.drive-scsi0.raw", "features")


@pytest.mark.rig
def test_stop_cancels_the_block_jobs_of_a_real_guest(real: QemuGuest, make_run: MakeRun) -> None:
    with Player(make_run(root=real.root, vm_job=STOCK, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        player.send_signal(signal.SIGTERM)
        assert player.finish().exit_code == 255
    assert block_jobs(real) == []
    assert list(Path(real.root, "var/lib/vz/dump").glob("*.raw")) == []


@pytest.mark.rig
def test_the_night_after_a_killed_worker_is_a_night_like_any_other(real: QemuGuest, make_run: MakeRun) -> None:
    with Player(make_run(root=real.root, vm_job=STOCK, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        player.send_signal(signal.SIGKILL)
        player.finish()
    assert len(block_jobs(real)) == 2  # on a node they go on too
    played = play(make_run(root=real.root, vm_job=STOCK))
    assert played.exit_code == 0
    assert names(played) == FROZE_BY_ITSELF


@pytest.mark.rig
def test_a_real_guests_agent_that_is_held_is_backed_up_without_a_freeze(real: QemuGuest, make_run: MakeRun) -> None:
    with open_agent(real.qga, Deadline.after(LONG_S)):
        played = play(make_run(root=real.root, vm_job=STOCK, ping_patience_s=SHORT_S))
    assert played.exit_code == 0
    assert NOT_RUNNING in played.task_log


def _debugfs(image: str, request: str) -> str:
    """By e2fsprogs, which the guest's disks were made with. The image stays as it is."""
    tool = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin")
    assert tool is not None, "debugfs is in the same package as mkfs.ext4"
    done = subprocess.run(
        [tool, "-c", "-R", request, image], stdout=subprocess.PIPE, text=True, timeout=LONG_S, check=True
    )
    return done.stdout
