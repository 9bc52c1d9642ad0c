"""The page as a file: whole, escaped, small, and everything in it without a script. How it looks: tests/rig."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.records.history_writing import append
from pvehook.records.stall_record import SpeedPoint
from pvehook.report.report import run_report
from pvehook.rules.stalls import Cause, Verdict
from tests.records.backups import (
    HUNG,
    NO_AGENT,
    NOW_S,
    SOFT_LOCKUP,
    a_nodes_backups,
    charted,
    container,
    guest_view,
    record,
)

NOW = datetime.fromtimestamp(NOW_S, UTC)
EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\x1b[2J\n\u202e'"
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """A page's elements, its text, and whether every element that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.texts))


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def written(history: str, **options: Any) -> str:
    file = Path(history).parent / "report.html"
    assert run_report(history, io.StringIO(), NOW, html=str(file), **options) == 0
    return file.read_text(encoding="utf-8")


def test_a_nodes_nights_are_a_page(history: str) -> None:
    append(history, *a_nodes_backups(12, 40, charts_for_days=1), now_s=NOW_S)
    page = Page(written(history))
    assert "VM 103 files10 got worse on 2026-11-13." in page.text
    assert "QEMU 9.2.0 → 10.0.2 (28 nights before, 12 after)" in page.text
    assert "time in which a disk request of the guest was on its way that took longer than 1 s" in page.text
    charts = [attributes for tag, attributes in page.elements if "chart wide" in (attributes.get("class") or "")]
    assert len(charts) >= 10
    rows = [tag for tag, _ in page.elements if tag == "tr"]
    assert len(rows) >= 13


