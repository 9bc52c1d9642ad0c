"""Whoever owns the guest owns the agent's answers. Through the real hook and the real daemon: the backup succeeds, the
phases keep their deadlines, somebody reads one clear event, and nothing raw reaches journal or task log."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvehook.rehearsal.vzdump.player import Played, play
from pvehook.rescue.freeze_record import freeze_records
from tests.freeze.test_freeze import VM_CONFIG, WEB, wait_for_no_record
from tests.guest.hostile import NASTY, read_line
from tests.guest_files import SimulatedGuest
from tests.native_freeze import freeze_events
from tests.node_under_test import ALWAYS, NodeUnderTest

PING_PATIENCE_S = 0.4
"""A veto lasts as long as that."""
PVES_OWN_PATIENCE_S = 3.0
"""Where the guest is to be frozen: on a busy machine that takes longer than the patience of a veto's test."""

COMMANDS = (
    *("guest-ping", "guest-info", "guest-get-osinfo", "guest-get-fsinfo"),
    *("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"),
)
INFO = {"version": "10.0.2", "supported_commands": [{"name": each, "enabled": True} for each in COMMANDS]}
FILESYSTEM = {"name": "sda1", "mountpoint": "/", "type": "ext4", "disk": []}

Lie = Callable[[socket.socket, int], None]
"""What is sent instead of the true answer to a command; for a sync with its id."""


class HostileAgent:
    """An agent that serves one client after the other and lies about what it is told to."""

    def __init__(self, path: str, lies: dict[str, Lie]) -> None:
        self.frozen = False
        self.lies = lies
        self._listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(1)
        self._client: socket.socket | None = None
        self._path = path
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.unlink(self._path)
        for end in (self._listener, self._client):
            with contextlib.suppress(OSError, AttributeError):
                end.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]  # None is one of the two errors
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            with self._client, contextlib.suppress(OSError):
                while True:
                    self._answer(self._client, read_line(self._client))

    def _answer(self, client: socket.socket, request: dict[str, Any]) -> None:
        command = request["execute"]
        number = request.get("arguments", {}).get("id", 0)
        answers: dict[str, Any] = {"guest-ping": {}, "guest-info": INFO, "guest-get-osinfo": {"id": "debian"}}
        answers |= {"guest-get-fsinfo": [FILESYSTEM], "guest-sync-delimited": number}
        answers |= {"guest-fsfreeze-freeze": 1, "guest-fsfreeze-thaw": int(self.frozen)}
        if command in ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw"):
            self.frozen = command == "guest-fsfreeze-freeze"
        answers["guest-fsfreeze-status"] = "frozen" if self.frozen else "thawed"
        if command in self.lies:
            self.lies[command](client, number)
        elif command not in answers:  # its counters and its kernel's log, which no test here lies about
            why = {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}
            client.sendall(json.dumps({"error": why}).encode() + b"\n")
        else:
            mark = b"\xff" if command == "guest-sync-delimited" else b""
            client.sendall(mark + json.dumps({"return": answers[command]}).encode() + b"\n")


@contextmanager
def hostile_vm(node: NodeUnderTest, **lies: Lie) -> Iterator[HostileAgent]:
    """A VM whose QEMU is sound and whose agent lies; `guest_info` stands for guest-info."""
    (node.root / "etc/pve/qemu-server/101.conf").write_text(VM_CONFIG)
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, backup_s=0.1) as guest:
        agent = HostileAgent(guest.qga_path, {key.replace("_", "-"): lie for key, lie in lies.items()})
        try:
            yield agent
        finally:
            agent.close()


def night(node: NodeUnderTest, ping_patience_s: float = PING_PATIENCE_S) -> Played:
    """One night with the guest, and what holds whatever its agent does."""
    events_before = len(node.journal.events)
    played = play(replace(node.run(WEB), ping_patience_s=ping_patience_s))
    node.wait_for_event("guest-done", after=events_before, vmid="101")
    assert played.exit_code == 0, played.task_log
    lines = [line for call in played.calls for line in call.lines]
    assert [line for line in lines if "fault" in line or "given up" in line or "does not answer (" in line] == []
    assert [line for line in lines if not line.isprintable()] == []
    table = played.calls[-1].lines  # ours, over several lines
    assert [line for line in lines if line[:9] != "pvehook: " and line not in table] == []
    assert [line for line in played.task_log if not line.isprintable()] == []
    events = [each.fields for each in node.journal.events[events_before:]]
    assert [value for event in events for value in event.values() if not value.isprintable()] == []
    return played


