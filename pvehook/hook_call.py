"""One hook call: what `hooks/vzdump-hook` does once it has loaded this module.

It is a doorbell: it sends one JSON line to the daemon, prints the lines of the reply (they land in vzdump's task log
or notification) and exits with the reply's code; contract/call.py describes both. A call that the daemon does not take
up or answer in time goes to the path that needs no daemon (rescue/without_daemon.py): the window check, the chained
script, the I/O priority, thaw. Only a closed window refuses a run.

vzdump waits for it at least seven times per guest, so it imports only what the interpreter has loaded already or has
built in: no json (7 ms), socket (7 ms), os (1 ms), argparse, pathlib, subprocess, logging. `posix`, `_socket`, `_json`
and `_signal` are the C halves of such modules; tests/test_rooms.py holds the list.
"""

import sys
import time
from _json import encode_basestring_ascii as quoted
from _signal import (  # type: ignore[import-not-found]  # typeshed knows only `signal`
    SIG_DFL,
    SIGALRM,
    SIGPIPE,
    SIGXFSZ,
    alarm,
    signal,
)
from _socket import AF_UNIX, SOCK_STREAM, socket
from posix import (
    O_CLOEXEC,
    O_CREAT,
    O_NONBLOCK,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    close,
    environ,
    execve,
    getppid,
    read,
    stat,
    stat_result,
    unlink,
    write,
)
from posix import open as open_fd

SENT_ENVIRONMENT = ("STOREID", "DUMPDIR", "VMTYPE", "HOSTNAME", "TARGET", "LOGFILE")
REFUSABLE_PHASES = ("job-init", "job-start", "backup-start")
REPLY_LIMIT_BYTES = 1 << 20  # over 1 MiB of output the notification drops the whole log (facts/vzdump.md)

# How long vzdump may be kept waiting, in all, by phase. The daemon gets all but the last RESERVE_S, which belongs
# to the path without a daemon.
RESERVE_S = 3
DEADLINE_S = {
    "job-init": 10,
    "job-start": 10,
    "backup-start": 10,
    "pre-stop": 10,
    "pre-restart": 8,
    "post-restart": 10,
    "backup-end": 10,
    "backup-abort": 10,
    "log-end": 12,
    "job-end": 12,
    "job-abort": 12,
}
UNKNOWN_PHASE_DEADLINE_S = 8

# A daemon takes a call up before it thinks about it. The first time it may have to be started for that; a run that has
# waited once in vain only tries again.
TAKEN_UP = b"taken-up\n"
TAKEN_UP_S = 2.5
TAKEN_UP_AGAIN_S = 0.1

LONGEST_EXTRA_S = 700  # a pre-flush that the configuration allows up to 600 s

ANCESTORS_LIMIT = 8

CHAINED = b"PVEHOOK_CHAINED"
"""Set for the chained script. A hook that finds it was called by that script: their chain is a circle."""

ENOEXEC = 8  # the kernel's number on every architecture; the errno module is not worth an import


class NoAnswer(Exception):
    """The daemon gave no usable answer; the text says how that showed."""


class TooLate(BaseException):
    """The phase's whole deadline has passed. It may come anywhere, so no `except Exception` may take it."""


class Outcome:
    """What is known so far of how this call ends."""

    code = 0
    chain = b""


def main(argv: list[str], script: str, root: str) -> int:
    """Returns the exit code, or becomes the chained script. `script`: the hook's path; `root`: what stands before the
    node's paths in a rehearsal, "" on a node."""
    began_s = time.monotonic()
    phase = argv[0] if argv else ""
    if CHAINED in environ:
        show("pvehook: called by its own chained script, so this call does nothing; see `pvehook config check`")
        return 0
    deadline_s = DEADLINE_S.get(phase, UNKNOWN_PHASE_DEADLINE_S)
    # The last resort: whatever hangs below, this raises TooLate. (A process that the kernel holds in an
    # uninterruptible wait is out of reach for every signal.)
    signal(SIGALRM, give_up)
    alarm(deadline_s)
    outcome = Outcome()
    try:
        serve(argv, root, began_s, deadline_s, outcome)
        alarm(0)  # an alarm outlives execve and would kill the chained script
    except TooLate:
        show(f"pvehook: {phase} was given up after {deadline_s} s; the backup goes on, in this phase without pvehook")
    if outcome.code == 0 and outcome.chain:
        return run_chained(outcome.chain, argv, phase, script)
    return outcome.code


