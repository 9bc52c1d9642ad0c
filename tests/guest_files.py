"""A simulated guest with an agent, which reads and writes files: a few invented ones, and its kernel's log.

qemu-ga reads through stdio, which is simulated where it shows: a read that wants more than there is meets the end of a
plain file and gets less; with the kernel's log it fails and loses what it had (facts/qemu.md).
"""

from __future__ import annotations

import base64
import errno
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from itertools import count
from typing import Any, Final, NamedTuple, Self

from pvehook.contract.pressure import RESOURCES, Resource
from pvehook.rehearsal.vm import simulated_guest
from pvehook.rehearsal.vm.sockets import DenialError
from tests.simulated_agent import AgentTraits, FrozenInterval, SimulatedAgent

KERNEL_LOG: Final = "/dev/kmsg"
KERNEL_LOG_RECORDS: Final = 512
"""So many are kept; older ones are overwritten."""

_UPTIME: Final = "/proc/uptime"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_ROUTINE_UPTIME_S: Final = 86_400.0
_FIRST_HANDLE: Final = 1000  # qemu-ga's own
_DEFAULT_READ_BYTES: Final = 4096  # qemu-ga's own


class SimulatedGuest(simulated_guest.SimulatedGuest):
    """Serves `DIRECTORY/VMID.qga` too. `how` is what the monitor's part takes, and AgentTraits.

    Until a guest that waits for `cont` gets it, and from `stop` on, its agent is silent. One that has no agent is
    silent for ever, behind a socket that accepts.
    """

    def __init__(self, directory: str, vmid: int, *, has_agent: bool = True, **how: Any) -> None:
        names = {field.name for field in fields(AgentTraits)}
        traits = AgentTraits(**{name: value for name, value in how.items() if name in names})
        super().__init__(directory, vmid, **{name: value for name, value in how.items() if name not in names})
        self.qga_path = os.path.join(directory, f"{vmid}.qga")
        self.files = GuestFiles(is_windows=traits.os_id == "mswindows")
        """What its agent can read."""
        self._has_agent = has_agent
        if not has_agent:
            self._state.stuck.add("agent")
        self._monitor_commands["query-chardev"] = self._chardevs
        self._agent = SimulatedAgent(self.qga_path, self._state, traits)
        self._agent.commands |= {
            "guest-file-open": self.files.open,
            "guest-file-read": self.files.read,
            "guest-file-write": self.files.write,
            "guest-file-flush": self.files.flush,
            "guest-file-seek": self.files.seek_end,
            "guest-file-close": self.files.close,
        }

    def __enter__(self) -> Self:
        super().__enter__()
        self._agent.open()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._agent.close()

    @property
    def is_frozen(self) -> bool:
        return bool(self._agent.frozen)

    @property
    def frozen_mountpoints(self) -> frozenset[str]:
        return self._agent.frozen

    @property
    def frozen_intervals(self) -> tuple[FrozenInterval, ...]:
        """Every freeze that took hold, in order; the last one may still last."""
        with self._state.changed:
            return tuple(self._agent.intervals)

    @property
    def executed(self) -> tuple[tuple[str, ...], ...]:
        """What guest-exec has started: path and arguments."""
        return tuple(self._agent.executed)

    def _chardevs(self, arguments: Mapping[str, object]) -> object:
        monitor = {"label": "qmp", "filename": f"unix:{self.qmp_path},server=on", "frontend-open": True}
        agent = {"label": "qga0", "filename": f"disconnected:unix:{self.qga_path},server=on"}
        return [monitor, {**agent, "frontend-open": self._has_agent}]


class _Record(NamedTuple):
    number: int
    data: bytes


class _Open:
    """An open file of the agent's, with stdio's buffer."""

    def __init__(self, path: str, content: bytes | OSError) -> None:
        self.path = path
        self.content = content
        self.position = 0
        """In the content; in the kernel's log the number of the next record."""
        self.buffered = bytearray()
        """What is left of a record; of a file open for writing what has not reached it."""


