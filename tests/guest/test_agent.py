"""The agent's client against agents that misbehave, and a freeze that hangs while the connection is held."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pvehook.contract.guest_facts import Filesystem
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, GuestError, Refused, TimedOut, Unreachable
from pvehook.guest.agent import AgentConnection, open_agent
from tests.guest.hostile import NASTY, Script, agent_that_returns, agent_that_sends, peer, read_line, sync
from tests.guest_files import SimulatedGuest

SHORT_S = 0.1
COMMAND = {"name": "guest-ping", "enabled": True, "success-response": True}
ROOT = {"name": "sda1", "mountpoint": "/", "type": "ext4", "disk": [], "used-bytes": 1, "total-bytes": 2}

Question = Callable[[AgentConnection, Deadline], object]
QUESTIONS: dict[str, Question] = {
    "guest-ping": lambda agent, deadline: agent.ping(deadline),
    "guest-info": lambda agent, deadline: agent.guest_info(deadline),
    "guest-get-fsinfo": lambda agent, deadline: agent.get_fsinfo(deadline),
    "guest-fsfreeze-status": lambda agent, deadline: agent.fsfreeze_status(deadline),
    "guest-fsfreeze-freeze": lambda agent, deadline: agent.fsfreeze_freeze(None, deadline),
    "guest-fsfreeze-freeze-list": lambda agent, deadline: agent.fsfreeze_freeze(["/"], deadline),
    "guest-fsfreeze-thaw": lambda agent, deadline: agent.fsfreeze_thaw(deadline),
    "guest-file-open": lambda agent, deadline: agent.file_open("/proc/stat", deadline),
    "guest-file-seek": lambda agent, deadline: agent.file_seek_end(1000, deadline),
    "guest-file-read": lambda agent, deadline: agent.file_read(1000, 1, deadline),
    "guest-file-close": lambda agent, deadline: agent.file_close(1000, deadline),
}
every_question = pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())


def ask(tmp_path: Path, script: Script, question: Question, seconds: float = 30) -> object:
    deadline = Deadline.after(seconds)
    with peer(str(tmp_path), script) as path, open_agent(path, deadline) as agent:
        return question(agent, deadline)


def test_what_others_left_behind_is_passed_over(tmp_path: Path) -> None:
    def script(client: socket.socket) -> None:
        client.sendall(b'{"return": 3}\n{"error": {"class": "GenericError", "desc": "stray \'\\uFFFD\'"}}\n')
        client.sendall(b'\xff{"return": 12345}\n')  # the sync of somebody who gave up
        client.sendall(b"\xff\xff[[[[\n" + b'{"return": "half an answ')
        sync(client)
        client.sendall(b'{"return": "frozen"}\n')

    assert ask(tmp_path, script, QUESTIONS["guest-fsfreeze-status"]) == "frozen"


def test_an_agent_that_is_not_there_times_out(tmp_path: Path) -> None:
    # QEMU listens all the same: connecting says nothing about the agent.
    with pytest.raises(TimedOut):
        ask(tmp_path, lambda client: None, QUESTIONS["guest-ping"], seconds=SHORT_S)


@pytest.mark.parametrize("wrong", [b'\xff{"return": 7}\n', b'\xff{"return": true}\n', b'\xff{"return": "ID"}\n'])
def test_a_sync_with_a_wrong_id_is_not_ours(tmp_path: Path, wrong: bytes) -> None:
    with pytest.raises(TimedOut):
        ask(tmp_path, lambda client: client.sendall(wrong), QUESTIONS["guest-ping"], seconds=SHORT_S)


def test_our_sync_without_the_mark_before_it_is_not_enough(tmp_path: Path) -> None:
    def script(client: socket.socket) -> None:
        arguments = read_line(client)["arguments"]
        assert isinstance(arguments, dict)
        client.sendall(json.dumps({"return": arguments["id"]}).encode() + b"\n")

    with pytest.raises(TimedOut):
        ask(tmp_path, script, QUESTIONS["guest-ping"], seconds=SHORT_S)


def test_the_leavings_of_others_are_limited_too(tmp_path: Path) -> None:
    def script(client: socket.socket) -> None:
        while True:
            client.sendall(b'{"return": {}}\n' * 1000)

    with pytest.raises(BadReply, match="longer than"):
        ask(tmp_path, script, QUESTIONS["guest-ping"])


@every_question
def test_no_answer_times_out(tmp_path: Path, question: Question) -> None:
    with pytest.raises(TimedOut):
        ask(tmp_path, sync, question, seconds=SHORT_S)


@every_question
def test_a_closed_connection_is_unreachable(tmp_path: Path, question: Question) -> None:
    def script(client: socket.socket) -> None:
        agent_that_sends(b'{"ret')(client)
        client.shutdown(socket.SHUT_WR)

    with pytest.raises(Unreachable, match="hung up"):
        ask(tmp_path, script, question)


@every_question
@pytest.mark.parametrize(
    "data", [b"\n", b"7\n", b"{}\n", b'{"return": ' + b"[" * 9000 + b"\n", b'{"error": 7}\n', b"\xff\n"]
)
def test_what_is_no_answer_is_a_bad_reply(tmp_path: Path, question: Question, data: bytes) -> None:
    with pytest.raises(BadReply):
        ask(tmp_path, agent_that_sends(data), question)


@every_question
def test_a_refusal_names_the_command_class_and_text_on_one_line(tmp_path: Path, question: Question) -> None:
    refusal = json.dumps({"error": {"class": NASTY, "desc": NASTY}}).encode() + b"\n"
    with pytest.raises(Refused, match=r"guest-\S+: refused: a\\nb.*: a\\nb") as caught:
        ask(tmp_path, agent_that_sends(refusal), question)
    assert str(caught.value).isprintable()


WRONG: dict[str, list[object]] = {
    "guest-info": [
        *(7, [], {}, {"version": "10.0.2"}, {"version": 10, "supported_commands": []}),
        {"version": "10.0.2", "supported_commands": [COMMAND] * 9000},
        *({"version": "10.0.2", "supported_commands": [{**COMMAND, "enabled": x}]} for x in (1, None, NASTY)),
        {"version": "10.0.2", "supported_commands": [{"enabled": True}]},
    ],
    "guest-get-fsinfo": [
        *(7, {}, "x", [7], [{}], [[ROOT]], [ROOT] * 9000, [{**ROOT, "type": None}]),
        *([{**ROOT, "mountpoint": x}] for x in (7, None, ["/"], "/" * 5000)),
    ],
    "guest-fsfreeze-status": [7, None, {}, [], "", "Frozen", True, NASTY, {NASTY: NASTY}],
    "guest-fsfreeze-freeze": [None, {}, "1", -1, 1.0, True, [NASTY]],
    "guest-fsfreeze-freeze-list": [None, {}, "1", -1, 1.0, True, NASTY],
    "guest-fsfreeze-thaw": [None, {}, "1", -1, 1.0, False, NASTY],
    "guest-file-open": [None, {}, "1000", -1, 1e3, True, 2**63, [NASTY]],
    "guest-file-read": [None, 7, [], {}, NASTY, *({"buf-b64": x} for x in (7, None, "%", "A", "A" * 5000, NASTY))],
}


@pytest.mark.parametrize(("command", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_an_answer_of_a_wrong_shape_is_a_bad_reply(tmp_path: Path, command: str, value: object) -> None:
    with pytest.raises(BadReply, match=command) as caught:
        ask(tmp_path, agent_that_returns(value), QUESTIONS[command])
    assert str(caught.value).isprintable()


def test_a_mountpoint_comes_through_exactly_because_a_freeze_must_name_it_exactly(tmp_path: Path) -> None:
    entry = {**ROOT, "mountpoint": NASTY}
    seen = ask(tmp_path, agent_that_returns([entry]), QUESTIONS["guest-get-fsinfo"])
    assert seen == (Filesystem(name="sda1", mountpoint=NASTY, type="ext4"),)


def test_answers_reach_the_questions_they_belong_to(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        deadline = Deadline.after(30)
        with open_agent(guest.qga_path, deadline) as agent:
            freeze = agent.send_freeze(None, deadline)
            refused = agent.send("guest-get-fsinfo", deadline=deadline)
            thaw = agent.send_thaw(deadline)
            assert agent.receive_count(thaw, deadline) == 2
            with pytest.raises(Refused, match="frozen state"):
                agent.receive(refused, deadline=deadline)
            assert agent.receive_count(freeze, deadline) == 2


def test_a_thaw_waits_behind_a_freeze_that_hangs_and_runs_when_it_ends(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        deadline = Deadline.after(30)
        guest.stick("freeze")
        with open_agent(guest.qga_path, deadline) as agent:
            freeze = agent.send_freeze(None, deadline)
            with pytest.raises(TimedOut):
                agent.receive_count(freeze, Deadline.after(SHORT_S))
            thaw = agent.send_thaw(deadline)
            guest.unstick("freeze")
            assert agent.receive_count(thaw, deadline) == 2
            assert agent.receive_count(freeze, deadline) == 2
            assert agent.fsfreeze_status(deadline) == "thawed"


def test_a_freeze_whose_client_went_away_still_freezes(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        deadline = Deadline.after(30)
        guest.stick("freeze")
        with open_agent(guest.qga_path, deadline) as agent:
            agent.send_freeze(["/home"], deadline)
        guest.unstick("freeze")
        assert guest.wait_until(lambda: guest.frozen_mountpoints == {"/home"}, timeout_s=30)
        with open_agent(guest.qga_path, deadline) as agent:  # the stray answer is not taken for ours
            assert agent.fsfreeze_status(deadline) == "frozen"
            assert agent.fsfreeze_thaw(deadline) == 1


def test_an_administrators_block_is_seen_in_the_info_and_in_the_answer(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        guest.refused["guest-fsfreeze-freeze"] = "blocked"
        deadline = Deadline.after(30)
        with open_agent(guest.qga_path, deadline) as agent:
            commands = agent.guest_info(deadline).commands
            assert not commands["guest-fsfreeze-freeze"]
            assert commands["guest-fsfreeze-thaw"]
            with pytest.raises(GuestError, match="blocked"):
                agent.fsfreeze_freeze(None, deadline)
