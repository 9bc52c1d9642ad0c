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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

from pvehook.errors import NodeError
from pvehook.host.node import Node

# linux/netlink.h, linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_SOCK_DIAG_BY_FAMILY = 20
# linux/unix_diag.h: what to show (bits of the question), and the attribute that shows it (in the answer)
_VFS = 0x02, 1
_WAITING = 0x08, 3

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIII8s")  # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
_MESSAGE = struct.Struct("=BBBBI8s")  # struct unix_diag_msg: family, type, state, pad, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type; the next one starts at 4 bytes
_ERROR = struct.Struct("=i")  # struct nlmsgerr: minus errno, then the question
_U32 = struct.Struct("=I")
_ALL_STATES = 0xFFFFFFFF
_ANSWER_BYTES = 8192  # the kernel gives up at one page


class _Listener(NamedTuple):
    inode: int
    shown_as: bytes  # what its owner gave to bind()


class WaiterWatch(ABC):
    """The accept queue of the listener at `path`. Use it from one thread.

    Create it before it matters: finding the listener reads files, watching it does not (by sock_diag). `path` is what
    `connect` takes, so it lies under the node's root already; another spelling than the listener's owner used
    (/run for /var/run) will do. Raises NodeError when nobody listens there.

    A connection just made, also one's own, waits until the listener's owner has accepted it (up to 15 ms with
    QEMU). So connect, wait for the agent's answer to a sync, and only then count: whoever waits now is somebody else.
    """

    path: str
    via: str
    """The way in use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  (what keeps nothing open has nothing to end)
        """Ends it."""

    @abstractmethod
    def waiters_alive(self) -> int:
        """How many connections wait to be accepted whose client has not closed: it still wants to be served.
        Raises NodeError when the listener is gone: the VM was stopped or restarted."""

    @abstractmethod
    def waiting_sockets(self) -> frozenset[int] | None:
        """The inodes of the sockets whose owners wait: `socket:[INODE]` in their /proc/PID/fd; None: unknown. Raises
        NodeError as `waiters_alive` does."""

    @abstractmethod
    def places_left(self) -> int:
        """How many connections wait to be accepted whose client has closed. Each takes one of the few places of the
        queue until the owner comes to accept it, and one that hangs does not come. Raises NodeError as
        `waiters_alive` does."""

    def _gone(self) -> NodeError:
        return NodeError(f"{self.path}: its listener is gone ({self.via}); was the VM stopped or restarted?")


class SockDiagWatch(WaiterWatch):
    """Queries the kernel about one listener. Raises OSError when the kernel refuses that."""

    via = "sock_diag"

    def __init__(self, node: Node, path: str) -> None:
        self.path = path
        listeners = _listeners_called(node, os.path.basename(path))
        # The kernel answers within send(), so an answer is there or never comes: nothing here can wait.
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        try:
            self._inode = self._choose(listeners).inode
            # An inode's number may be given to another socket later, a cookie is not: the kernel says ESTALE.
            self._cookie, _ = self._ask(self._inode, _WAITING)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def waiters_alive(self) -> int:
        return len(self.waiting_sockets())

    def waiting_sockets(self) -> frozenset[int]:
        return frozenset(self._queue()) - {0}

    def places_left(self) -> int:
        return self._queue().count(0)

    def _queue(self) -> list[int]:
        """The inodes of all clients' sockets that wait to be accepted; 0: of a client that has closed."""
        try:
            _, inodes = self._ask(self._inode, _WAITING, self._cookie)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise self._gone() from error
            raise NodeError(f"{self.path}: cannot see who waits there: {self.via}: {error.strerror}") from error
        return [inode for (inode,) in _U32.iter_unpack(inodes)]

    def _choose(self, listeners: Sequence[_Listener]) -> _Listener:
        found = [each for each in listeners if _is_same_file(each, self.path)]
        if len(found) != 1:
            # The name is ambiguous: bound again while the old one still listens, or by way of /proc/self/fd. The
            # kernel knows the inode of the file each is bound to, and keeps it from being given away meanwhile.
            try:
                file_inode = os.stat(self.path).st_ino & 0xFFFFFFFF  # as many bits as unix_diag shows
            except OSError as error:
                raise NodeError(f"{self.path}: no such socket ({error.strerror}); is the VM running?") from error
            found = [each for each in listeners if self._file_inode(each.inode) == file_inode]
        return _the_one_listener(self.path, found)

    def _file_inode(self, inode: int) -> int | None:
        """The inode of the file that the socket is bound to, its low 32 bits; None when it is gone."""
        try:
            return int(_U32.unpack_from(self._ask(inode, _VFS)[1])[0])
        except FileNotFoundError:
            return None

    def _ask(self, inode: int, what: tuple[int, int], cookie: bytes = b"\xff" * 8) -> tuple[bytes, bytes]:
        """The socket's cookie, and the bytes of one attribute; with the default any cookie will do."""
        show, attribute = what
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, inode, show, cookie)
        length = _HEADER.size + len(request)
        self._socket.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        answer = self._socket.recv(_ANSWER_BYTES)
        kind = _HEADER.unpack_from(answer)[1]
        if kind == _NLMSG_ERROR:
            number = -_ERROR.unpack_from(answer, _HEADER.size)[0]
            raise OSError(number, os.strerror(number))
        at = _HEADER.size + _MESSAGE.size
        while at + _ATTRIBUTE.size <= len(answer):
            size, shown = _ATTRIBUTE.unpack_from(answer, at)
            if shown == attribute:
                return _MESSAGE.unpack_from(answer, _HEADER.size)[5], answer[at + _ATTRIBUTE.size : at + size]
            at += max(_ATTRIBUTE.size, (size + 3) & ~3)
        raise OSError(errno.ENODATA, f"an answer of {len(answer)} bytes without attribute {attribute}")


