"""The 40 recorded sequences again, through the real hook and the real daemon: pvehook changes nothing in them.

The window is open all day. Where the recorded hook failed, a chained script fails (the hook that was there before
pvehook), and its exit code must count as it did.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.rehearsal.tree import RehearsalNode
from pvehook.rehearsal.vzdump.player import play
from tests.rehearsal.recordings import Recording, hook_text, recordings, run_for

ALL = recordings()
CONFIG = 'window: {open: ["00:00-24:00"]}\nchain: /usr/local/bin/hook-before-pvehook\n'


@pytest.fixture(scope="module")
def node() -> Iterator[RehearsalNode]:
    root = tempfile.mkdtemp(prefix="pvehook-")  # pytest's own directories are too long for a socket
    try:
        with RehearsalNode(root, {"/etc/pvehook.yaml": CONFIG}) as node:
            yield node
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("recording", ALL, ids=[recording.case for recording in ALL])
def test_with_pvehook_vzdump_does_what_it_did(recording: Recording, node: RehearsalNode) -> None:
    node.write("/usr/local/bin/hook-before-pvehook", hook_text(recording), mode=0o755)
    played = play(run_for(recording, Path(node.hook), Path(node.node.root)))
    calls = [{"argv": list(call.argv), "env": call.env, "exit": call.exit_code} for call in played.calls]
    assert calls == recording.calls
    of_this_job = [event.fields for event in node.journal.events if event.fields.get("PVEHOOK_JOB") == played.upid]
    names = [event["PVEHOOK_EVENT"] for event in of_this_job]
    vmids = [int(event["PVEHOOK_VMID"]) for event in of_this_job if event["PVEHOOK_EVENT"] == "guest-done"]
    assert "window-admitted" in names  # the daemon answered, not the hook's degraded path
    assert "fault" not in names
    assert vmids == list(dict.fromkeys(int(call["argv"][2]) for call in recording.calls if len(call["argv"]) == 3))
