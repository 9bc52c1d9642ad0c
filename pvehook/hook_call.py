"""One hook call: what `hooks/vzdump-hook` does once it has loaded this module.

It is a doorbell: it sends one JSON line to the daemon, prints the lines of the reply (they land in vzdump's task log
or notification) and exits with the reply's code; contract/call.py describes both. A call that the daemon does not take
up or answer in time goes to the path that needs no daemon (rescue/without_daemon.py): the window check, the chained
script, the I/O priority, thaw. Only a closed window refuses a run.

vzdump waits for it at least seven times per guest, so it imports only what the interpreter has loaded already or has
built in: no json (7 ms), socket (7 ms), os (1 ms), argparse, pathlib, subprocess, logging. `posix`, `_socket`, `_json`
and `_signal` are the C halves of such modules; tests/test_rooms.py holds the list.
"""

import _signal  # type: ignore[import-not-found]  # typeshed knows only `signal`
import posix
import sys
import time
from _json import encode_basestring_ascii as quoted
from _socket import AF_UNIX, SOCK_STREAM, socket

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

BUILT_IN_WINDOW = "02:00-05:00"
"""The default's (settings.py), for when not even the path without a daemon can say by which window to go."""

CHAINED_NS = 73
"""The chained script's timer slack is the worker's and this much more. A hook that finds itself with that was called by
the script, so their chain is a circle. Timer slack (prctl(2), PR_SET_TIMERSLACK) passes on to children and through
execve: neither `env -i` nor `exec` in a script can lose it, as they lose a variable or an ancestor."""

ENOEXEC = 8  # the kernel's number on every architecture; the errno module is not worth an import


class NoAnswer(Exception):
    """The daemon gave no usable answer; the text says how that showed."""


class TooLate(BaseException):
    """The phase's whole deadline has passed. It may come anywhere, so no `except Exception` may take it."""


class Outcome:
    """What is known so far of how this call ends."""

    code: int | None = None
    chain = b""
    comes_first = False
    """Whether the daemon wants to be called again once the chained script has ended well."""
    chained_ns = 0


def main(argv: list[str], script: str, root: str, *, chain_ran: bool = False) -> int:
    """Returns the exit code, or becomes the chained script. `script`: the hook's path; `root`: what stands before the
    node's paths in a rehearsal, "" on a node. `chain_ran`: this is the second call of a phase."""
    began_s = time.monotonic()
    phase = argv[0] if argv else ""
    deadline_s = DEADLINE_S.get(phase, UNKNOWN_PHASE_DEADLINE_S)
    # The last resort: whatever hangs below, this raises TooLate. (A process that the kernel holds in an
    # uninterruptible wait is out of reach for every signal.)
    _signal.signal(_signal.SIGALRM, give_up)
    _signal.alarm(deadline_s)
    outcome = Outcome()
    try:
        fault = serve(argv, root, began_s, deadline_s, outcome, chain_ran)
        _signal.alarm(0)  # an alarm outlives execve and would kill the chained script
    except TooLate:
        fault = f"{phase} was given up after {deadline_s} s"
    if fault:
        outcome.code = verdict_after(fault, phase, outcome.code)
    if outcome.code or not outcome.chain or chain_ran:
        return outcome.code or 0
    if outcome.comes_first:
        try:
            child = posix.fork()
        except OSError:
            child = 0  # as without a second call: the guest's freeze is left to Proxmox
        if child:
            _, status = posix.waitpid(child, 0)  # without a deadline, as the script had none before
            if posix.WIFSIGNALED(status):
                undo_pythons_signals()
                posix.kill(posix.getpid(), posix.WTERMSIG(status))
            return posix.WEXITSTATUS(status) or main(argv, script, root, chain_ran=True)
    if outcome.chained_ns:
        write_file(root + "/proc/self/timerslack_ns", outcome.chained_ns)
    return run_chained(outcome.chain, argv, phase, script)


