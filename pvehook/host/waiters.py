"""Who waits at a VM's unix socket: QEMU serves one client at a time, the next one waits in the accept queue.

Two ways to see it, both from the kernel (facts/qemu.md, Sockets):

  sock_diag        netlink: one query by the listener's inode, one answer. Microseconds, on any node.
                   Layouts: Linux include/uapi/linux/{netlink,sock_diag,unix_diag}.h.
  /proc/net/unix   all sockets of the node as text, read each time: slower the more there are. The fallback where
                   netlink is refused (a sandbox, a kernel without unix_diag).

    Num               RefCount Protocol Flags    Type St Inode Path
    00000000560864c7: 00000002 00000000 00010000 0001 01 405089 /var/run/qemu-server/101.qga   the listener
    00000000460f3ba5: 00000003 00000000 00000000 0001 03 405095 /var/run/qemu-server/101.qga   the served client's end
    0000000016def104: 00000003 00000000 00000000 0001 02     0 /var/run/qemu-server/101.qga    a client that waits
    000000005ca345ba: 00000002 00000000 00000000 0001 02     0 /var/run/qemu-server/101.qga    one that has closed
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self

from pvehook.errors import NodeError
from pvehook.host.node import Node

Way = Literal["sock_diag", "/proc/net/unix"]
WAYS: tuple[Way, ...] = ("sock_diag", "/proc/net/unix")

# linux/netlink.h, linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_SOCK_DIAG_BY_FAMILY = 20
# linux/unix_diag.h: what to show (bits of the question), and the attribute that shows it (in the answer)
_SHOW_VFS, _VFS = 0x02, 1
_SHOW_WAITING_INODES, _WAITING_INODES = 0x08, 3
_SHOW_QUEUE_LENGTH, _QUEUE_LENGTH = 0x10, 4

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIII8s")  # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
_MESSAGE = struct.Struct("=BBBBI8s")  # struct unix_diag_msg: family, type, state, pad, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type; the next one starts at 4 bytes
_ERROR = struct.Struct("=i")  # struct nlmsgerr: minus errno, then the question
_U32 = struct.Struct("=I")
_ANY_COOKIE = b"\xff" * 8
_ALL_STATES = 0xFFFFFFFF
_ANSWER_BYTES = 8192  # the kernel gives up at one page

_READ_BYTES = 64 * 1024


class _Listener(NamedTuple):
    inode: int
    shown_as: bytes  # what its owner gave to bind()


class WaiterWatch:
    """Watches the accept queue of the listener at `path`.

    Create it before it matters: finding the listener reads files, watching it does not (by sock_diag). `path` is what
    `connect` takes, so it lies under the node's root already; another spelling than the listener's owner used
    (/run for /var/run) will do. `ways` are tried in order. Use it from one thread.

    A connection just made, also one's own, waits until the listener's owner has accepted it (up to 15 ms with
    QEMU). So connect, wait for the agent's answer to a sync, and only then count: whoever waits now is somebody else.

    Raises NodeError when nobody listens there and when no way works. /proc/net/unix knows listeners by name only, so
    without sock_diag it is also raised when two listen under one name (a QEMU that was replaced but is not gone)
    and when the name is indirect (/proc/self/fd/N/101.qga).
    """

    via: Way
    """The way in use."""
    refusal: str | None
    """Why sock_diag was tried but is not used; None when it is used."""

    def __init__(self, node: Node, path: str, *, ways: Sequence[Way] = WAYS) -> None:
        self.path = path
        self.refusal = None
        table = _SocketTable(node.path("/proc/net/unix"))
        try:
            listeners = table.listeners_called(os.path.basename(path))
            if "sock_diag" in ways:
                try:
                    self._way: _SockDiag | _SocketTable = _SockDiag(path, listeners)
                except OSError as error:
                    self.refusal = f"sock_diag does not answer: {error.strerror}"
                else:
                    table.close()
                    self.via = "sock_diag"
                    return
            if "/proc/net/unix" not in ways:
                raise NodeError(f"{path}: cannot see who waits there: {self.refusal}; no other way was allowed")
            table.watch(_the_one_listener(path, [each for each in listeners if _is_same_file(each, path)]))
        except BaseException:
            table.close()
            raise
        self._way = table
        self.via = "/proc/net/unix"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._way.close()

    def waiters(self) -> int:
        """How many connections wait to be accepted, including those whose client has closed.

        Raises NodeError when the listener is gone: the VM was stopped or restarted.
        """
        try:
            return self._way.waiters()
        except OSError as error:
            raise self._lost(error) from error

    def waiters_alive(self) -> int:
        """How many connections wait whose client has not closed: it still wants to be served.

        sock_diag lists the inode of each waiting client, 0 for one that has closed; in /proc/net/unix the connection
        of a client that has closed has RefCount 2. Raises NodeError as `waiters` does.
        """
        try:
            return self._way.waiters_alive()
        except OSError as error:
            raise self._lost(error) from error

    def waiting_sockets(self) -> frozenset[int] | None:
        """The inodes of the sockets whose owners wait: `socket:[INODE]` in their /proc/PID/fd. None: unknown
        (/proc/net/unix does not show them). Raises NodeError as `waiters` does."""
        try:
            return self._way.waiting_sockets()
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> NodeError:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return NodeError(f"{self.path}: its listener is gone ({self.via}); was the VM stopped or restarted?")
        return NodeError(f"{self.path}: cannot see who waits there: {self.via}: {error.strerror}")


class _SockDiag:
    """Queries the kernel about one listener. Every method raises OSError when the kernel refuses."""

    def __init__(self, path: str, listeners: Sequence[_Listener]) -> None:
        # The kernel answers within send(), so an answer is there or never comes: nothing here can wait.
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        self._answer = bytearray(_ANSWER_BYTES)
        try:
            inode = self._choose(path, listeners).inode
            self._ask(_question(inode, _SHOW_QUEUE_LENGTH, _ANY_COOKIE), _QUEUE_LENGTH)
            # An inode's number may be given to another socket later, a cookie is not: the kernel says ESTALE.
            cookie = _MESSAGE.unpack_from(self._answer, _HEADER.size)[5]
        except BaseException:
            self._socket.close()
            raise
        self._how_many = _question(inode, _SHOW_QUEUE_LENGTH, cookie)
        self._which = _question(inode, _SHOW_WAITING_INODES, cookie)

    def close(self) -> None:
        self._socket.close()

    def waiters(self) -> int:
        at, _ = self._ask(self._how_many, _QUEUE_LENGTH)
        return int(_U32.unpack_from(self._answer, at)[0])

    def waiters_alive(self) -> int:
        return len(self.waiting_sockets())

    def waiting_sockets(self) -> frozenset[int]:
        at, size = self._ask(self._which, _WAITING_INODES)
        return frozenset(inode for (inode,) in _U32.iter_unpack(self._answer[at : at + size]) if inode != 0)

    def _choose(self, path: str, listeners: Sequence[_Listener]) -> _Listener:
        found = [each for each in listeners if _is_same_file(each, path)]
        if len(found) != 1:
            # The name is ambiguous: bound again while the old one still listens, or by way of /proc/self/fd. The
            # kernel knows the inode of the file each is bound to, and keeps it from being given away meanwhile.
            try:
                file_inode = os.stat(path).st_ino & 0xFFFFFFFF  # as many bits as unix_diag shows
            except OSError as error:
                raise NodeError(f"{path}: no such socket ({error.strerror}); is the VM running?") from error
            found = [each for each in listeners if self._file_inode(each.inode) == file_inode]
        return _the_one_listener(path, found)

    def _file_inode(self, inode: int) -> int | None:
        """The inode of the file that the socket is bound to, its low 32 bits; None when it is gone."""
        try:
            at, _ = self._ask(_question(inode, _SHOW_VFS, _ANY_COOKIE), _VFS)
        except FileNotFoundError:
            return None
        return int(_U32.unpack_from(self._answer, at)[0])

    def _ask(self, question: bytes, attribute: int) -> tuple[int, int]:
        """Where in `_answer` the attribute's bytes begin, and how many they are."""
        self._socket.send(question)
        received = self._socket.recv_into(self._answer)
        kind = _HEADER.unpack_from(self._answer)[1]
        if kind == _NLMSG_ERROR:
            number = -_ERROR.unpack_from(self._answer, _HEADER.size)[0]
            raise OSError(number, os.strerror(number))
        at = _HEADER.size + _MESSAGE.size
        while at + _ATTRIBUTE.size <= received:
            size, shown = _ATTRIBUTE.unpack_from(self._answer, at)
            if shown == attribute:
                return at + _ATTRIBUTE.size, size - _ATTRIBUTE.size
            at += max(_ATTRIBUTE.size, (size + 3) & ~3)
        raise OSError(errno.ENODATA, f"an answer of {received} bytes without attribute {attribute}")