class SocketTableWatch(WaiterWatch):
    """Reads /proc/net/unix: the sockets of this process's network namespace. It knows listeners by name only, so
    NodeError is also raised when two listen under one name (a QEMU that was replaced but is not gone) and when the name
    is indirect (/proc/self/fd/N/101.qga)."""

    via = "/proc/net/unix"

    def __init__(self, node: Node, path: str) -> None:
        self._node = node
        self.path = path
        found = [each for each in _listeners_called(node, os.path.basename(path)) if _is_same_file(each, path)]
        listener = _the_one_listener(path, found)
        self._listener = b" 0001 01 %5d %b\n" % listener
        self._waiting = b" 00000000 00000000 0001 02     0 %b\n" % listener.shown_as
        self._closed = b": 00000002" + self._waiting  # the connection of a client that has closed has RefCount 2

    def waiters_alive(self) -> int:
        table = self._table()
        return table.count(self._waiting) - table.count(self._closed)

    def places_left(self) -> int:
        return self._table().count(self._closed)

    def _table(self) -> bytes:
        table = _read_table(self._node)
        if self._listener not in table:
            raise self._gone()
        return table

    def waiting_sockets(self) -> None:
        return None  # it shows inode 0 for every client that waits


def watch_waiters(node: Node, path: str) -> WaiterWatch:
    """Watches who waits at `path`, by the better way that works here. Raises NodeError."""
    try:
        return SockDiagWatch(node, path)
    except OSError:
        return SocketTableWatch(node, path)


def _listeners_called(node: Node, name: str) -> list[_Listener]:
    """The stream sockets that listen under a path with `name` as its last part. Raises NodeError."""
    line = rb"^\w+: \w+ \w+ 00010000 0001 01 +(\d+) (.*/)?%b$" % re.escape(os.fsencode(name))
    found = re.finditer(line, _read_table(node), re.MULTILINE)
    return [_Listener(int(each[1]), (each[2] or b"") + os.fsencode(name)) for each in found]


def _read_table(node: Node) -> bytes:
    path = node.path("/proc/net/unix")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise NodeError(f"{path}: cannot be read: {error.strerror}; no waiting client can be seen") from error


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
