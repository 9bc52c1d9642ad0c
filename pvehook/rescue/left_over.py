"""What undoing left-over freezes and left-over speeds have in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from pvehook.errors import Unreachable

Item = TypeVar("Item")
Done = TypeVar("Done")


class Report(NamedTuple):
    vmid: int
    done: bool
    text: str


def at_once(do: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
    """Each item in a thread of its own: a guest that hangs must not keep another one frozen or slow."""
    done: dict[int, Done] = {}

    def run(at: int) -> None:
        done[at] = do(items[at])

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[at] for at in range(len(items))]


def has_ended(socket_path: str, error: Unreachable) -> bool:
    """Whether the VM behind a socket has ended: nobody listens where QEMU died and could not take the file away."""
    return not os.path.exists(socket_path) or isinstance(error.__cause__, ConnectionRefusedError)