def _question(inode: int, show: int, cookie: bytes) -> bytes:
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, inode, show, cookie)
    return _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request


class _SocketTable:
    """/proc/net/unix, kept open. It shows the sockets of this process's network namespace."""

    def __init__(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NodeError(f"{path}: cannot be read: {error.strerror}; no waiting client can be seen") from error
        self._listener = self._waiting = self._closed = b""

    def close(self) -> None:
        os.close(self._file)

    def listeners_called(self, name: str) -> list[_Listener]:
        """The stream sockets that listen under a path with `name` as its last part. Raises NodeError."""
        line = rb"^\w+: \w+ \w+ 00010000 0001 01 +(\d+) (.*/)?%b$" % re.escape(os.fsencode(name))
        try:
            table = bytes(self._read())
        except OSError as error:
            raise NodeError(f"/proc/net/unix cannot be read: {error.strerror}") from error
        found = re.finditer(line, table, re.MULTILINE)
        return [_Listener(int(each[1]), (each[2] or b"") + os.fsencode(name)) for each in found]

    def watch(self, listener: _Listener) -> None:
        """From now on `waiters` and `waiters_alive` are about this one."""
        self._listener = b" 0001 01 %5d %b\n" % listener
        self._waiting = b" 00000000 00000000 0001 02     0 %b\n" % listener.shown_as
        self._closed = b": 00000002" + self._waiting

    def waiters(self) -> int:
        return self._read_while_it_listens().count(self._waiting)

    def waiters_alive(self) -> int:
        table = self._read_while_it_listens()
        return table.count(self._waiting) - table.count(self._closed)

    def waiting_sockets(self) -> None:
        """It shows inode 0 for every client that waits."""
        return

    def _read_while_it_listens(self) -> bytearray:
        table = self._read()
        if self._listener not in table:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return table

    def _read(self) -> bytearray:
        # The kernel hands out about a page a read, however much is asked for. Its end is an empty read.
        table = bytearray()
        while part := os.pread(self._file, _READ_BYTES, len(table)):
            table += part
        return table


def _is_same_file(listener: _Listener, path: str) -> bool:
    try:
        return os.path.samefile(os.fsdecode(listener.shown_as), path)
    except OSError:
        return False


def _the_one_listener(path: str, found: Sequence[_Listener]) -> _Listener:
    if not found:
        raise NodeError(f"{path}: nobody listens there; is the VM running?")
    if len(found) > 1:
        inodes = ", ".join(str(each.inode) for each in found)
        raise NodeError(
            f"{path}: {len(found)} sockets listen under this path (inodes {inodes}), one is expected, and it cannot be"
            " told which one a client reaches; end the process that left the other one"
        )
    return found[0]