def give_up(*_: object) -> None:
    raise TooLate


def serve(
    argv: list[str], root: str, began_s: float, deadline_s: int, outcome: Outcome, chain_ran: bool
) -> str:
    """Has the call answered, by the daemon or without it, and prints the lines. Returns why neither could, or ""."""
    env = {}
    for name in SENT_ENVIRONMENT:
        value = posix.environ.get(name.encode())
        if value is not None:
            env[name] = value.decode("utf-8", "surrogateescape")
    worker_pid, outcome.chained_ns = find_worker(root + "/proc")
    if read_number(root + "/proc/self/timerslack_ns") == outcome.chained_ns != 0:
        show("called by its own chained script, so this call does nothing; see `pvehook config check`")
        outcome.code = 0
        return ""
    until_s = began_s + deadline_s - RESERVE_S
    try:
        outcome.code, outcome.chain, outcome.comes_first, text = ask_daemon(
            root + "/run/pvehook", argv, env, worker_pid, until_s, chain_ran
        )
    except NoAnswer as no_answer:
        why = str(no_answer)
    except Exception as fault:  # a fault of ours: the window is asked all the same
        why = f"fault in the hook: {fault!r}"
    except TooLate:
        why = f"no answer within {deadline_s} s"
        _signal.alarm(RESERVE_S)
    else:
        write_all(text)
        return ""
    try:
        without_daemon(argv, env, worker_pid, root, why, outcome)
    except Exception as fault:  # a fault of ours costs a log line, never a backup
        return f"the daemon does not answer ({why}), and without it: {fault!r}"
    return ""


def verdict_after(fault: str, phase: str, known: int | None) -> int:
    """What counts after a fault or a hang: the verdict that was known by then, else the built-in window."""
    now = time.strftime("%H:%M")
    if known is None and phase in REFUSABLE_PHASES and not BUILT_IN_WINDOW[:5] <= now < BUILT_IN_WINDOW[6:]:
        show(f"{fault}; the built-in window {BUILT_IN_WINDOW} decides: this is refused, as it is {now}")
        return 1
    show(f"{fault}; the backup goes on, in this phase without pvehook")
    return known or 0


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


def find_worker(proc: str) -> tuple[int, int]:
    """vzdump's worker: the nearest ancestor whose command line is that of a backup task, as somebody's wrapper script
    may stand between. Without one it is the parent, whose priority nobody touches; 0 where that is process 1, which
    inherits a hook whose worker was killed. And the timer slack that marks its chained scripts, 0 where not known."""
    parent = pid = posix.getppid()
    worker = parent if parent > 1 else 0
    try:
        for _ in range(ANCESTORS_LIMIT):
            command = read_file(f"{proc}/{pid}/cmdline")
            if command.startswith(b"task UPID:") and b":vzdump:" in command:
                worker = pid
                break
            pid = int(read_file(f"{proc}/{pid}/stat").rpartition(b")")[2].split()[1]) or pid
    except (OSError, ValueError, IndexError):
        pass
    slack_ns = read_number(f"{proc}/{pid}/timerslack_ns")
    return worker, slack_ns and slack_ns + CHAINED_NS