def give_up(*_: object) -> None:
    raise TooLate


def serve(argv: list[str], root: str, began_s: float, deadline_s: int, outcome: Outcome) -> None:
    """Has the call answered, by the daemon or without it, and prints the lines."""
    env = {}
    for name in SENT_ENVIRONMENT:
        value = environ.get(name.encode())
        if value is not None:
            env[name] = value.decode("utf-8", "surrogateescape")
    worker_pid = find_worker(root + "/proc")
    until_s = began_s + deadline_s - RESERVE_S
    text: bytes | None = None
    try:
        outcome.code, outcome.chain, text = ask_daemon(root + "/run/pvehook", argv, env, worker_pid, until_s)
    except NoAnswer as no_answer:
        why = str(no_answer)
    except Exception as fault:  # a fault of ours: the window is asked all the same
        why = f"fault in the hook: {fault!r}"
    except TooLate:
        why = f"no answer within {deadline_s} s"
        alarm(max(RESERVE_S, 1))
    if text is None:
        try:
            without_daemon(argv, env, worker_pid, root, why, outcome)
        except Exception as fault:  # a fault of ours costs a log line, never a backup
            show(f"pvehook: the daemon does not answer ({why}), and without it: {fault!r}; the backup goes on")
    else:
        write_all(text)


def without_daemon(
    argv: list[str], env: dict[str, str], worker_pid: int, root: str, why: str, outcome: Outcome
) -> None:
    """The path that needs no daemon. Its verdict counts as soon as it is known, whatever hangs after it."""
    try:  # 30 ms that only this path pays
        from pvehook.rescue import without_daemon as path  # noqa: PLC0415
    except Exception:  # damaged bytecode: everything from its source then
        sys.pycache_prefix, sys.dont_write_bytecode = "/dev/null", True
        from pvehook.rescue import without_daemon as path  # noqa: PLC0415
    outcome.code, outcome.chain, text, settle = path.answer(root or "/", argv, env, worker_pid, why)
    write_all(text)
    write_all(settle())


