"""The rooms and who may import whom (design/architecture.md), and what may be imported where vzdump waits."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pvehook import hook_call
from pvehook.contract.call import TAKEN_UP
from pvehook.contract.phases import PHASES, REFUSABLE_PHASES
from pvehook.host.node import INSTALLED_UNDER
from pvehook.settings import DEFAULT

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "pvehook"

CONTRACT_AND_BELOW = {"contract", "errors", "settings"}
RESCUE_AND_BELOW = CONTRACT_AND_BELOW | {"rules", "guest", "host", "rescue"}
ACTING = RESCUE_AND_BELOW | {"config", "records"}
"""What the rooms that act may import; not each other."""

ALLOWED = {
    "errors": set(),
    "deadline": set(),
    "settings": {"errors"},
    "contract": {"errors"},
    "rules": {"contract", "errors", "settings"},
    "guest": {"contract", "errors"},
    "host": {"contract", "errors"},
    "rescue": RESCUE_AND_BELOW,
    "records": {"contract", "rules", "host", "errors"},
    "config": {"contract", "rules", "host", "rescue", "errors", "settings"},
    "report": {"contract", "records", "rules", "host", "errors"},
    "hook_call": {"rescue"},
    "admission": ACTING,
    "priority": ACTING,
    "freeze": ACTING,
    "throttle": ACTING,
    "watch": ACTING | {"throttle"},
    "night": ACTING | {"report"},
    "daemon": ACTING | {"admission", "priority", "freeze", "throttle", "watch", "night"},
    "preview": ACTING | {"admission", "priority", "freeze", "throttle", "watch", "report", "night"},
    "doctor": ACTING | {"admission", "priority", "freeze", "throttle", "watch", "report", "night"},
    "rehearsal": {"contract", "guest", "host"},
}
"""design/architecture.md: who may import whom. `cli` may import everything, and `deadline` is for all who wait."""

PURE = ("rules", "contract")

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(source: Path) -> set[str]:
    names = set()
    for each in ast.walk(ast.parse(source.read_text())):
        if isinstance(each, ast.Import):
            names |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module:
            names |= {each.module} | {f"{each.module}.{alias.name}" for alias in each.names}
    return names


def room_of(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(source: Path) -> None:
    room = room_of(source)
    if room in ("cli", "__init__"):
        return
    rooms = {name.split(".")[1] for name in imported_modules(source) if name.startswith("pvehook.") and name.count(".")}
    rooms = {each for each in rooms if (PACKAGE / each).is_dir() or (PACKAGE / f"{each}.py").exists()}
    waits = set() if room in PURE else {"deadline"}
    assert rooms - {room} <= ALLOWED[room] | waits


def test_every_room_is_in_the_table() -> None:
    assert {room_of(source) for source in SOURCES} - {"cli", "__init__"} == set(ALLOWED)


def test_no_module_imports_itself_through_others() -> None:
    """Imports for type checking and inside functions count too: a reader walks in that circle all the same."""
    modules = {
        ".".join(source.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): source for source in SOURCES
    }
    imports = {name: own_imports(source, modules.keys()) - {name} for name, source in modules.items()}
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(reversed(circle.args[1])))


def own_imports(source: Path, modules: Collection[str]) -> set[str]:
    """The `modules` that this file takes something from; of `from package import module` it is only the module."""
    found = set()
    for each in ast.walk(ast.parse(source.read_text())):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module:
            full = {f"{each.module}.{alias.name}" for alias in each.names}
            found |= {name if name in modules else each.module for name in full}
    return found & set(modules)


def test_decisions_do_no_io_and_ask_no_clock() -> None:
    forbidden = {"os", "socket", "subprocess", "time", "pathlib", "threading", "tempfile", "shutil", "psutil"}
    for room in PURE:
        for source in (PACKAGE / room).rglob("*.py"):
            assert not imported_modules(source) & forbidden, source
            assert "datetime.now" not in source.read_text(), source


def modules_after(code: str) -> set[str]:
    """What the interpreter has loaded after `code`, beyond what it always loads."""
    show = "import sys; print(*sys.modules)"
    bare = subprocess.run([sys.executable, "-IS", "-c", show], capture_output=True, text=True, check=True)
    loaded = subprocess.run([sys.executable, "-IS", "-c", code + show], capture_output=True, text=True, check=True)
    return set(loaded.stdout.split()) - set(bare.stdout.split())


def test_the_hook_imports_next_to_nothing() -> None:
    """Each listed module is built in, or the C half of one that would cost vzdump milliseconds a phase."""
    load = f"import sys; sys.path.insert(0, {str(TOP)!r}); import pvehook.hook_call; "
    assert modules_after(load) <= {"_socket", "_json", "_signal", "time", "posix", "pvehook", "pvehook.hook_call"}


RESCUE_MODULES = sorted(f"pvehook.rescue.{each.stem}" for each in (PACKAGE / "rescue").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", RESCUE_MODULES)
def test_what_must_work_when_everything_else_is_broken_needs_the_standard_library_only(module: str) -> None:
    """`-S`: nothing but the standard library can be found at all, as in the hook."""
    loaded = modules_after(f"import sys; sys.path.insert(0, {str(TOP)!r}); import {module}; ")
    assert module in loaded
    assert not loaded & {"yaml", "structlog", "psutil", "asyncio", "logging", "argparse"}


def test_the_hook_and_the_contract_agree() -> None:
    """The hook spells some facts out itself, because it imports next to nothing of ours."""
    assert hook_call.REFUSABLE_PHASES == REFUSABLE_PHASES
    assert hook_call.TAKEN_UP == TAKEN_UP
    assert DEFAULT.window.open == (hook_call.BUILT_IN_WINDOW,)
    assert set(hook_call.DEADLINE_S) == set(PHASES)
    assert f'INSTALLED_UNDER = "{INSTALLED_UNDER}"\n' in (TOP / "hooks" / "vzdump-hook").read_text()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_grows_too_long_to_be_read_at_once(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= 400
