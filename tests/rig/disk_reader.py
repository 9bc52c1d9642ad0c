#!/usr/bin/env python3
"""Reads a block device at random places past the page cache, with some threads, for some seconds; prints how often.

    with reading("/dev/loop3", threads=4, seconds=5.0) as reader:      its threads are there, and wait
        reader.go()
        print(reader.reads())
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

REQUEST_BYTES: Final = 64 * 1024
ENDS_WITHIN_S: Final = 30.0


class Reader(NamedTuple):
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def reads(self) -> int:
        """Once it has ended."""
        output, _ = self.process.communicate(timeout=ENDS_WITHIN_S)
        return int(output)


@contextmanager
def reading(device: str, threads: int, seconds: float) -> Iterator[Reader]:
    arguments = [sys.executable, __file__, device, str(threads), str(seconds)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Reader(process)
        finally:
            process.kill()


def main() -> None:
    device, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    places = os.lseek(fd, 0, os.SEEK_END) // REQUEST_BYTES
    go = threading.Event()
    counts = [0] * threads

    def read(number: int) -> None:
        chance = random.Random(number)
        buffer = mmap.mmap(-1, REQUEST_BYTES)  # O_DIRECT wants whole pages
        go.wait()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            os.preadv(fd, [buffer], chance.randrange(places) * REQUEST_BYTES)
            counts[number] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for each in readers:
        each.start()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    for each in readers:
        each.join()
    print(sum(counts))


if __name__ == "__main__":
    main()
