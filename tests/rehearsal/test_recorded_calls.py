"""The player does what the real vzdump was recorded to do: arguments, environment, exit codes, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import play
from tests.rehearsal.recordings import Recording, hook_text, recordings, run_for

ALL = recordings()


def test_there_are_forty_recordings() -> None:
    assert len({recording.case for recording in ALL}) == 40


@pytest.mark.parametrize("recording", ALL, ids=[recording.case for recording in ALL])
def test_the_player_repeats_the_recording(recording: Recording, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(hook_text(recording))
    hook.chmod(0o755)
    played = play(run_for(recording, hook, tmp_path))
    calls = [{"argv": list(call.argv), "env": call.env, "exit": call.exit_code} for call in played.calls]
    assert calls == recording.calls
