"""Notices that are handed to Proxmox: each once a night, also over restarts of the daemon; whatever goes wrong costs
one line of the journal, and nobody who tells waits."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvehook.config.in_force import Configuration
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.clock import RehearsalClock
from pvehook.host.notification import hand_over
from pvehook.host.timely_files import Readers
from pvehook.night.notifier import MOST_A_NIGHT, MOST_WAITING, Notifier
from pvehook.records.context import Context
from pvehook.records.journal import journal_log
from pvehook.records.notice import Notice, Notices, Told
from pvehook.rehearsal.vzdump.player import WAIT_S
from tests.node_under_test import NodeUnderTest
from tests.notify_service import NotifyService

ZONE = "window: {timezone: UTC}\n"


def about(*vmids: int, event: str = "guest-stalled") -> Notices:
    """A notice of these guests, as far as they are new."""

    def make(told: Told) -> Sequence[Notice]:
        new = tuple(vmid for vmid in vmids if vmid not in told.get(event, ()))
        return [Notice(event, "warning", new, f"{new} stalled", ("so",), (("more", "pvehook night"),))] if new else []

    return make


class TellingNode:
    """A node with a notifier, which `restart` replaces as a new daemon would."""

    def __init__(self, node: NodeUnderTest) -> None:
        self.node = node
        self.told_file = node.root / "var/lib/pvehook/told.json"
        node.configure(ZONE)
        self.at("2026-11-24T03:00")
        self.restart()

    def restart(self) -> None:
        readers = Readers()
        log = journal_log(self.node.node.journal_socket)
        context = Context(self.node.node, RehearsalClock(self.node.clock_file), readers, log)
        self.notifier = Notifier(context, Configuration(self.node.node, readers.config))

    def at(self, clock: str) -> None:
        self.node.set_clock(f"{clock}:00+00:00")

    def tell(self, *notices: Notices) -> None:
        """Returns when all of it is done."""
        for each in notices:
            self.notifier.tell(each)
        for thread in threading.enumerate():
            if thread.name == "notifier":
                thread.join(WAIT_S)
        assert not self.notifier.is_busy

    @contextmanager
    def service(self, does: str = "", *, with_proxmox: bool = True) -> Iterator[NotifyService]:
        path, given = self.node.node.notify_socket, self.node.root / "given"
        with NotifyService(path, given, does, with_proxmox=with_proxmox) as service:
            yield service
        Path(path).unlink()

    def not_sent(self) -> list[str]:
        """Its lines in the journal, all that were logged until now: what is logged behind them has come."""
        before = len(self.node.journal.events)
        journal_log(self.node.node.journal_socket).debug("until-now")
        self.node.wait_for_event("until-now", after=before)
        found = [each.fields for each in self.node.journal.events]
        return [each["MESSAGE"] for each in found if each["PVEHOOK_EVENT"] == "notification-not-sent"]


@pytest.fixture
def node(node_without_daemon: NodeUnderTest) -> TellingNode:
    return TellingNode(node_without_daemon)


def vmids(service: NotifyService) -> list[str]:
    return [fields["vmid"] for _, _, _, fields in service.given()]


def test_a_notice_reaches_proxmox_with_its_text(node: TellingNode) -> None:
    with node.service() as service:
        node.tell(about(101, 102))
    ((severity, template, data, fields),) = service.given()
    assert (severity, template, fields["pvehook-event"], fields["vmid"]) == (
        "warning", "pvehook", "guest-stalled", "101,102",
    )  # fmt: skip
    assert data["text"] == "so\n\nWhat to do\n- more:\n    pvehook night"
    sent = node.node.wait_for_event("notification-sent", notice="guest-stalled")
    assert sent["MESSAGE"] == "given to Proxmox's notifications (warning): (101, 102) stalled"


def test_each_guest_is_told_of_once_a_night_and_event_whichever_daemon_comes_to_it(node: TellingNode) -> None:
    with node.service() as service:
        node.tell(about(101), about(101, 102))
        node.restart()
        node.tell(about(101, 102), about(101, event="guest-overdue"))
        node.at("2026-11-24T11:59")
        node.restart()
        node.tell(about(101, 102, 103))
        assert vmids(service) == ["101", "102", "101", "103"]
        node.at("2026-11-24T12:00")  # the next night, noon to noon
        node.tell(about(101, 102))
        assert vmids(service)[4:] == ["101,102"]


def test_a_night_has_so_many_of_an_event_and_no_more(node: TellingNode) -> None:
    """A job for each guest of the node."""
    with node.service() as service:
        node.tell(*(about(vmid) for vmid in range(101, 101 + MOST_A_NIGHT + 5)))
        assert len(service.given()) == MOST_A_NIGHT
        node.tell(about(101, event="guest-overdue"))
        assert service.events()[-1] == "guest-overdue"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 2}', '{"v": 1, "night_s": 0, "sent": []}', "\0" * 100])
def test_a_damaged_record_of_what_was_told_keeps_nothing_from_being_told(node: TellingNode, text: str) -> None:
    node.told_file.write_text(text)
    with node.service() as service:
        node.tell(about(101))
        node.restart()
        node.tell(about(101))
    assert vmids(service) == ["101"]
    assert json.loads(node.told_file.read_text())["sent"] == {"guest-stalled": [[101]]}


def test_a_record_that_cannot_be_written_is_kept_while_the_daemon_lives(node: TellingNode) -> None:
    node.told_file.mkdir()
    with node.service() as service:
        node.tell(about(101))
        node.tell(about(101, 102))
    assert vmids(service) == ["101", "102"]
    assert "what was told tonight was not kept" in node.node.wait_for_event("record-not-written")["MESSAGE"]


def test_switched_off_nothing_is_started(node: TellingNode) -> None:
    node.node.configure(ZONE + "notify: off\n")
    with node.service() as service:
        node.tell(about(101))
    assert (service.calls, node.not_sent()) == (0, [])


def test_without_our_unit_there_is_the_journal_alone(node: TellingNode) -> None:
    node.tell(about(101))
    assert node.not_sent() == []
    assert node.node.event_names() == ["until-now"]


@pytest.mark.parametrize(
    ("does", "with_proxmox", "why"),
    [
        ("", False, "Can't locate PVE/INotify.pm"),
        ("die", True, "ipcc_send_rec[1] failed: Connection refused"),
    ],
    ids=["off Proxmox", "/etc/pve is away"],
)
def test_what_cannot_be_sent_is_one_line_and_is_tried_again_in_the_next_run(
    node: TellingNode, does: str, with_proxmox: bool, why: str
) -> None:
    with node.service(does, with_proxmox=with_proxmox):
        node.tell(about(101, 102))
    (line,) = node.not_sent()
    assert line.startswith(f"a notification was not sent: {why}")
    assert line.endswith("it was: (101, 102) stalled")
    with node.service() as service:
        node.tell(about(101, 102))
    assert vmids(service) == ["101,102"]


def test_a_fault_of_ours_costs_a_line_and_the_next_notice_has_its_turn(node: TellingNode) -> None:
    def faulty(_: Told) -> list[Notice]:
        raise KeyError("ours")

    with node.service() as service:
        node.tell(faulty, about(101))
    assert vmids(service) == ["101"]
    assert node.not_sent() == ["a notification was not sent: KeyError('ours')"]


def test_without_a_thread_there_is_one_line(node: TellingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with node.service() as service:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            node.notifier.tell(about(101))
            assert not node.notifier.is_busy
        assert node.not_sent() == ["a notification was not sent: no thread could be started: can't start new thread"]
        node.tell(about(102))
    assert vmids(service) == ["102"]


def test_who_tells_does_not_wait_and_only_so_much_waits(node: TellingNode) -> None:
    """A helper that hangs: one thread waits for it, and all else in the queue; the daemon stays for it."""
    with node.service("hang") as service:
        node.notifier.tell(about(101))
        service.wait_for_calls(1)
        for vmid in range(102, 102 + MOST_WAITING):
            node.notifier.tell(about(vmid))
        assert node.not_sent() == []
        node.notifier.tell(about(999))
        (line,) = node.not_sent()
        assert f"more than {MOST_WAITING} wait already" in line
        assert [each.name for each in threading.enumerate()].count("notifier") == 1
        assert node.notifier.is_busy
    # The service is gone: what waits comes to its end, a line each.
    node.tell()
    assert len(node.not_sent()) == MOST_WAITING + 2


def test_an_event_of_the_journal_is_told_of_at_once(node: TellingNode) -> None:
    log = journal_log(node.node.node.journal_socket, hear=node.notifier.hear)
    with node.service() as service:
        for _ in range(2):
            log.bind(vmid=101).critical("freeze-alert", message="VM 101 (web): it is frozen")
            log.error("fault", message="a fault", vmid=102)
            node.tell()
    ((severity, _, data, fields),) = service.given()
    assert (severity, fields["pvehook-event"], fields["vmid"]) == ("error", "guest-frozen", "101")
    assert data["lines"] == ["VM 101 (web): it is frozen"]


# The way to hooks/notify


@pytest.mark.parametrize(
    ("answer", "why"), [("", "ended without an answer"), ("x" * 10_000, "x{100}"), ("not sent: so", "so")]
)
def test_any_answer_but_sent_is_a_reason(tmp_path: Path, answer: str, why: str) -> None:
    with answering(tmp_path, answer) as path, pytest.raises(NodeError, match=why):
        hand_over(path, {}, Deadline.after(WAIT_S))


def test_one_that_does_not_answer_is_left_at_the_deadline(tmp_path: Path) -> None:
    with answering(tmp_path, None) as path, pytest.raises(NodeError, match="did not answer in time"):
        hand_over(path, {}, Deadline.after(0.05))


@contextmanager
def answering(directory: Path, answer: str | None) -> Iterator[str]:
    """None: never."""
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(4096):
                    pass
                if answer is not None:
                    connection.sendall(answer.encode())

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield path
