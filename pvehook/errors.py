"""What can go wrong, by what the caller can do about it.

    PvehookError
      ├─ ConfigError         the administrator fixes a file; the message names file, line, key, what was expected
      ├─ WindowSpecError     the same for one text of `window.open`; config.py adds file and line
      ├─ NodeError           the node could not be read in time; go on without, and say so
      └─ GuestError          one exchange with one VM failed
           ├─ Unreachable      nobody listens (VM off, no agent): nothing to do
           ├─ Busy             the queue of the socket is full: try later
           ├─ TimedOut         no answer within the deadline: the peer may still act on what was sent
           ├─ BadReply         an answer of a wrong shape, too long or too deep: do not trust this peer
           └─ Refused          an error as the answer: its class and text are in the message
                └─ NotActive     the block job it is about has ended: go on without
"""


class PvehookError(Exception):
    """Everything pvehook raises on purpose. The text is for an administrator: what, which, seen against limit."""


class ConfigError(PvehookError):
    """A configuration that cannot be used."""


class WindowSpecError(PvehookError):
    """A text of `window.open` that is no window."""


class NodeError(PvehookError):
    """Something of the node could not be read, or not within its deadline."""


class GuestError(PvehookError):
    """One exchange with one VM failed."""


class Unreachable(GuestError):
    """Nobody listens on the socket."""


class Busy(GuestError):
    """The socket's queue is full."""


class TimedOut(GuestError):
    """No complete answer came within the deadline."""


class BadReply(GuestError):
    """The answer has a wrong shape, is too long or too deep."""


class Refused(GuestError):
    """The peer answered with an error. `kind` and `description` are its own words, not fit to be shown."""

    def __init__(self, message: str, *, kind: str = "", description: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.description = description


class NotActive(Refused):
    """QEMU's DeviceNotActive: there is no such block job any more, which is how every backup ends."""
