"""Whether idle I/O priority can have an effect on one guest's backup: read from the node, judged by the rules.

Two questions, answered separately, because an administrator fixes them separately: what of this backup has the
priority at all (rules.io_effect.idle_reach), and whether the disks under it honour priorities.
"""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.section_config import Section, find_section
from pvehook.errors import NodeError
from pvehook.host.block import kernel_version
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup, locate_dump, locate_volume, read_storages, volumes_of, within_look
from pvehook.rules.io_effect import Effect, combined_effect, idle_reach, location_effect


class EffectOfIdle(NamedTuple):
    """`in_short` is for a table, `sentences` for people, the verdicts for programs."""

    in_short: str
    sentences: tuple[str, ...]
    dump: str
    volumes: str


def effect_of_idle(node: Node, reader: TimelyReader, backup: Backup) -> EffectOfIdle:
    """Looks the backup's disks up. Never raises: what cannot be found out is called unknown, with the reason."""
    kernel = kernel_version(node)
    storages: list[Section] = []
    try:
        storages = read_storages(node, reader)
        where = within_look(
            reader,
            "the disks under the dump",
            lambda: locate_dump(node, backup.dumpdir, backup.storeid, storages),
        )
        dump = location_effect(where, kernel)
    except NodeError as error:
        dump = Effect("unknown", str(error))
    try:
        volids = [each.volume for each in volumes_of(node, reader, backup) if each.backup]
        found = within_look(
            reader,
            f"the disks under guest {backup.vmid}",
            lambda: [(volid, locate_volume(node, volid, storages)) for volid in volids],
        )
        disks = combined_effect((volid, location_effect(location, kernel)) for volid, location in found)
    except NodeError as error:
        disks = Effect("unknown", str(error))
    storage = find_section(storages, backup.storeid) if backup.storeid else None
    to_pbs = storage is not None and storage.type == "pbs"
    return EffectOfIdle(
        in_short=_in_short(backup, to_pbs, dump, disks),
        sentences=(
            idle_reach(backup.vmtype, backup.mode, to_pbs),
            f"On the dump {'storage ' + (backup.storeid or '') if to_pbs else backup.dumpdir or 'directory'}: "
            f"{dump.verdict} ({dump.reason}).",
            f"On the guest's own disks{', which it does not reach' if backup.vmtype == 'qemu' else ''}: "
            f"{disks.verdict} ({disks.reason}).",
        ),
        dump=dump.verdict,
        volumes=disks.verdict,
    )


def _in_short(backup: Backup, to_pbs: bool, dump: Effect, disks: Effect) -> str:
    if backup.vmtype == "qemu":
        return "nothing to reach (PBS)" if to_pbs else f"compressor only, dump {dump.verdict}"
    return f"reading {disks.verdict}, dump {dump.verdict}"
