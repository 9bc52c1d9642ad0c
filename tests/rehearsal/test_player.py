"""What vzdump does with a hook besides calling it in order (facts: PVE/VZDump.pm and runs of it)."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvehook.contract.upid import parse_upid
from pvehook.host.node import Node
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.kernel_ioprio import all_idle, io_priorities
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.qmp_client import ask_monitor
from pvehook.rehearsal.vzdump.run import Guest, Run
from tests.guest_files import SimulatedGuest

VM = Guest(101, name="web")
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run in `tmp_path` with a hook of the given shell (or Python) text."""

    def make(body: str = "", *guests: Guest, interpreter: str = "/bin/sh", **how: Any) -> Run:
        hook = tmp_path / "hook"
        hook.write_text(f"#!{interpreter}\n{body}\n")
        hook.chmod(0o755)
        return Run(guests or (VM,), hook=str(hook), root=str(tmp_path), **how)

    return make


def phases(played: Any, vmid: int | None = None) -> list[str]:
    """The phases called, of one guest or of the job."""
    wanted = [] if vmid is None else [str(vmid)]
    return [call.argv[0] for call in played.calls if list(call.argv[2:]) == wanted]


def wait_for_exit(pid: int) -> None:
    """Until the process is gone or a zombie; at most 20 s."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 20)[0], f"process {pid} still runs"
    os.close(pidfd)


# The process that is called


def test_a_hook_finds_what_pve_leaves_it(make_run: MakeRun) -> None:
    body = """
import json, os, sys
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
os.umask(mask := os.umask(0))
ignored = int(next(line for line in open("/proc/self/status") if line.startswith("SigIgn")).split()[1], 16)
print(json.dumps({"stdin": sys.stdin.read(), "cwd": os.getcwd(), "umask": mask, "five": 5 in fds,
    "ttou": bool(ignored >> 21 & 1), "group": os.getpgrp(), "session": os.getsid(0),
    "parent": os.getppid(), "path": os.environ.get("PATH"), "home": os.environ.get("HOME")}))
"""
    with Player(make_run(body, interpreter=sys.executable + " -I")) as player:
        seen = json.loads(player.finish().calls[0].lines[0])
    assert seen == {
        "stdin": "",
        "cwd": "/",
        "umask": 0o022,
        "five": True,
        "ttou": True,
        "group": player.pid,
        "session": player.pid,
        "parent": player.pid,
        "path": None,
        "home": None,
    }


def test_the_worker_bears_its_upid(make_run: MakeRun) -> None:
    with Player(make_run(upid_id="101", pauses=("before job-init",))) as player:
        player.wait_for("before job-init")
        title = Path(f"/proc/{player.pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
        started = int(Path(f"/proc/{player.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert title.startswith("task UPID:pve:")
        upid = parse_upid(title)
        assert upid is not None
        _, _, pid, start_ticks, _, _, vmid, user, _ = upid.text.split(":")
        assert (int(pid, 16), int(start_ticks, 16), vmid, user) == (player.pid, started, "101", "root@pam")
        player.go_on()
        assert player.finish().upid == upid.text


def test_a_backup_to_a_pbs_has_no_file(make_run: MakeRun, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("@1795373786")
    played = play(make_run(storeid="pbs", to_pbs=True, clock_file=str(clock)))
    env = next(call.env for call in played.calls if call.argv[0] == "backup-end")
    assert env["TARGET"] == "vm/101/2026-11-22T18:56:26Z"
    assert "LOGFILE" not in env
    assert "DUMPDIR" not in env


# Its output


def test_both_streams_are_split_as_pve_splits_them(make_run: MakeRun) -> None:
    body = r"""[ $1 = pre-stop ] || exit 0
printf 'a\rb\010\010c\r\n0\n\n 0\n00\n'; printf 'raw \377 byte' >&2"""
    played = play(make_run(body))
    at = played.task_log.index("INFO: VM Name: web")
    shown = played.task_log[at + 1 : at + 7]
    assert sorted(shown, key=os.fsencode)[:5] == ["INFO:  0", "INFO: 00", "INFO: a", "INFO: b", "INFO: c"]
    assert os.fsencode(sorted(shown, key=os.fsencode)[5]) == b"INFO: raw \xff byte"
    assert not any(line in ("INFO: 0", "INFO: ", "INFO:") for line in played.task_log)


def test_a_line_of_two_million_bytes_is_one_line(make_run: MakeRun) -> None:
    played = play(make_run('print("x" * 2_000_000)', interpreter=sys.executable))
    assert played.calls[0].lines == ("x" * 2_000_000,)


def test_where_output_goes(make_run: MakeRun, tmp_path: Path) -> None:
    played = play(make_run("echo said in $1"))
    in_guest_log = next((tmp_path / "var/lib/vz/dump").glob("*.log")).read_text()
    assert {line.partition(" INFO: ")[2] for line in played.notification} == {
        "said in job-init",
        "said in job-start",
        "said in job-end",
    }
    assert "INFO: said in pre-stop" in in_guest_log
    assert "said in log-end" not in in_guest_log
    assert "INFO: said in log-end" in played.task_log


def test_a_child_that_keeps_stdout_holds_the_phase(make_run: MakeRun, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hook-pid")
    os.mkfifo(tmp_path / "let-go")
    body = f"""[ $1 = pre-stop ] || exit 0
