#!/usr/bin/env python3
"""What one call of the hook costs vzdump, beside an empty Python and an equally trivial Perl hook.

    python tests/bench/phase_cost.py [--json] [--rounds N]

All contestants run interleaved in one run, on this machine, started the same way (empty environment, pipes read to
their end, as vzdump does): what is reported is ratios of medians, with the range of the quartiles. The daemon is up
and serves a job, except for `first_call_ms`: a call that has to wait until a daemon has started, as with socket
activation (listening socket, daemon not running).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from pvehook.contract.phases import GUEST_PHASES  # noqa: E402  (the path above is where it lies)
from pvehook.host.systemd import FIRST_FD  # noqa: E402
from tests.node_under_test import NodeUnderTest  # noqa: E402

PERL_HOOK = """#!/usr/bin/perl
use strict; use warnings;
my ($phase, $mode, $vmid) = @ARGV;
print "HOOK: $phase\\n" if $phase eq 'job-init';
exit(0);
"""
PHASES = ("job-init", "job-start", *(each for each in GUEST_PHASES if each != "backup-abort"), "job-end")
ENVIRONMENT = {"LC_ALL": "C", "STOREID": "local", "DUMPDIR": "/var/lib/vz/dump", "VMTYPE": "qemu", "HOSTNAME": "web"}


def arguments_of(phase: str) -> list[str]:
    return [phase, "snapshot", "101"] if phase in GUEST_PHASES else [phase]


def wall_ms(command: Sequence[str]) -> float:
    """One call from its start to the end of its output and of itself, in milliseconds."""
    began = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    took_ms = (time.perf_counter() - began) * 1000
    if done.returncode != 0:
        raise SystemExit(f"{command} failed: {done.stdout!r} {done.stderr!r}")
    return took_ms


def first_call_ms(under_test: NodeUnderTest) -> float:
    """A call while the socket listens and the daemon is only now started for it, as systemd would."""
    path = under_test.node.hook_socket
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        began = time.perf_counter()
        hook = subprocess.Popen(
            [under_test.hook, "job-init"], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        start = (
            f"import os, sys; os.dup2({listener.fileno()}, {FIRST_FD}); os.environ['LISTEN_PID'] = str(os.getpid()); "
            f"os.environ['LISTEN_FDS'] = '1'; sys.path.insert(0, {str(TOP)!r}); "
            "from pvehook.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        daemon = subprocess.Popen(
            [sys.executable, "-I", "-c", start, "serve", "--root", str(under_test.root), "--idle-exit", "1s"],
            pass_fds=(listener.fileno(),),
            stderr=subprocess.DEVNULL,
        )
        hook.communicate(timeout=30)
        took_ms = (time.perf_counter() - began) * 1000
        if hook.returncode != 0:
            raise SystemExit("the first call failed")
        daemon.terminate()
        daemon.wait(10)
    return took_ms


def measure(rounds: int) -> dict[str, object]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    under_test = NodeUnderTest(root)
    perl = root / "perl-hook"
    perl.write_text(PERL_HOOK)
    perl.chmod(0o755)
    interpreter = "/usr/bin/python3"
    times: dict[str, list[float]] = {name: [] for name in ("python", "perl", *PHASES)}
    try:
        with under_test.journal:
            first = [first_call_ms(under_test) for _ in range(5)]
            under_test.start_daemon()
            for _ in range(rounds):
                for phase in PHASES:
                    times["python"].append(wall_ms([interpreter, "-I", "-c", "pass"]))
                    times[phase].append(wall_ms([under_test.hook, *arguments_of(phase)]))
                    times["perl"].append(wall_ms([str(perl), *arguments_of(phase)]))
            under_test.stop()
    finally:
        under_test.stop()
        shutil.rmtree(root)
    python_ms, perl_ms = statistics.median(times["python"]), statistics.median(times["perl"])
    every = [each for phase in PHASES for each in times[phase]]
    return {
        "ratio_to_python": round(statistics.median(every) / python_ms, 2),
        "ratio_to_perl": round(statistics.median(every) / perl_ms, 2),
        "first_call_ms": round(statistics.median(first), 1),
        "python_ms": round(python_ms, 2),
        "perl_ms": round(perl_ms, 2),
        "rounds": rounds,
        "phases": {
            phase: {
                "median_ms": round(statistics.median(times[phase]), 2),
                "quartiles_ms": [round(each, 2) for each in statistics.quantiles(times[phase], n=4)[::2]],
                "ratio_to_python": round(statistics.median(times[phase]) / python_ms, 2),
            }
            for phase in PHASES
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"one hook call: {figures['ratio_to_python']} x bare Python, {figures['ratio_to_perl']} x a Perl hook")
    print(f"first call, which starts the daemon: {figures['first_call_ms']} ms")
    phases = figures["phases"]
    assert isinstance(phases, dict)
    for phase, each in phases.items():
        print(f"  {phase:<14} {each['median_ms']:7.2f} ms  {each['ratio_to_python']:5.2f} x")


if __name__ == "__main__":
    main()
