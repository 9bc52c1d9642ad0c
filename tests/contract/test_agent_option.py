"""The option `agent` in the spellings that qemu-server has had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.guest_config import AgentOption, parse_agent_option


@pytest.mark.parametrize(
    "text", ["1", "enabled=1", "1,type=virtio", "type=isa,enabled=1", "yes", "on", "fstrim_cloned_disks=1,enabled=true"]
)
def test_an_agent_that_is_on_freezes_unless_told_otherwise(text: str) -> None:
    assert parse_agent_option(text) == AgentOption(enabled=True, freezes=True)


@pytest.mark.parametrize("text", [None, "", "0", "enabled=0", "0,type=virtio", "type=virtio", "perhaps", "enabled="])
def test_an_agent_that_is_not_switched_on_is_off(text: str | None) -> None:
    assert not parse_agent_option(text).enabled


@pytest.mark.parametrize("name", ["freeze-fs", "freeze-fs-on-backup", "guest-fsfreeze"])
def test_each_of_the_three_names_switches_the_freeze_off(name: str) -> None:
    assert parse_agent_option(f"1,{name}=0") == AgentOption(enabled=True, freezes=False)
    assert parse_agent_option(f"{name}=off, enabled=1") == AgentOption(enabled=True, freezes=False)
    assert parse_agent_option(f"1,{name}=1") == AgentOption(enabled=True, freezes=True)


def test_where_the_names_contradict_each_other_a_freeze_is_expected() -> None:
    assert parse_agent_option("1,guest-fsfreeze=1,freeze-fs-on-backup=0").freezes
    assert not parse_agent_option("1,guest-fsfreeze=0,freeze-fs-on-backup=0").freezes


@given(st.text(alphabet=st.sampled_from("01=,enabled freeze-fs\x00é"), max_size=60))
def test_no_text_raises(text: str) -> None:
    parse_agent_option(text)
