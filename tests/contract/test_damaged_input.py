"""Whatever a file or a peer holds, its reader lets out what its docstring names and nothing else.

A few executions of each parser, with a seed of their own: tests/bench/fuzz_parsers.py runs millions.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.fuzz_parsers import OF_BYTES, execute, in_tree

TIMES = 150


def test_no_parser_lets_anything_else_out(tmp_path: Path) -> None:
    parsers = {**OF_BYTES, **in_tree(str(tmp_path))}
    faults = [
        fault
        for name, parser in parsers.items()
        for number in range(int(TIMES * parser.share))
        if (fault := execute(name, parser, seed=1, number=number))
    ]
    assert faults == []
