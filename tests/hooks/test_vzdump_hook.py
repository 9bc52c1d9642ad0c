"""Who may call, and what a call may contain: nothing that comes in at the socket stops the daemon or fails a backup."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from pvehook.contract.call import REQUEST_LIMIT_BYTES
from pvehook.rehearsal.vzdump.player import Player, play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue import allowances
from pvehook.rescue.last_good import store_config
from pvehook.rules.admission import Allowance
from pvehook.settings import Config, WindowConfig
from tests.node_under_test import AS_WORKER, NEVER, NodeUnderTest

WAIT_S = 30.0


def send(node: NodeUnderTest, data: bytes) -> bytes:
    """What comes back for `data`; b"" when the connection was only closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(node.node.hook_socket)
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed before it had read everything, which is its right
        return answer


def request(*argv: str, worker: int, **env: str) -> bytes:
    return json.dumps({"v": 1, "argv": argv, "env": env, "worker": worker}).encode() + b"\n"


def call(node: NodeUnderTest, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The real hook, with a shell as its worker."""
    environment = {"LC_ALL": "C", **(env or {})}
    return subprocess.run(
        [*AS_WORKER, node.hook, *argv], env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S
    )


def assert_serves(node: NodeUnderTest) -> None:
    """The next hook is answered, and by the daemon: without one it would say so."""
    assert node.daemon.poll() is None
    done = call(node, "job-init")
    assert (done.returncode, done.stdout) == (0, "")


# Who


def test_only_root_can_call(node: NodeUnderTest) -> None:
    socket_file = os.stat(node.node.hook_socket)
    assert stat.S_IMODE(socket_file.st_mode) == 0o600
    assert socket_file.st_uid == os.geteuid()
    assert stat.S_IMODE(os.stat(node.node.run_dir).st_mode) == 0o700


def test_the_directory_is_roots_alone_also_when_an_exception_came_first(node_without_daemon: NodeUnderTest) -> None:
    allowances.grant(node_without_daemon.node, Allowance("a1", (), time.time() + 60, "r", "anna"))
    node_without_daemon.start_daemon()
    assert stat.S_IMODE(os.stat(node_without_daemon.node.run_dir).st_mode) == 0o700


@pytest.mark.parametrize("claimed", ["itself", "nobody"])
def test_who_is_not_a_child_of_its_worker_is_not_served(node: NodeUnderTest, claimed: str) -> None:
    node.configure(NEVER)  # were it served, it would be refused
    worker = {"itself": os.getpid(), "nobody": 2**22 + 1}[claimed]
    head, line = send(node, request("job-init", worker=worker)).decode().splitlines()
    assert head == "not-served"
    assert line.startswith("this call was not served: process ")
    assert f"says it serves worker {worker}, but its parent is {os.getppid()}" in line
    refused = node.wait_for_event("call-refused")
    assert refused["PRIORITY"] == "4"
    assert not os.path.exists(node.root / "run/pvehook/jobs")


def test_who_is_a_child_of_its_worker_is_served(node: NodeUnderTest) -> None:
    """The pair of the test above, and it shows that a refusal reaches the hook."""
    node.configure(NEVER)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().read())"
    )
    line = request("job-init", worker=os.getpid()).decode().strip()
    command = [sys.executable, "-I", "-c", code, node.node.hook_socket, line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert done.stdout.startswith("taken-up\nexit 1\npvehook: this run is refused")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's call can only be tried by root")
def test_another_user_is_not_served_even_if_it_reaches_the_socket(node: NodeUnderTest) -> None:
    os.chmod(node.root, 0o755)
    os.chmod(node.node.run_dir, 0o755)
    os.chmod(node.node.hook_socket, 0o666)
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().read())"
    )
    line = request("job-init", worker=os.getpid()).decode().strip()
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code, node.node.hook_socket, line],
        user=65534,
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    assert "belongs to user 65534, only root may call" in done.stdout


# What

DEEP = b'{"v":1,"argv":' + b"[" * 30_000 + b"]" * 30_000 + b"}\n"


NO_REQUESTS = [
    b"",
    b"\n",
    b'{"v":1,"argv":["job-init"],',
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00\xff\xfe" * 1000 + b"\n",
    b"x" * (1 << 20) + b"\n",
    b"x" * REQUEST_LIMIT_BYTES + b"\n",
    b'{"v":1,"argv":["' + b"a" * (1 << 20) + b'"],"env":{},"worker":1}\n',
    DEEP,
    b"[" * 60_000 + b"\n",
    b'{"v":1,"argv":["job-init"],"env":{},"worker":' + b"9" * 5000 + b"}\n",
    b'{"v":1,"argv":["job-init"],"env":{},"worker":1}\n{"v":1}\n',
    b'{"v":1,"argv":["\\ud800"],"env":{"HOSTNAME":"\\udfff"},"worker":1}\n',
]


def test_what_is_no_request_gets_a_line_or_nothing_and_the_next_is_served(node: NodeUnderTest) -> None:
    for data in NO_REQUESTS:
        lines = send(node, data).splitlines()
        assert len(lines) in (0, 2), data[:60]
        if lines:
            assert lines[0] == b"not-served"
            assert lines[1].startswith(b"this call was not served: ")
            assert len(lines[1]) < 300, data[:60]
        assert_serves(node)
    node.wait_for_event("call-refused")
    assert "fault" not in node.event_names()


def test_one_who_says_nothing_holds_up_nobody(node: NodeUnderTest) -> None:
    """More of them than are served at once: the hook then helps itself, and the daemon is free again soon."""
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    try:
        for each in silent:
            each.settimeout(WAIT_S)
            each.connect(node.node.hook_socket)
        node.wait_for_event("too-many-calls")
        assert call(node, "job-init").returncode == 0
        for each in silent:
            while each.recv(4096):  # until it is sent away
                pass
    finally:
        for each in silent:
            each.close()
    assert_serves(node)


def test_forty_calls_at_once(node: NodeUnderTest) -> None:
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    hooks = [
        subprocess.Popen(
            [*AS_WORKER, node.hook, "job-init"], env={"LC_ALL": "C"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(40)
    ]
    answers = [each.communicate(timeout=WAIT_S)[0].decode() for each in hooks]
    assert [each.returncode for each in hooks] == [0] * 40
    # One that was not answered has helped itself.
    assert all(answer == "" or "the daemon does not answer" in answer for answer in answers)
    assert "" in answers
    assert_serves(node)


# Odd calls of the hook itself


ODD_CALLS: list[tuple[str, ...]] = [
    (),
    ("",),
    ("guest-teleport", "snapshot", "101"),
    ("job-teleport",),
    ("\x1b[2J\n",),
    ("log-end", "snapshot", "web"),
    ("log-end", "snapshot", "-1"),
    ("log-end", "snapshot", "99999999999999999999"),
    ("log-end", "snapshot"),
    ("job-end", "with", "101", "more"),
    (os.fsdecode(b"\xff\xfe"), "snapshot", "101"),
]


@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "no daemon"])
def test_calls_that_vzdump_never_makes_fail_nothing(node_without_daemon: NodeUnderTest, has_daemon: bool) -> None:
    node = node_without_daemon
    node.configure("io_priority: {mode: off}\n")  # this process is the worker here, and is to stay as it is
    store_config(node.node, Config()._replace(io_priority=Config().io_priority._replace(mode="off")))
    if has_daemon:
        node.start_daemon()
    for argv in ODD_CALLS:
        done = call(node, *argv)
        assert done.returncode == 0, argv
        assert done.stderr == "", argv
        assert all(line.isprintable() for line in done.stdout.splitlines()), argv
        assert "fault in" not in done.stdout, argv
    assert "fault" not in node.event_names()


def test_a_phase_of_a_newer_proxmox_is_noted(node: NodeUnderTest) -> None:
    assert call(node, "guest-teleport", "snapshot", "101").stdout == ""
    assert "'guest-teleport'" in node.wait_for_event("phase-unknown")["MESSAGE"]


NAMES = {
    "web\n\x1b[2Jok": "web\\n\\x1b[2Jok",
    "\u202egnp.exe": "\\u202egnp.exe",
    "a\u2028b\x85c\rd\x08e": "a\\u2028b\\x85c\\rd\\x08e",
    "münchen": "münchen",
    os.fsdecode(b"latin-\xfc"): "latin-\\udcfc",
}


def test_a_guests_name_cannot_act_on_who_reads_of_it(node: NodeUnderTest) -> None:
    """vzdump prints the name itself too, as it likes; what counts here is what the hook prints of it."""
    played = play(node.run(*(Guest(101 + number, name=name) for number, name in enumerate(NAMES))))
    log_ends = [each for each in played.calls if each.argv[0] == "log-end"]
    assert [each.env["HOSTNAME"] for each in log_ends] == list(NAMES)
    for number, (log_end, shown) in enumerate(zip(log_ends, NAMES.values(), strict=True)):
        title = f"VM {101 + number} ({shown}): "
        assert log_end.lines
        assert all(line.startswith(f"pvehook: {title}") for line in log_end.lines)
        done = node.wait_for_event("guest-done", vmid=str(101 + number))
        assert done["PVEHOOK_GUEST"] == shown
        assert done["MESSAGE"].startswith(f"{title}backup ok")
    (job_end,) = [each for each in played.calls if each.argv[0] == "job-end"]
    rows = [line for line in job_end.lines if line.startswith("VM ")]
    assert len(rows) == len(NAMES)
    assert all(line.isascii() and line.isprintable() for line in job_end.lines)


def test_a_name_without_end_is_cut(node: NodeUnderTest) -> None:
    played = play(node.run(Guest(101, name="n" * 10_000)))
    assert played.exit_code == 0
    assert len(node.wait_for_event("guest-done", vmid="101")["PVEHOOK_GUEST"]) == 64


# What cannot be written down


@pytest.mark.parametrize("phase", ["job-init", "job-start", "backup-start"])
def test_a_refusal_stands_also_when_it_cannot_be_written_down(node: NodeUnderTest, phase: str) -> None:
    """A full or broken /run costs what must survive the daemon, not the answer."""
    node.configure(NEVER)
    (node.root / "run/pvehook/jobs").write_text("in the way")
    done = call(node, phase, *(("snapshot", "101") if phase == "backup-start" else ()))
    assert "is refused: it is" in done.stdout
    assert done.returncode == 1
    if phase != "job-init":  # which leaves no run behind, and so nothing to write down
        assert node.wait_for_event("record-not-written")["PRIORITY"] == "3"


def test_a_run_that_cannot_be_written_down_is_backed_up_and_told_to_its_end(node: NodeUnderTest) -> None:
    (node.root / "run/pvehook/jobs").write_text("in the way")
    played = play(node.run(Guest(101, name="web", archive_s=0.5)))
    assert played.exit_code == 0
    assert any("VM 101 (web): idle I/O priority on" in line for line in played.task_log)
    assert any("VM 101 web ok" in " ".join(line.split()) for line in played.notification)
    assert not any("fault" in line for line in played.task_log)


def test_what_a_killed_daemon_left_half_written_is_not_a_second_job(node: NodeUnderTest) -> None:
    """SIGKILL between writing the new file and putting it in place of the old one."""
    with Player(node.run(pauses=("after job-init",))) as player:
        player.wait_for("after job-init")
        node.kill_daemon()
        jobs = node.root / "run/pvehook/jobs"
        (record,) = jobs.iterdir()
        half = jobs / f"{record.name}.4711.1.new"
        half.write_text(record.read_text())
        before = len(node.journal.events)
        node.start_daemon()
        node.wait_for_event("job-picked-up")
        assert node.event_names()[before:].count("job-picked-up") == 1
        player.go_on()
        assert player.finish().exit_code == 0
    assert list(jobs.iterdir()) == []
