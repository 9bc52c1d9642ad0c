"""Backups that only Proxmox's storages know of, asked for once by an administrator."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from pvehook.cli import main
from pvehook.host.node import Node
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import last_good_s
from pvehook.records.history import history_file, reading
from pvehook.records.history_writing import append_attempts

STORAGES = """\
pbs: backup
\tserver pbs.example
\tdatastore store
\tcontent backup

nfs: nas
\tpath /mnt/pve/nas
\tserver nas.example
\texport /export
\tcontent images

nfs: other
\tpath /mnt/pve/other
\tserver nas.example
\texport /other
\tcontent backup
\tnodes another
"""
LISTED = [
    {"volid": "backup:backup/vm/101/2026-11-01T01:00:00Z", "vmid": 101, "ctime": 1761958800, "content": "backup"},
    {"volid": "backup:backup/vm/101/2026-11-08T01:00:00Z", "vmid": "101", "ctime": "1762563600"},
    {"volid": "backup:backup/ct/110/2026-11-08T01:00:00Z", "vmid": 110, "ctime": 1762563600},
    {"volid": "backup:backup/vm/999/2026-11-08T01:00:00Z", "vmid": 999, "ctime": 1762563600},
    {"volid": "backup:backup/host/x/2026-11-08T01:00:00Z", "ctime": 1762563600},
]
PVESH = """\
#!/bin/sh
test "$1 $3 $4 $5 $6" = "get --content backup --output-format json" || exit 9
echo "$2" >> {asked}
case "$2" in
*/backup/content) cat {listed} ;;
*/local/content) echo 'no such dir' >&2; exit 2 ;;
esac
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """With guests 101, 102 (which has a backup on record) and the container 110."""
    asked, listed = tmp_path / "asked", tmp_path / "listed"
    listed.write_text(json.dumps(LISTED))
    files = {
        "etc/pve/storage.cfg": STORAGES,
        "etc/pve/qemu-server/101.conf": "name: web\n",
        "etc/pve/qemu-server/102.conf": "name: db\n",
        "etc/pve/lxc/110.conf": "hostname: dns\n",
        "usr/bin/pvesh": PVESH.format(asked=asked, listed=listed),
        "var/lib/pvehook/none": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "usr/bin/pvesh").chmod(0o755)
    found = Node(str(tmp_path))
    now_s = time.time()
    turn = Attempt(
        102, now_s - 3600, now_s - 3000, "pve", "UPID", None, "unknown", "db", "qemu", "snapshot", "ok", ""
    )
    append_attempts(history_file(found), [turn], now_s=now_s)
    return found


def good(node: Node) -> dict[int, float]:
    with reading(history_file(node)) as history:
        return dict(last_good_s(history, time.time()))


def test_those_without_a_good_backup_on_record_have_the_storages_ones(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["night", "--ask-storages", "--root", node.root]) == 0
    found = good(node)
    assert (found[101], found[110]) == (1762563600, 1762563600)
    assert 999 not in found  # of another node
    said = capsys.readouterr().err
    assert "asking storage backup (pbs)" in said
    assert "asking storage nas" not in said  # holds no backups
    assert "NOT ASKED: storage local: pvesh get" in said
    assert "no such dir" in said
    assert "backups are on record now of 2 of 2 guests that had none" in said


def test_the_node_is_asked_by_its_own_name(node: Node) -> None:
    main(["night", "--ask-storages", "--root", node.root])
    name = socket.gethostname().partition(".")[0]
    asked = Path(node.path("/asked")).read_text().split()
    assert asked == [f"/nodes/{name}/storage/local/content", f"/nodes/{name}/storage/backup/content"]


def test_where_everybody_has_one_no_storage_is_asked(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    main(["night", "--ask-storages", "--root", node.root])
    os.unlink(node.path("/asked"))
    capsys.readouterr()
    assert main(["night", "--ask-storages", "--root", node.root]) == 0
    assert "every guest of this node has its backups on record" in capsys.readouterr().err
    assert not os.path.exists(node.path("/asked"))


@pytest.mark.parametrize(
    ("answer", "says"), [("[", "is not JSON"), ("{}", "it is no list"), (None, "is not there: no Proxmox VE")]
)
def test_what_cannot_be_asked_is_told_and_costs_nothing_else(
    node: Node, capsys: pytest.CaptureFixture[str], answer: str | None, says: str
) -> None:
    if answer is None:
        os.unlink(node.path("/usr/bin/pvesh"))
    else:
        Path(node.path("/listed")).write_text(answer)
    assert main(["night", "--ask-storages", "--root", node.root]) == 0
    shown = capsys.readouterr()
    assert says in shown.err
    assert "none of 101, 110" in shown.err
    assert "VM 102" in shown.out
