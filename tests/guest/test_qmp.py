"""QMP against a QEMU that misbehaves, and against a simulated one that does not."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, GuestError, Refused, TimedOut, Unreachable
from pvehook.guest.qmp import open_qmp
from tests.guest.hostile import (
    GREETING,
    NASTY,
    Script,
    peer,
    qmp_that_returns,
    qmp_that_sends,
    read_line,
)
from tests.guest_files import SimulatedGuest

SHORT_S = 0.1
RUNNING = b'{"return": {"status": "running", "running": true}, "id": ID}\r\n'
JOB = {"device": "drive-scsi0", "type": "backup", "offset": 1, "len": 2, "speed": 0}


def ask_status(tmp_path: Path, script: Script, seconds: float = 30) -> str:
    deadline = Deadline.after(seconds)
    with peer(str(tmp_path), script) as path, open_qmp(path, deadline) as qmp:
        return qmp.query_status(deadline)


def ask_jobs(tmp_path: Path, script: Script) -> tuple[BlockJob, ...]:
    deadline = Deadline.after(30)
    with peer(str(tmp_path), script) as path, open_qmp(path, deadline) as qmp:
        return qmp.query_block_jobs(deadline)


def test_events_and_answers_to_others_are_passed_over(tmp_path: Path) -> None:
    others = b'{"event": "STOP"}\r\n{"return": {}, "id": 99}\r\n{"return": {}, "id": true}\r\n{"return": {}}\r\n'
    assert ask_status(tmp_path, qmp_that_sends(others + RUNNING)) == "running"


def test_only_answers_to_others_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(TimedOut):
        ask_status(tmp_path, qmp_that_sends(b'{"return": {}, "id": "ID"}\r\n'), seconds=SHORT_S)


def test_without_a_greeting_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(TimedOut):
        ask_status(tmp_path, lambda client: None, seconds=SHORT_S)


def test_a_peer_that_greets_otherwise_is_no_qmp(tmp_path: Path) -> None:
    with pytest.raises(BadReply, match="no QMP"):
        ask_status(tmp_path, lambda client: client.sendall(b'{"return": {}}\r\n'))


def test_half_an_answer_times_out(tmp_path: Path) -> None:
    with pytest.raises(TimedOut):
        ask_status(tmp_path, qmp_that_sends(RUNNING[:20]), seconds=SHORT_S)


def test_half_an_answer_and_a_closed_connection_is_unreachable(tmp_path: Path) -> None:
    def script(client: socket.socket) -> None:
        qmp_that_sends(RUNNING[:20])(client)
        client.shutdown(socket.SHUT_WR)

    with pytest.raises(Unreachable, match="hung up"):
        ask_status(tmp_path, script)


@pytest.mark.parametrize(
    "value",
    [
        *(7, None, [], "running", {}, {"status": 7, "running": True}, {"status": None, "running": True}),
        *({"status": [NASTY], "running": NASTY}, {"status": "x" * 5000, "running": True}),
    ],
)
def test_a_status_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-status") as caught:
        ask_status(tmp_path, qmp_that_returns(value))
    assert str(caught.value).isprintable()


def test_an_answer_without_a_result_is_a_bad_reply(tmp_path: Path) -> None:
    with pytest.raises(BadReply, match="neither"):
        ask_status(tmp_path, qmp_that_sends(b'{"id": ID}\r\n'))


def test_block_jobs_are_read(tmp_path: Path) -> None:
    assert ask_jobs(tmp_path, qmp_that_returns([])) == ()
    (tmp_path / "101.sock").unlink()
    assert ask_jobs(tmp_path, qmp_that_returns([JOB])) == (BlockJob("drive-scsi0", "backup", 1, 2, 0),)


@pytest.mark.parametrize(
    "value",
    [
        *({}, [7], [{}], [[JOB]], [JOB] * 9000, [{**JOB, "device": None}]),
        *([{**JOB, "offset": wrong}] for wrong in (-1, 1.5, True, "1", None, [NASTY])),
    ],
)
def test_block_jobs_of_a_wrong_shape_are_a_bad_reply(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadReply, match="query-block-jobs") as caught:
        ask_jobs(tmp_path, qmp_that_returns(value))
    assert str(caught.value).isprintable()


def test_a_refusal_names_class_and_text_on_one_line(tmp_path: Path) -> None:
    refusal = json.dumps({"class": "GenericError", "desc": NASTY}).encode()
    with pytest.raises(Refused, match=r"query-status: refused: GenericError: a\\nb") as caught:
        ask_status(tmp_path, qmp_that_sends(b'{"error": %b, "id": ID}\r\n' % refusal))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("error", ["7", '"text"', "{}", '{"class": 7, "desc": "x"}', '{"class": "GenericError"}'])
def test_a_refusal_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, error: str) -> None:
    with pytest.raises(BadReply, match="error"):
        ask_status(tmp_path, qmp_that_sends(b'{"error": %b, "id": ID}\r\n' % error.encode()))


def test_a_refused_handshake_is_told_as_such(tmp_path: Path) -> None:
    def script(client: socket.socket) -> None:
        client.sendall(GREETING)
        reply = {"error": {"class": "GenericError", "desc": "no"}, "id": read_line(client)["id"]}
        client.sendall(json.dumps(reply).encode() + b"\r\n")

    with pytest.raises(Refused, match="qmp_capabilities: refused"):
        ask_status(tmp_path, script)


def test_a_backup_is_cancelled(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        deadline = Deadline.after(30)
        with open_qmp(guest.qmp_path, deadline) as qmp:
            qmp.execute("backup", {"backup-file": "/dev/fdname/backup"}, deadline=deadline)
            (job,) = qmp.query_block_jobs(deadline)
            assert (job.device, job.type) == ("drive-scsi0", "backup")
        with open_qmp(guest.qmp_path, deadline) as qmp:
            qmp.backup_cancel(deadline)
            assert qmp.query_block_jobs(deadline) == ()
            shown = qmp.execute("query-backup", deadline=deadline)
    assert isinstance(shown, dict)
    assert (shown["status"], shown["errmsg"]) == ("error", "backup canceled")


def test_a_monitor_that_hangs_times_out_and_answers_the_next_time(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        guest.stick("qmp")
        short = Deadline.after(SHORT_S)
        with pytest.raises(TimedOut), open_qmp(guest.qmp_path, short) as qmp:
            qmp.query_status(short)
        guest.unstick("qmp")
        deadline = Deadline.after(30)
        with open_qmp(guest.qmp_path, deadline) as qmp:
            assert qmp.query_status(deadline) == "running"


@pytest.mark.parametrize("data", [b"\xff\xfe\n", b"[[[[\n", b"{}\n", b"\n", b'{"QMP": NaN}\n'])
def test_every_fault_of_a_guest_is_one_family(tmp_path: Path, data: bytes) -> None:
    # The story of a job catches GuestError and goes on; nothing else may come out.
    with pytest.raises(GuestError):
        ask_status(tmp_path, lambda client: client.sendall(data))