class GuestFiles:
    """What there is to read, and what the agent has opened."""

    def __init__(self, *, is_windows: bool) -> None:
        """`is_windows`: none of these paths is one there."""
        self._is_windows = is_windows
        self.contents: dict[str, str | OSError] = {}
        """By path; an OSError is what reading it gives. To be changed by whoever wants another guest:
        `del files.contents["/proc/pressure/io"]` has a kernel without pressure."""
        self.read_only: set[str] = set()
        """What it may not open for writing."""
        self._lock = threading.Lock()
        self._start(_ROUTINE_UPTIME_S)

    def start_anew(self) -> None:
        """The guest was started again: nothing is open, its log is empty, handles are counted from the first."""
        with self._lock:
            self._start(0.0)

    def set_pressure(self, resource: Resource, some_us: int, full_us: int) -> None:
        """What /proc/pressure tells from now on."""
        self.contents[f"/proc/pressure/{resource}"] = (
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={some_us}\n"
            f"full avg10=0.00 avg60=0.00 avg300=0.00 total={full_us}\n"
        )

    def set_steal(self, ticks: int) -> None:
        """What /proc/stat tells of all CPUs from now on."""
        times = f"12 0 209 3 1 0 0 {ticks} 0 0"
        self.contents["/proc/stat"] = f"cpu  {times}\ncpu0 {times}\nintr 1009 129 9\nctxt 1555\n"

    def log(self, text: str, *, level: int = 3, clock_off_s: float = 0.0) -> None:
        """The guest's kernel writes a line, by a clock that is off by that much."""
        with self._lock:
            number = self._next_number
            self._next_number += 1
            at_us = round((self._uptime_s() + clock_off_s) * 1_000_000)
            self._log.append(_Record(number, f"{level},{number},{at_us},-;{text}\n".encode()))

    @property
    def open_paths(self) -> tuple[str, ...]:
        """What the agent has opened and not closed."""
        with self._lock:
            return tuple(file.path for file in self._opened.values())

    def open(self, arguments: Mapping[str, object]) -> int:
        """`guest-file-open`."""
        path, mode = str(arguments.get("path")), arguments.get("mode", "r")
        if mode not in ("r", "w"):
            raise DenialError("GenericError", f"invalid file open mode '{mode}'")
        if self._is_windows:
            why = "The system cannot find the path specified."
            raise DenialError("GenericError", f"failed to open file '{path}': {why}")
        with self._lock:
            content = self._content(path)
            fault = errno.ENOENT if content is None and mode == "r" else errno.EACCES if path in self.read_only else 0
            if fault and (mode == "w" or content is None):
                why = f"(mode: '{mode}'): {os.strerror(fault)}"
                raise DenialError("GenericError", f"failed to open file '{path}' {why}")
            handle = next(self._handles)
            self._opened[handle] = _Open(path, content or b"")
        return handle

    def read(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """`guest-file-read`."""
        wanted = arguments.get("count", _DEFAULT_READ_BYTES)
        if type(wanted) is not int:
            raise DenialError("GenericError", "Invalid parameter type for 'count', expected: integer")
        with self._lock:
            file = self._opened[self._handle(arguments)]
            try:
                data = self._read_log(file, wanted) if file.path == KERNEL_LOG else _read_plain(file, wanted)
            except OSError as error:
                raise DenialError("GenericError", f"failed to read file: {error.strerror}") from error
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < wanted}

    def write(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """`guest-file-write`: into stdio's buffer."""
        data = base64.b64decode(str(arguments.get("buf-b64")), validate=True)
        with self._lock:
            self._opened[self._handle(arguments)].buffered += data
        return {"count": len(data), "eof": False}

    def flush(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """`guest-file-flush`. A choice of the kernel's keeps its words, and the written one is in brackets."""
        with self._lock:
            file = self._opened[self._handle(arguments)]
            word, old = file.buffered.decode(), self.contents.get(file.path)
            if isinstance(old, str) and "[" in old:
                words = old.replace("[", "").replace("]", "").split()
                if word not in words:
                    why = os.strerror(errno.EINVAL)
                    raise DenialError("GenericError", f"failed to flush file: {why}")
                word = " ".join(f"[{each}]" if each == word else each for each in words) + "\n"
            self.contents[file.path] = word
            file.buffered.clear()
        return {}

    def seek_end(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """`guest-file-seek`, of which only the end is simulated."""
        with self._lock:
            file = self._opened[self._handle(arguments)]
            if (arguments.get("offset"), arguments.get("whence")) not in ((0, 2), (0, "end")):
                raise DenialError("GenericError", "this guest seeks to the end only")
            if file.path == KERNEL_LOG:
                file.buffered.clear()
                file.position = self._next_number
                return {"position": 0, "eof": False}
            file.position = 0 if isinstance(file.content, OSError) else len(file.content)
            return {"position": file.position, "eof": False}

    def close(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """`guest-file-close`."""
        with self._lock:
            del self._opened[self._handle(arguments)]
        return {}

    def _start(self, uptime_s: float) -> None:
        self._booted_s = time.monotonic() - uptime_s
        self._boot_id = str(uuid.uuid4())
        self._opened: dict[int, _Open] = {}
        self._handles = count(_FIRST_HANDLE)
        self._next_number = 1
        self._log: deque[_Record] = deque(maxlen=KERNEL_LOG_RECORDS)
        for resource in RESOURCES:
            self.set_pressure(resource, 0, 0)
        self.set_steal(0)

    def _uptime_s(self) -> float:
        return time.monotonic() - self._booted_s

    def _handle(self, arguments: Mapping[str, object]) -> int:
        handle = arguments.get("handle")
        if type(handle) is not int or handle not in self._opened:
            raise DenialError("GenericError", f"handle '{handle}' has not been found")
        return handle

    def _content(self, path: str) -> bytes | OSError | None:
        uptime_s = self._uptime_s()
        own = {KERNEL_LOG: "", _UPTIME: f"{uptime_s:.2f} {uptime_s:.2f}\n", _BOOT_ID: f"{self._boot_id}\n"}
        content = own.get(path, self.contents.get(path))
        return content.encode() if isinstance(content, str) else content

    def _read_log(self, file: _Open, wanted: int) -> bytes:
        """As fread(3) on a device that has no more: what it had by then is lost."""
        data = bytearray()
        while len(data) < wanted:
            if not file.buffered:
                file.buffered += self._next_record(file)
            piece = file.buffered[: wanted - len(data)]
            del file.buffered[: len(piece)]
            data += piece
        return bytes(data)

    def _next_record(self, file: _Open) -> bytes:
        if self._log and file.position < self._log[0].number:
            file.position = self._log[0].number
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        record = next((record for record in self._log if record.number >= file.position), None)
        if record is None:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        file.position = record.number + 1
        return record.data


def _read_plain(file: _Open, wanted: int) -> bytes:
    if isinstance(file.content, OSError):
        raise file.content
    data = file.content[file.position : file.position + wanted]
    file.position += len(data)
    return data
