"""The option `agent` of a VM's configuration.

    1
    1,freeze-fs-on-backup=0,type=virtio
    enabled=1,fstrim_cloned_disks=1,guest-fsfreeze=0

Source: `$agent_fmt`, `parse_guest_agent` and `should_fs_freeze` of qemu-server (PVE/QemuServer/Agent.pm, before 9 in
PVE/QemuServer.pm). The switch for the freeze has had three names. `freeze-fs` is today's and the other two are read as
if they were it; older versions know one or two of them, and which one wins differs.
"""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.guest_config import boolean, property_string

_FREEZE_SWITCHES = ("freeze-fs", "freeze-fs-on-backup", "guest-fsfreeze")


class AgentOption(NamedTuple):
    """Whether Proxmox talks to this guest's agent at all, and whether it freezes for a backup."""

    enabled: bool
    freezes: bool
    """Not switched off under any of the three names. If they contradict each other it counts as on: to expect a freeze
    that does not come costs nothing, to miss one leaves the guest unprotected. Meaningless unless `enabled`."""


def parse_agent_option(text: str | None) -> AgentOption:
    """Parses the option; None, and whatever does not parse as `enabled`, is off: Proxmox's default."""
    enabled, settings = property_string(text or "", default_key="enabled")
    switches = [boolean(settings[name]) for name in _FREEZE_SWITCHES if name in settings]
    all_off = bool(switches) and all(each is False for each in switches)
    return AgentOption(enabled=boolean(enabled) is True, freezes=not all_off)
