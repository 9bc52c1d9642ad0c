"""What is played: the guests of one night and how vzdump is called to back them up. Values only.

The player writes a `Run` as one JSON line, the worker reads it: see `to_json` and `from_json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["qemu", "lxc"]
State = Literal["running", "stopped", "paused"]
Mode = Literal["snapshot", "suspend", "stop"]
QemuServer = Literal["9.1.10", "9.0"]
"""9.1.10 asks whether the guest is frozen already before it freezes. "9.0", for 9.0.23 and up, does not ask."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest as vzdump finds it when its turn comes."""

    vmid: int
    kind: Kind = "qemu"
    name: str = ""
    """The guest's name; "" is a guest without one, and then HOSTNAME is absent."""
    state: State = "running"
    exists: bool = True
    """False is a VMID of the job that no longer has a configuration."""
    is_ha_started: bool = False
    """Managed by HA and asked to run: PVE then refuses mode stop."""
    can_snapshot: bool = True
    """For a container: whether its storage can snapshot. If not, PVE falls back to suspend."""
    archive_s: float = 0.0
    """How long the archive takes at least, in seconds."""
    agent: bool = False
    """For a VM: whether its option `agent` is on, so that PVE pings the agent and freezes."""
    freeze_fs: bool = True
    """The switch `freeze-fs` in that option."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of vzdump."""

    guests: tuple[Guest, ...]
    hook: str
    """`script:` of vzdump.conf, a path of the real system."""
    root: str
    """The node's tree; paths in the hook's environment are spelled without it, as on a real node."""
    mode: Mode = "snapshot"
    storeid: str = "local"
    """"" is a run with `--dumpdir`: STOREID is then absent, and DUMPDIR is known from job-init on."""
    dumpdir: str = "/var/lib/vz/dump"
    to_pbs: bool = False
    ionice: int = 7
    """As in vzdump.conf: 0..7 best effort, 8 idle."""
    compress: Literal["", "zstd"] = ""
    """With "" no compressor runs, and the names end in .vma and .tar."""
    upid_id: str = ""
    qemu_server: QemuServer = "9.1.10"
    ping_patience_s: float = 3.0
    """PVE's own, for `guest-ping`."""
    freeze_patience_s: float = 20.0
    """For the freeze, then five times for its status. PVE has 10 min, for which a rehearsal has no time."""
    thaw_patience_s: float = 20.0
    """For the thaw. PVE has 3 min."""
    clock_file: str = ""
    """What sets vzdump's clock, see RehearsalClock; "": the real clock."""
    vm_job: str = ""
    """MODULE:CLASS of a VM's backup job, which is a VmJob; "": Proxmox's `backup`."""
    freeze: str = ""
    """MODULE:NAME of PVE's own freeze around the job's start, called with the Task as a `with` block; "": none."""
    pauses: tuple[str, ...] = ()
    """Where the worker waits for a word: `before PHASE [VMID]`, `after PHASE [VMID]`, and in a guest's archive step:

    `before ping VMID`: before PVE asks the guest's agent anything, where it does ask.
    `before backup VMID`: the guest is frozen, or PVE has decided that it is not to be; the backup job is not started.
    `archive VMID`: the compressor (and tar) run and data flows to them; the archive is not completed."""


def to_json(run: Run) -> str:
    """One line, no line feed in it."""
    return json.dumps(asdict(run))


def from_json(line: str) -> Run:
    """The other way round. Raises KeyError or TypeError: both ends are of one version."""
    fields = json.loads(line)
    fields["guests"] = tuple(Guest(**guest) for guest in fields["guests"])
    fields["pauses"] = tuple(fields["pauses"])
    return Run(**fields)