def ask_daemon(
    run_dir: str, argv: list[str], env: dict[str, str], worker_pid: int, until_s: float, chain_ran: bool
) -> tuple[int, bytes, bool, bytes]:
    """Exit code, chained script, whether that comes first, and lines. Raises NoAnswer when the daemon is not there, too
    slow, or does not speak our language."""
    marker = run_dir + "/not-taken-up"
    known = read_number(marker)
    now_s = time.monotonic()
    taken_up_until_s = min(now_s + (TAKEN_UP_AGAIN_S if known == worker_pid else TAKEN_UP_S), until_s)
    words = ",".join(map(quoted, argv))
    pairs = ",".join(f"{quoted(name)}:{quoted(value)}" for name, value in env.items())
    line = f'{{"v":1,"argv":[{words}],"env":{{{pairs}}},"worker":{worker_pid},"until":{until_s:.3f}'
    line += ',"chain_ran":true}\n' if chain_ran else "}\n"
    reply, extra_s, taken_up = bytearray(), 0, False
    try:
        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
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
        finally:
            connection.close()
    except TimeoutError:
        if taken_up:
            raise NoAnswer(f"no answer within {until_s + extra_s - now_s:.0f} s") from None
        # The run's next calls wait only a moment. One mark is enough: a second run at worst waits as long as the first.
        write_file(marker, worker_pid)
        raise NoAnswer(f"not taken up within {taken_up_until_s - now_s:.1f} s") from None
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from None
    if known and taken_up:
        try:
            posix.unlink(marker)
        except OSError:
            pass  # another call was quicker
    head, _, text = bytes(reply).partition(b"\n")
    verb, code, chains, chain = (head.split(b" ", 3) + [b""] * 3)[:4]
    if verb == b"not-served":
        raise NoAnswer(text.decode(errors="replace").strip())
    if verb != b"exit" or not (code.isdigit() and len(code) <= 3 and int(code) <= 255):
        raise NoAnswer("the answer broke off" if reply else "the connection was closed without an answer")
    return int(code), chain if chains in (b"chain", b"first") else b"", chains == b"first", text


def more_patience(reply: bytearray) -> int:
    """Takes the line `wait SECONDS` off the reply: the daemon does something that is meant to take longer."""
    line, _, rest = bytes(reply).partition(b"\n")
    reply[:] = rest
    number = line[5:]
    seconds = min(int(number), LONGEST_EXTRA_S) if number.isdigit() and len(number) <= 9 else 0
    _signal.alarm(_signal.alarm(0) + seconds)
    return seconds


def write_file(path: str, number: int) -> None:
    """As well as it can be done: without its marks the hook waits longer, or finds a circle later."""
    try:
        file = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
        posix.write(file, b"%d" % number)
        posix.close(file)
    except OSError:
        pass


def read_number(path: str) -> int:
    """0 where there is none that can be read."""
    try:
        return int(read_file(path))
    except (OSError, ValueError):
        return 0


def read_file(path: str) -> bytes:
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        return posix.read(file, 4096)
    finally:
        posix.close(file)


def show(line: str) -> None:
    write_all(f"pvehook: {line}\n".encode("utf-8", "backslashreplace"))


def write_all(text: bytes) -> None:
    """Straight to the pipe: what vzdump shows must not depend on Python's encoding of the C locale."""
    try:
        while text:
            text = text[posix.write(1, text) :]
    except OSError:
        pass  # nobody reads any more; that is no reason to fail a backup


def undo_pythons_signals() -> None:
    """Those that Python ignores for itself do again what they do to any other program."""
    for ignored_by_python in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(ignored_by_python, _signal.SIG_DFL)


def run_chained(chain: bytes, argv: list[str], phase: str, script: str) -> int:
    """Becomes the script that was in vzdump.conf before us: same arguments, pipes and environment, and its own end
    (exit code or signal) is what vzdump sees. It has no deadline, as it had none before."""
    undo_pythons_signals()
    arguments: list[bytes | str] = [chain, *argv]
    try:
        its, ours = posix.stat(chain), posix.stat(script)
        if (its.st_dev, its.st_ino) == (ours.st_dev, ours.st_ino):
            show("`chain:` leads back to pvehook's own hook and is not run; correct /etc/pvehook.yaml")
            return 0
        try:
            posix.execve(chain, arguments, posix.environ)  # no shell: arguments pass as they are
        except OSError as error:
            if error.errno != ENOEXEC:
                raise
            # No `#!` line: Perl's exec, like execvp(3), gives such a file to the shell, so Proxmox ran it.
            posix.execve("/bin/sh", ["/bin/sh", *arguments], posix.environ)
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