def shown(node: NodeUnderTest) -> list[tuple[str, str]]:
    """Name and text of every event of the guest that somebody should read: warnings and worse. Not its account, which
    is a warning where a freeze held it up for a second."""
    return [
        (each.fields["PVEHOOK_EVENT"], each.fields["MESSAGE"])
        for each in node.journal.events
        if each.fields.get("PVEHOOK_VMID") == "101"
        and int(each.fields["PRIORITY"]) <= 4
        and each.fields["PVEHOOK_EVENT"] != "guest-done"
    ]


def returns(value: object) -> Lie:
    return sends(json.dumps({"return": value}).encode() + b"\n")


def sends(data: bytes) -> Lie:
    return lambda client, number: client.sendall(data)


def silence(client: socket.socket, number: int) -> None:
    pass


def one_gib(client: socket.socket, number: int) -> None:
    client.sendall(b'{"return": "')
    for _ in range(1024):
        client.sendall(b"x" * (1 << 20))


def one_gib_of_lines(client: socket.socket, number: int) -> None:
    for _ in range(1 << 14):
        client.sendall(b'{"return": {}}\n' * (1 << 12))


DEEP = b'{"return": ' + b"[" * 400_000 + b"]" * 400_000 + b"}\n"
ERROR = json.dumps({"error": {"class": NASTY, "desc": NASTY}}).encode() + b"\n"

ANSWERS: dict[str, Lie] = {
    "silence": silence,
    "half": sends(b'{"return": {"version": "10.'),
    "1 GiB": one_gib,
    "deep": sends(DEEP),
    "no JSON": sends(b"\x00\x1b[2J\xfe\n"),
    "no object": sends(b"[]\n"),
    "neither return nor error": sends(b"{}\n"),
    "null": returns(None),
    "true": returns(True),
    "below zero": returns(-1),
    "a fraction": returns(1.5),
    "infinite": sends(b'{"return": Infinity}\n'),
    "400 digits": returns(10**400),
    "5000 digits": sends(b'{"return": ' + b"9" * 5000 + b"}\n"),
    "nasty text": returns(NASTY),
    "a list of lists": returns([[[]]]),
    "an object of nulls": returns({"version": None, "supported_commands": None, "id": None}),
    "a nasty error": sends(ERROR),
    "an error of numbers": sends(b'{"error": {"class": 7, "desc": []}}\n'),
}


WORST = ("silence", "1 GiB", "deep", "null", "nasty text", "a nasty error")
FACTS = (
    *(("guest_info", lie) for lie in ANSWERS),
    *((command, lie) for command in ("guest_get_fsinfo", "guest_fsfreeze_status") for lie in WORST),
)


@pytest.mark.parametrize(("command", "lie"), FACTS)
def test_an_agent_that_does_not_tell_the_facts_is_vetoed(node: NodeUnderTest, command: str, lie: str) -> None:
    with hostile_vm(node, **{command: ANSWERS[lie]}) as agent:
        night(node)
        assert not agent.frozen
    ((name, text),) = shown(node)
    assert name == "freeze-verdict"
    assert "verdict veto: agent-silent: the agent does not answer" in text
    assert node.wait_for_event("freeze-done", vmid="101")["PVEHOOK_CONSISTENCY"] == "crash-consistent"