( read word < {tmp_path}/let-go; echo child said $word ) &
echo $$ > {tmp_path}/hook-pid"""
    with Player(make_run(body)) as player:
        hook_pid = int((tmp_path / "hook-pid").read_text())
        wait_for_exit(hook_pid)
        player.wait_until(lambda event: event["event"] == "calling" and event["argv"][0] == "pre-stop", "pre-stop")
        assert phases(player.so_far(), 101) == ["backup-start"]
        (tmp_path / "let-go").write_text("late\n")
        played = player.finish()
    lines = next(call.lines for call in played.calls if call.argv[0] == "pre-stop")
    assert lines == ("child said late",)


# Its exit code


def test_a_failing_hook_is_named_with_its_code(make_run: MakeRun) -> None:
    run = make_run("[ $1 = pre-stop ] && exit 3; exit 0")
    played = play(run)
    failed = f"command '{run.hook} pre-stop snapshot 101' failed: exit code 3"
    assert f"ERROR: Backup of VM 101 failed - {failed}" in played.task_log
    assert played.task_log[-1] == "TASK ERROR: job errors"
    assert played.exit_code == 255


def test_a_hook_ended_by_a_signal_is_named_with_it(make_run: MakeRun) -> None:
    run = make_run("[ $1 = backup-start ] && kill -9 $$; exit 0")
    played = play(run)
    failed = f"command '{run.hook} backup-start snapshot 101' failed: got signal 9"
    assert f"ERROR: Backup of VM 101 failed - {failed}" in played.task_log
    assert phases(played, 101) == ["backup-start", "backup-abort", "log-end"]


def test_log_end_can_only_warn(make_run: MakeRun) -> None:
    played = play(make_run("[ $1 = log-end ] && exit 1; exit 0"))
    assert played.task_log[-1] == "TASK WARNINGS: 1"
    assert played.exit_code == 0


@pytest.mark.parametrize("mode", [0o644, None], ids=["not executable", "missing"])
def test_a_script_that_cannot_be_run_ends_the_job(make_run: MakeRun, mode: int | None) -> None:
    run = make_run()
    if mode is None:
        os.unlink(run.hook)
    else:
        os.chmod(run.hook, mode)
    played = play(run)
    assert played.calls == ()
    assert played.task_log[-1].startswith("TASK ERROR: The hook script ")
    assert played.exit_code == 255


# Priorities


def test_pve_sets_its_own_priority_after_job_init(make_run: MakeRun) -> None:
    body = "[ $1 = job-init ] && /usr/bin/ionice -c3 -p $PPID; exit 0"
    with Player(make_run(body, ionice=5, pauses=("after job-init", "before job-start"))) as player:
        player.wait_for("after job-init")
        assert all_idle(player.pid)
        player.go_on()
        player.wait_for("before job-start")
        assert set(io_priorities(player.pid).values()) == {(2, 5)}
        player.go_on()
        player.finish()


def test_children_inherit_the_workers_priority(make_run: MakeRun) -> None:
    container = Guest(102, kind="lxc", name="mail")
    pauses = ("archive 101", "archive 102")
    with Player(make_run("", VM, container, ionice=8, compress="zstd", pauses=pauses)) as player:
        player.wait_for("archive 101")
        assert set(player.children(101)) == {"zstd"}
        assert all_idle(player.children(101)["zstd"])
        player.go_on()
        player.wait_for("archive 102")
        assert set(player.children(102)) == {"zstd", "tar"}
        assert all(all_idle(pid) for pid in player.children(102).values())
        player.go_on()
        played = player.finish()
    assert played.exit_code == 0


def test_the_trap_a_vm_that_vzdump_starts_stays_idle(make_run: MakeRun, tmp_path: Path) -> None:
    with Player(make_run("", VM, ionice=8, mode="stop")) as player:
        player.finish()
        pid = player.started_vm(101)
        assert fake_vm_process.running_pid(Node(str(tmp_path)), 101) == pid
        assert len(os.listdir(f"/proc/{pid}/task")) > 1
        assert all_idle(pid)
    wait_for_exit(pid)


def test_a_vm_that_was_down_is_down_again(make_run: MakeRun, tmp_path: Path) -> None:
    with Player(make_run("", Guest(101, state="stopped"), pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        pid = player.started_vm(101)
        assert fake_vm_process.running_pid(Node(str(tmp_path)), 101) == pid
        player.go_on()
        played = player.finish()
        assert fake_vm_process.running_pid(Node(str(tmp_path)), 101) is None
    assert "INFO: stopping kvm after backup task" in played.task_log


# Signals and the other ways an archive ends


def test_sigterm_while_polling_ends_the_job(make_run: MakeRun) -> None:
    run = make_run("", VM, Guest(102), compress="zstd", pauses=("archive 101",))
    with Player(run) as player:
        player.wait_for("archive 101")
        player.send_signal(signal.SIGTERM)
        played = player.finish()
        wait_for_exit(player.children(101)["zstd"])
    assert phases(played, 101)[-2:] == ["backup-abort", "log-end"]
    assert phases(played, 102) == []
    assert phases(played)[-1] == "job-abort"
    assert "ERROR: Backup job failed - interrupted by signal" in played.task_log
    assert played.exit_code == 255


def test_sigterm_in_a_hook_fails_only_that_guest_and_leaves_the_hook(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("in-hook", "go", "answer"):
        os.mkfifo(tmp_path / name)
    body = f"""[ "$1 $3" = "pre-stop 101" ] || exit 0
