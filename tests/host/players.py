"""Real processes that do what a test tells them, over pipes; nothing in them waits for the clock.

A player obeys one JSON line at a time and answers with one. It ends when its standard input does, so players
that a player started end with it, save one that the kernel gave to init: it holds on to its starter's pipe.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

SCRIPT = r"""
import ctypes, json, os, subprocess, sys, threading

never = threading.Event()
held = []
python = os.readlink("/proc/self/exe")  # sys.executable is looked for by argv[0], which says something else

def obey():
    for line in sys.stdin:
        order, *rest = json.loads(line)
        print(json.dumps(globals()[order](*rest)), flush=True)
    os._exit(0)

def thread():
    up = threading.Event()
    threading.Thread(target=lambda: (up.set(), never.wait()), daemon=True).start()
    up.wait()

def start(argv):
    child = subprocess.Popen(argv, executable=python, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    held.append(child)
    child.stdout.readline()
    return child.pid

def start_orphan(argv):
    reading, writing = os.pipe()
    answer, telling = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(writing)
        child = subprocess.Popen(argv, executable=python, stdin=reading, stdout=subprocess.PIPE)
        child.stdout.readline()
        os.write(telling, str(child.pid).encode())
        os._exit(0)
    held.append(writing)
    os.close(reading)
    os.close(telling)  # or a middle that failed would leave us reading for ever
    os.waitpid(middle, 0)
    return int(os.read(answer, 20))

def call_yourself(comm):
    with open("/proc/self/comm", "w") as file:
        file.write(comm)

def end_first_thread():
    # The rest of the process goes on without its first thread, which stays as a zombie.
    up = threading.Event()
    threading.Thread(target=lambda: (up.set(), never.wait()), daemon=True).start()
    up.wait()
    print("null", flush=True)
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)

print("null", flush=True)
obey()
"""


def argv(name: str, *arguments: str) -> list[str]:
    """A command line under this name for a player; the arguments are only to be seen in it."""
    return [name, "-s", "-S", "-c", SCRIPT, *arguments]


class Player:
    def __init__(self, name: str = "player", *arguments: str) -> None:
        self._process = subprocess.Popen(
            argv(name, *arguments),
            executable=sys.executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Python looks for its library by argv[0], which says something else; this is inherited.
            env={"PYTHONHOME": sys.base_prefix},
        )
        self.pid = self._process.pid
        self._answer()

    def tell(self, order: str, *rest: str | Sequence[str]) -> Any:
        """Have one order of the script above carried out; its answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([order, *rest]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """End it and wait for its end; what it started ends by itself."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the player has ended"
        return json.loads(line)