@pytest.mark.parametrize(
    "lie",
    [
        silence,
        sends(b"\xff"),
        sends(b"\xff{}\n"),
        lambda client, number: client.sendall(b'\xff{"return": %d}\n' % (number + 1)),
        lambda client, number: client.sendall(b'\xff{"return": "%d"}\n' % number),
        sends(b"\xff" + DEEP),
        sends(b"\xff" + ERROR),
        sends(b'{"return": {}}\n' * 100_000),
    ],
    ids=["silence", "half", "no id", "wrong id", "id as a text", "deep", "an error", "1.5 MB"],
)
def test_an_agent_that_cannot_be_synchronised_is_frozen_by_nobody(node: NodeUnderTest, lie: Lie) -> None:
    """PVE is kept from it too: the socket is held although the agent says nothing sensible."""
    with hostile_vm(node, guest_sync_delimited=lie) as agent:
        night(node)
        assert not agent.frozen
    ((name, text),) = shown(node)
    assert name == "freeze-verdict"
    assert "verdict veto: agent-silent: the agent does not answer guest-info" in text
    assert node.wait_for_event("freeze-done", vmid="101")["PVEHOOK_CONSISTENCY"] == "crash-consistent"


def test_an_agent_that_falls_silent_before_the_freeze_is_frozen_by_nobody(node: NodeUnderTest) -> None:
    """Sound when it was asked for the facts, silent when PVE is about to freeze, and awake right after."""
    with hostile_vm(node) as agent:
        node_syncs: list[int] = []

        def second_time(client: socket.socket, number: int) -> None:
            node_syncs.append(number)
            if len(node_syncs) == 3:
                return  # of the rendezvous, after facts and counters; PVE's own would be answered
            client.sendall(b'\xff{"return": %d}\n' % number)

        agent.lies["guest-sync-delimited"] = second_time
        played = night(node)
        assert not agent.frozen
    assert [event.why for event in freeze_events(played) if event.name == "pve-skipped-freeze"] == [
        "agent configured but not running?"
    ]
    ((name, text),) = shown(node)
    assert name == "freeze-done"
    assert "crash-consistent: when PVE was about to freeze it: " in text


@pytest.mark.parametrize("lie", ANSWERS.values(), ids=ANSWERS.keys())
def test_a_freeze_that_is_answered_badly_is_thawed(node: NodeUnderTest, lie: Lie) -> None:
    with hostile_vm(node, guest_fsfreeze_freeze=lie) as agent:
        night(node)
        done = node.wait_for_event("freeze-done", vmid="101")
        assert not agent.frozen
    ((name, text),) = shown(node)
    assert name == "freeze-done"
    assert done["PVEHOOK_CONSISTENCY"] == "crash-consistent"
    assert "the freeze failed: " in text or "the freeze was not answered within 2 s" in text
    wait_for_no_record(node)


@pytest.mark.parametrize("lie", ["silence", "half", "deep", "400 digits", "nasty text", "a nasty error"])
def test_a_thaw_that_is_answered_badly_is_believed_by_the_status_alone(node: NodeUnderTest, lie: str) -> None:
    with hostile_vm(node, guest_fsfreeze_thaw=ANSWERS[lie]) as agent:
        night(node, PVES_OWN_PATIENCE_S)
        done = node.wait_for_event("freeze-done", vmid="101")
        assert not agent.frozen
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert done["MESSAGE"].endswith("1 filesystem frozen, how many were thawed was not reported")


@pytest.mark.parametrize("freeze", ["answered", "not answered"])
def test_a_guest_that_says_frozen_for_ever_is_never_given_up_and_called_so_once(
    node: NodeUnderTest, freeze: str
) -> None:
    """The backup ends; the daemon goes on asking until the VM ends, and only then leaves."""
    asked: list[str] = []

    def status(client: socket.socket, number: int) -> None:
        asked.append("status")
        client.sendall(b'{"return": "%s"}\n' % (b"frozen" if freezes else b"thawed"))

    def freezing(client: socket.socket, number: int) -> None:
        freezes.append(True)
        if freeze == "answered":
            client.sendall(b'{"return": 1}\n')
        else:
            client.sendall(b"half an answer")  # the thaw's own is read as the rest of it

    freezes: list[bool] = []
    with hostile_vm(node, guest_fsfreeze_status=status, guest_fsfreeze_freeze=freezing):
        played = night(node, PVES_OWN_PATIENCE_S)
        assert [name for name, _ in shown(node)] == ["freeze-not-thawed"]
        assert "STILL FROZEN, as far as we know" in shown(node)[0][1]
        assert any("crash-consistent: it has not reported yet that it is thawed" in line for line in played.task_log)
        assert [each.state for each in freeze_records(node.node)] == ["thawing"]
        assert len(asked) < 400  # it answers in no time, and must not be asked as fast
    done = node.wait_for_event("freeze-done", vmid="101")
    assert done["PVEHOOK_FROZEN_MS"].isdigit()
    wait_for_no_record(node)


