"""Hands a notice to hooks/notify, which has Proxmox send it. systemd starts that program for each connection."""

from __future__ import annotations

import json
import socket
from typing import Final

from pvehook.deadline import Deadline
from pvehook.errors import NodeError

ANSWER_LIMIT_BYTES: Final = 4096


def hand_over(path: str, notice: dict[str, object], deadline: Deadline) -> None:
    """Returns when Proxmox has taken it. Raises NodeError with the reason when it has not, or not in time."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(max(deadline.left_s(), 0.001))
            connection.connect(path)
            connection.sendall(json.dumps(notice).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = _answer(connection, deadline)
    except TimeoutError as error:
        raise NodeError("Proxmox's notifications did not answer in time") from error
    except OSError as error:
        raise NodeError(f"{path}: {error}") from error
    if answer != "sent":
        raise NodeError(answer.removeprefix("not sent: ") or "hooks/notify ended without an answer")


def _answer(connection: socket.socket, deadline: Deadline) -> str:
    answer = b""
    while len(answer) < ANSWER_LIMIT_BYTES:
        connection.settimeout(max(deadline.left_s(), 0.001))
        more = connection.recv(ANSWER_LIMIT_BYTES)
        if not more:
            break
        answer += more
    return answer.decode("utf-8", "replace").strip()