echo x > {tmp_path}/in-hook
read word < {tmp_path}/go; echo lives > {tmp_path}/answer"""
    with Player(make_run(body, VM, Guest(102))) as player:
        assert (tmp_path / "in-hook").read_text() == "x\n"
        player.send_signal(signal.SIGTERM)
        played = player.finish()
        (tmp_path / "go").write_text("on\n")
        assert (tmp_path / "answer").read_text() == "lives\n"
    assert phases(played, 101) == ["backup-start", "backup-abort", "log-end"]  # pre-stop never came to an end
    assert phases(played, 102)[-2:] == ["backup-end", "log-end"]
    assert phases(played)[-1] == "job-end"
    assert any(line.endswith("pre-stop snapshot 101' failed: interrupted by signal") for line in played.task_log)


def test_stop_in_the_gui_reaches_the_hook_too(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("hook-pid", "never"):
        os.mkfifo(tmp_path / name)
    body = f'[ "$1" = pre-stop ] || exit 0; echo $$ > {tmp_path}/hook-pid; read word < {tmp_path}/never'
    with Player(make_run(body)) as player:
        hook_pid = int((tmp_path / "hook-pid").read_text())
        os.killpg(player.pid, signal.SIGTERM)
        wait_for_exit(hook_pid)
        played = player.finish()
    assert phases(played, 101)[-2:] == ["backup-abort", "log-end"]
    assert played.exit_code == 255


def test_a_killed_worker_calls_nobody(make_run: MakeRun) -> None:
    with Player(make_run("", VM, compress="zstd", pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        player.send_signal(signal.SIGKILL)
        played = player.finish()
        wait_for_exit(player.children(101)["zstd"])
    assert played.exit_code == -signal.SIGKILL
    assert phases(played, 101)[-1] == "post-restart"


def test_a_cancelled_backup_job_fails_its_guest_only(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("", VM, Guest(102), compress="zstd", pauses=("archive 101",))
    sockets = tmp_path / "var/run/qemu-server"
    sockets.mkdir(parents=True)
    with SimulatedGuest(str(sockets), 101), Player(run) as player:
        player.wait_for("archive 101")
        ask_monitor(Node(str(tmp_path)), 101, "backup-cancel")
        played = player.finish()
    assert any(line.startswith("ERROR: Backup of VM 101 failed - backup cancel") for line in played.task_log)
    assert phases(played, 101)[-2:] == ["backup-abort", "log-end"]
    assert phases(played, 102)[-2:] == ["backup-end", "log-end"]


def test_an_archive_ends_with_the_vms_backup_job(make_run: MakeRun, tmp_path: Path) -> None:
    sockets = tmp_path / "var/run/qemu-server"
    sockets.mkdir(parents=True)
    with SimulatedGuest(str(sockets), 101) as guest, Player(make_run()) as player:
        assert guest.wait_until(lambda: any(heard.command == "query-backup" for heard in guest.heard), 20)
        assert phases(player.so_far(), 101)[-1] == "post-restart"
        guest.finish_backup()
        assert player.finish().exit_code == 0


def test_a_second_job_gets_no_further_than_its_init(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(f"echo $PPID $1 >> {tmp_path}/order", VM, pauses=("archive 101",))
    second_run = make_run(f"echo $PPID $1 >> {tmp_path}/order", Guest(102))
    with Player(run) as first:
        first.wait_for("archive 101")
        with Player(second_run) as second:
            waiting = "INFO: trying to get global lock - waiting..."
            second.wait_until(lambda event: event.get("line") == waiting, waiting)
            first.go_on()
            assert first.finish().exit_code == 0
            assert second.finish().exit_code == 0
        order = (tmp_path / "order").read_text().splitlines()
    ends = order.index(f"{first.pid} job-end")
    assert order.index(f"{second.pid} job-init") < ends < order.index(f"{second.pid} job-start")