def test_it_fetches_nothing_and_may_not(history: str) -> None:
    append(history, charted(name=EVIL), now_s=NOW_S)
    text = written(history)
    page = Page(text)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "data", "poster", "background"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [each["content"] for tag, each in page.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_reasons_and_kernel_lines_are_text_and_nothing_else(history: str) -> None:
    said = SOFT_LOCKUP._replace(at_s=NOW_S - 3000, kind=EVIL, text=EVIL)
    hostile = charted(
        name=EVIL,
        node=EVIL,
        mode=EVIL,
        result=EVIL,
        admitted_by=EVIL,
        verdict=Verdict("locked-up", 1.0, 2.0, (Cause("cpu", EVIL, EVIL),)),
        bad=False,
        guest=guest_view(io=Absent(EVIL), cpu=Broken(EVIL), kernel=(said,)),
    )
    append(history, hostile, record(vmid=102, hypervisor=Broken(EVIL)), now_s=NOW_S)
    text = written(history)
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_history_of_others_is_text_and_nothing_else(history: str) -> None:
    append(history, charted(), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        texts = ("node", "name", "vmtype", "result", "severity", "causes", "pve_manager", "qemu", "kernel")
        theirs.execute(f"UPDATE backups SET {', '.join(f'{column} = ?1' for column in texts)}", (EVIL,))
    page = Page(written(history))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in page.elements]
    (cause,) = [each for tag, each in page.elements if tag == "td" and (each.get("class") or "").startswith("cause")]
    assert cause["data-sort"] is not None
    assert "><script>alert(1)</script><img" in cause["data-sort"]


def test_zero_absent_and_broken_are_three_things_with_their_reasons(history: str) -> None:
    append(history, record(), record(vmid=102, hypervisor=HUNG), record(vmid=103, hypervisor=NO_AGENT), now_s=NOW_S)
    page = Page(written(history))
    titles = {each["class"]: each["title"] for tag, each in page.elements if tag == "span" and "title" in each}
    assert titles == {
        "broken": "could not be read: QMP did not answer within 5 s",
        "absent": "not there: the guest runs no agent",
    }
    assert "0\u202fs" in page.text


def test_a_chart_says_in_words_what_it_shows(history: str) -> None:
    append(history, charted(), now_s=NOW_S)
    text = written(history)
    words, *others = re.findall(r"<desc id=\"c101-\w+\">(.*?)</desc>", text)
    assert others == [words, words]  # for each width
    assert words.startswith("Chart of the night, 04:40:00 to 05:40:00. p99 of the guest&#x27;s disk requests: median ")
    for shown in ("Before the backup: 4.4 ms.", "Stalled for 15 s in all, between ", "Frozen for 184 ms at 04:40:03."):
        assert shown in words
    assert "The governor limited the backup to" in words


def test_a_chart_has_axes_units_and_a_key(history: str) -> None:
    append(history, charted(), now_s=NOW_S)
    page = Page(written(history))
    for shown in ("1 ms", "10 ms", "100 ms", "1 s", "Backup rate, MiB/s", "05:00", "frozen 184 ms", "before: 4.4 ms"):
        assert shown in page.texts, shown
    for shown in ("p99, logarithmic", "before the backup", "governor’s limit", "governor’s target", "kernel line"):
        assert shown in page.texts, shown


def test_only_what_is_in_the_chart_is_in_its_key(history: str) -> None:
    append(history, charted(bad=False, baseline=NO_AGENT, governor=None), now_s=NOW_S)
    page = Page(written(history))
    for shown in ("before the backup", "governor’s limit", "kernel line"):
        assert shown not in page.texts


@pytest.mark.parametrize("number", [1, 2, 120])
def test_a_chart_of_any_number_of_pieces_is_drawn(history: str, number: int) -> None:
    append(history, charted(number=number), container(vmid=102), now_s=NOW_S)
    text = written(history)
    assert "nan" not in text.lower().replace("finance", "")
    assert "inf" not in re.sub(r"[a-z]*inf[a-z]+", "", text.lower())
    Page(text)


def test_a_night_without_requests_without_a_chart_and_without_details(history: str) -> None:
    quiet = charted(bad=False)
    silent = tuple(point._replace(p99_ms=None, lasted_s=0.0) for point in quiet.points)
    append(history, record(points=silent, baseline=NO_AGENT), record(vmid=102), now_s=NOW_S)
    page = Page(written(history))
    assert "VM 101 web" in page.text
    for age, vmid in ((130, 103), (2, 102), (1, 102)):
        started_s = NOW_S - age * 86400
        append(history, record(vmid=vmid, started_s=started_s, ended_s=started_s + 60), now_s=NOW_S)
    assert "details are kept for 120 days" in Page(written(history, since="200d", worst=5)).text


def test_worst_says_how_many_are_shown_in_detail(history: str) -> None:
    append(history, *a_nodes_backups(12, 2, charts_for_days=1), now_s=NOW_S)
    page = Page(written(history, worst=2))
    assert len([tag for tag, _ in page.elements if tag == "article"]) == 2
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert links == {f"#{each['id']}" for tag, each in page.elements if tag == "article"}


def test_the_page_is_there_whole_or_as_it_was(history: str, tmp_path: Path) -> None:
    append(history, record(), now_s=NOW_S)
    with pytest.raises(OSError, match="No such file"):
        run_report(history, io.StringIO(), NOW, html=str(tmp_path / "none" / "report.html"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        run_report(history, io.StringIO(), NOW, html=str(tmp_path / "taken"))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


def test_a_target_above_all_latencies_is_within_the_scale(history: str) -> None:
    """Of a guest that was slow before its backup already."""
    shown = charted(bad=False)
    assert shown.governor is not None
    speeds = (SpeedPoint(0.0, 0, 5.0, 17_500.0),)
    append(history, replace(shown, governor=shown.governor._replace(speeds=speeds)), now_s=NOW_S)
    page = Page(written(history))
    assert "100 s" in page.texts
    assert "governor’s target" in page.texts
    assert "governor’s limit" not in page.texts  # it set none


def test_a_night_of_a_second_has_a_time_on_its_axis(history: str) -> None:
    append(history, charted(number=3, started_s=NOW_S - 60.5, ended_s=NOW_S - 59.0), now_s=NOW_S)
    assert "05:59:00" in Page(written(history)).texts