def find_worker(proc: str) -> int:
    """vzdump's worker: the nearest ancestor whose command line is that of a backup task, as somebody's wrapper script
    may stand between. Without one it is the parent, whose priority nobody touches; 0 where that is process 1, which
    inherits a hook whose worker was killed."""
    parent = pid = getppid()
    try:
        for _ in range(ANCESTORS_LIMIT):
            command = read_file(f"{proc}/{pid}/cmdline")
            if command.startswith(b"task UPID:") and b":vzdump:" in command:
                return pid
            pid = int(read_file(f"{proc}/{pid}/stat").rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return parent if parent > 1 else 0


def ask_daemon(
    run_dir: str, argv: list[str], env: dict[str, str], worker_pid: int, until_s: float
) -> tuple[int, bytes, bytes]:
    """Exit code, chained script and lines. Raises NoAnswer when the daemon is not there, too slow, or does not speak
    our language."""
    marker = run_dir + "/not-taken-up"
    known = marked_worker(marker)
    now_s = time.monotonic()
    taken_up_until_s = min(now_s + (TAKEN_UP_AGAIN_S if known == worker_pid else TAKEN_UP_S), until_s)
    words = ",".join(map(quoted, argv))
    pairs = ",".join(f"{quoted(name)}:{quoted(value)}" for name, value in env.items())
    line = f'{{"v":1,"argv":[{words}],"env":{{{pairs}}},"worker":{worker_pid},"until":{until_s:.3f}}}\n'
    reply, extra_s, taken_up = bytearray(), 0, False
    try:
        with Connection() as connection:
            connection.settimeout(max(taken_up_until_s - now_s, 0.001))
            connection.connect(run_dir + "/hook.sock")
            connection.sendall(line.encode("ascii"))
            while len(reply) <= REPLY_LIMIT_BYTES:
                waits_until_s = until_s + extra_s if taken_up else taken_up_until_s
                connection.settimeout(max(waits_until_s - time.monotonic(), 0.001))
                chunk = connection.recv(65536)
                if not chunk:
                    break
                reply += chunk
                taken_up = True
                if reply.startswith(TAKEN_UP):
                    del reply[: len(TAKEN_UP)]
                if not extra_s and reply.startswith(b"wait ") and b"\n" in reply:  # once, or it would never end
                    extra_s = more_patience(reply)
    except TimeoutError:
        if taken_up:
            raise NoAnswer(f"no answer within {until_s + extra_s - now_s:.0f} s") from None
        mark(marker, worker_pid)
        raise NoAnswer(f"not taken up within {taken_up_until_s - now_s:.1f} s") from None
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from None
    if known is not None and taken_up:
        unlink(marker)
    head, _, text = bytes(reply).partition(b"\n")
    words_of_head = head.split(b" ", 3)
    if words_of_head[0] == b"not-served":
        raise NoAnswer(text.decode(errors="replace").strip())
    code = words_of_head[1] if len(words_of_head) >= 2 else b""
    if words_of_head[0] != b"exit" or not (code.isdigit() and len(code) <= 3 and int(code) <= 255):
        raise NoAnswer("the answer broke off" if reply else "the connection was closed without an answer")
    chain = words_of_head[3] if len(words_of_head) == 4 and words_of_head[2] == b"chain" else b""
    return int(code), chain, text


def more_patience(reply: bytearray) -> int:
    """Takes the line `wait SECONDS` off the reply: the daemon does something that is meant to take longer."""
    line, _, rest = bytes(reply).partition(b"\n")
    reply[:] = rest
    number = line[5:]
    seconds = min(int(number), LONGEST_EXTRA_S) if number.isdigit() and len(number) <= 9 else 0
    alarm(alarm(0) + seconds)
    return seconds


def marked_worker(marker: str) -> int | None:
    """The worker whose last call nobody took up; None without a mark."""
    try:
        return int(read_file(marker))
    except OSError:
        return None
    except ValueError:
        return 0


def mark(marker: str, worker_pid: int) -> None:
    """The run's next calls wait only a moment. One mark is enough: a second run at worst waits longer, as the first."""
    try:
        file = open_fd(marker, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        write(file, b"%d" % worker_pid)
        close(file)
    except OSError:
        pass  # the next call waits as long as this one


def read_file(path: str) -> bytes:
    file = open_fd(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    try:
        return read(file, 4096)
    finally:
        close(file)


class Connection(socket):
    """`socket.socket` without the `socket` module: closes itself."""

    def __init__(self) -> None:
        super().__init__(AF_UNIX, SOCK_STREAM)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def show(line: str) -> None:
    write_all(line.encode("utf-8", "backslashreplace") + b"\n")


def write_all(text: bytes) -> None:
    """Straight to the pipe: what vzdump shows must not depend on Python's encoding of the C locale."""
    try:
        while text:
            text = text[write(1, text) :]
    except OSError:
        pass  # nobody reads any more; that is no reason to fail a backup


def run_chained(chain: bytes, argv: list[str], phase: str, script: str) -> int:
    """Becomes the script that was in vzdump.conf before us: same arguments, pipes, and environment but for our mark,
    and its own end (exit code or signal) is what vzdump sees. It has no deadline, as it had none before."""
    for ignored_by_python in (SIGPIPE, SIGXFSZ):
        signal(ignored_by_python, SIG_DFL)
    marked = {**environ, CHAINED: b"1"}
    arguments: list[bytes | str] = [chain, *argv]
    try:
        if samestat(stat(chain), stat(script)):
            write_all(b"pvehook: `chain:` leads back to pvehook's own hook and is not run; correct /etc/pvehook.yaml\n")
            return 0
        try:
            execve(chain, arguments, marked)  # no shell: arguments pass as they are
        except OSError as error:
            if error.errno != ENOEXEC:
                raise
            # No `#!` line: Perl's exec, like execvp(3), gives such a file to the shell, so Proxmox ran it.
            execve("/bin/sh", ["/bin/sh", *arguments], marked)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        # Proxmox itself ends a job whose script cannot be run. So do we, but only where that harms no guest.
        fatal = phase in REFUSABLE_PHASES
        write_all(
            b"pvehook: the chained script %s cannot be run (%s); %s\n"
            % (
                chain.replace(b"\0", b"\\0"),
                (getattr(error, "strerror", None) or str(error)).encode(),
                b"fix it or take `chain:` out of /etc/pvehook.yaml" if fatal else b"the backup goes on",
            )
        )
        return 1 if fatal else 0


def samestat(one: stat_result, other: stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