def test_a_hanging_guest_is_not_flooded_with_questions(node: NodeUnderTest) -> None:
    """What is asked while it hangs it has to answer when it wakes, to whoever is connected then: PVE's next command."""
    (node.root / "etc/pve/qemu-server/101.conf").write_text(VM_CONFIG)
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, backup_s=0.1) as guest:
        guest.stick("freeze")
        night(node)
        guest.unstick("freeze")
        assert guest.wait_until(lambda: bool(guest.frozen_intervals) and not guest.is_frozen, 10)
        node.wait_for_event("freeze-done", vmid="101")
        freeze = next(at for at, each in enumerate(guest.heard) if each.command == "guest-fsfreeze-freeze")
        after = [each.command for each in guest.heard[freeze + 1 :] if each.channel == "qga"]
    assert after.count("guest-fsfreeze-status") < 10  # in the 8 s that backup-end and log-end wait for it
    assert after[0] == "guest-fsfreeze-thaw"


def test_control_characters_in_every_text_are_shown_escaped(node: NodeUnderTest) -> None:
    info = {"version": NASTY, "supported_commands": [*INFO["supported_commands"], {"name": NASTY, "enabled": True}]}
    filesystems = [{"name": NASTY, "mountpoint": f"/{number}{NASTY}", "type": NASTY} for number in range(3)]
    filesystems.append({"name": "loop0", "mountpoint": NASTY, "type": "ext4"})  # what a rule speaks about
    with hostile_vm(
        node,
        guest_info=returns(info),
        guest_get_fsinfo=returns(filesystems),
        guest_get_osinfo=returns({"id": NASTY, "name": NASTY}),
        guest_fsfreeze_freeze=sends(ERROR),
    ) as agent:
        played = night(node)
        assert not agent.frozen
    verdict = node.wait_for_event("freeze-verdict", vmid="101")
    shown = "a\\nb\\r\\x1b[2J\\u202e\\u2028\\x00\\ud800\\U000e0001"
    assert shown in verdict["MESSAGE"]
    assert any(shown in line for line in played.task_log)


@pytest.mark.long
def test_a_gigabyte_costs_no_memory(node: NodeUnderTest) -> None:
    def peak_kb() -> int:
        status = Path(f"/proc/{node.daemon.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))

    with hostile_vm(node):
        night(node)
    before_kb = peak_kb()
    for command in ("guest_info", "guest_get_fsinfo", "guest_get_osinfo", "guest_fsfreeze_freeze"):
        for lie in (one_gib, one_gib_of_lines):
            with hostile_vm(node, **{command: lie}):
                night(node)
    grown_kb = peak_kb() - before_kb
    print(f"the daemon's peak grew from {before_kb} kB by {grown_kb} kB")
    assert grown_kb < 40_000


@pytest.mark.parametrize("reply", [b'{"freeze": "every night"}', b"[" * 100_000, b'[{"at_s": 1e999}]', b"\xff\xfe"])
def test_a_damaged_history_is_none(node: NodeUnderTest, reply: bytes) -> None:
    node.configure(ALWAYS)
    history = node.root / "var/lib/pvehook/freezes/101.json"
    history.parent.mkdir(parents=True)
    history.write_bytes(reply)
    with hostile_vm(node):
        night(node, PVES_OWN_PATIENCE_S)
        done = node.wait_for_event("freeze-done", vmid="101")
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
    assert [each["outcome"] for each in json.loads(history.read_text())] == ["ok"]
