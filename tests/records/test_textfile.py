"""Prometheus' file, read by its own client's parser; dashboard and alert rules ask for nothing that is not in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pvehook.contract.measured import Absent, Broken
from pvehook.records.beside_record import BesideRecord
from pvehook.records.stall_record import StallRecord
from pvehook.records.textfile import (
    METRICS,
    GuestSamples,
    Kind,
    beside_samples,
    exposition,
    guest_samples,
    standing_samples,
)
from pvehook.rules.stalls import SEVERITIES
from tests.records.backups import HUNG, NO_AGENT, NOW_S, beside, charted, container, guest_view, host_view, record

parser = pytest.importorskip("prometheus_client.parser")

HOOKS = Path(__file__).parents[2] / "hooks"
DASHBOARD = HOOKS / "grafana-dashboard.json"
RULES = HOOKS / "prometheus-alerts.yaml"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def by_guest(*records: StallRecord) -> dict[int, GuestSamples]:
    return {each.vmid: guest_samples(each) for each in records}


def vms(*vmids: int) -> dict[int, Kind]:
    return dict.fromkeys(vmids, "qemu")


def samples_of(*records: StallRecord | BesideRecord, existing: Mapping[int, Kind] | None = None) -> Samples:
    beside = {each.vmid: beside_samples(each) for each in records if isinstance(each, BesideRecord)}
    own = by_guest(*(each for each in records if isinstance(each, StallRecord)))
    text = exposition(own, beside, {}, vms(*(each.vmid for each in records)) if existing is None else existing)
    found = [
        ((sample.name, frozenset({*sample.labels.items()} - {("id", f"qemu/{sample.labels['vmid']}")})), sample.value)
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)  # Prometheus refuses a file with a series that is there twice
    return dict(found)


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset({"vmid": "101", **labels}.items())))


def test_every_metric_has_help_and_type_once_and_a_base_unit() -> None:
    text = exposition(by_guest(charted()), {}, {}, vms(101))
    families = list(parser.text_string_to_metric_families(text))
    assert [family.name for family in families] == list(METRICS)
    for family in families:
        assert family.documentation
        assert family.type == "gauge"
        assert re.fullmatch(r"pvehook_[a-z0-9_]+", family.name)
        assert not family.name.endswith(("_ms", "_s", "_mb", "_percent", "_total", "_count"))
    assert text.endswith("\n")


def test_the_figures_are_the_records_in_seconds_and_bytes() -> None:
    samples = samples_of(charted())
    assert sample(samples, "pvehook_request_p99_seconds", kind="write", when="during") == 1.31
    assert sample(samples, "pvehook_request_p99_seconds", kind="write", when="before") == 0.0041
    assert sample(samples, "pvehook_frozen_seconds") == 0.184
    assert sample(samples, "pvehook_backup_size_bytes") == 32e9
    assert sample(samples, "pvehook_backup_start_timestamp_seconds") == NOW_S - 4800
    assert sample(samples, "pvehook_slow_requests", over_seconds="1") == 31
    assert sample(samples, "pvehook_guest_lockups") == 1


def test_one_severity_is_true() -> None:
    samples = samples_of(record(stalled_s=3.0))
    assert {each: sample(samples, "pvehook_severity", severity=each) for each in SEVERITIES} == {
        "unknown": 0.0,
        "none": 0.0,
        "slowed": 0.0,
        "stalled": 1.0,
        "locked-up": 0.0,
    }


def test_zero_is_a_sample_absent_is_none_and_broken_is_a_view_that_is_down() -> None:
    zero = samples_of(record(guest=guest_view(steal_s=0.0)))
    assert sample(zero, "pvehook_guest_steal_seconds") == 0.0
    assert sample(zero, "pvehook_view_up", view="guest") == 1.0
    absent = samples_of(record(guest=NO_AGENT))
    assert sample(absent, "pvehook_guest_steal_seconds") is None
    assert sample(absent, "pvehook_view_up", view="guest") is None
    broken = samples_of(record(guest=Broken("the agent did not answer within 5 s")))
    assert sample(broken, "pvehook_guest_steal_seconds") is None
    assert sample(broken, "pvehook_view_up", view="guest") == 0.0


def test_a_part_that_is_broken_takes_its_view_down_and_one_that_is_absent_does_not() -> None:
    broken = samples_of(record(guest=guest_view(io=Broken("no such file"))))
    assert sample(broken, "pvehook_view_up", view="guest") == 0.0
    assert sample(broken, "pvehook_guest_steal_seconds") == 0.8
    absent = samples_of(record(guest=guest_view(io=Absent("PSI is off")), host=host_view(guest_io=Absent("a VM"))))
    assert sample(absent, "pvehook_view_up", view="guest") == 1.0
    assert sample(absent, "pvehook_guest_pressure_seconds", resource="io", kind="full") is None
    assert sample(absent, "pvehook_guest_pressure_seconds", resource="cpu", kind="some") == 0.4


def test_a_monitor_that_hangs_leaves_no_zero_behind() -> None:
    samples = samples_of(record(hypervisor=HUNG))
    assert sample(samples, "pvehook_stalled_seconds", part="own") is None
    assert sample(samples, "pvehook_slow_requests", over_seconds="1") is None
    assert sample(samples, "pvehook_view_up", view="hypervisor") == 0.0
    assert sample(samples, "pvehook_severity", severity="unknown") == 1.0


def test_a_guest_that_is_gone_from_the_node_is_gone() -> None:
    samples = samples_of(record(), record(vmid=102), existing=vms(101))
    assert sample(samples, "pvehook_backup_duration_seconds") == 3600.0
    assert not [labels for _, labels in samples if ("vmid", "102") in labels]


def test_no_guest_at_all_is_a_file_all_the_same() -> None:
    assert samples_of(existing={}) == {}


@pytest.mark.parametrize("name", ['we"b', "back\\slash", "line\nfeed", "<script>", "\u202edb", "x" * 500, "", None])
def test_a_name_is_in_one_metric_and_cannot_break_a_line(name: str | None) -> None:
    samples = samples_of(charted(name=name))
    labels = [dict(labels) for metric, labels in samples if metric == "pvehook_guest_info"]
    assert len(labels) == 1
    assert len(labels[0]["name"]) <= 64
    assert "\n" not in labels[0]["name"]
    assert not [labels for metric, labels in samples if metric != "pvehook_guest_info" and "name" in dict(labels)]


def test_a_backup_whose_end_was_not_seen_is_neither_good_nor_bad() -> None:
    assert "pvehook_backup_ok{" in exposition(by_guest(record(result="failed")), {}, {}, vms(101))
    assert "pvehook_backup_ok{" not in exposition(by_guest(record(result="unknown")), {}, {}, vms(101))


def test_labels_are_bounded() -> None:
    """Words of our own only: a guest has so many series and no more."""
    for shown in (charted(), container(), record(hypervisor=HUNG, guest=NO_AGENT)):
        assert len(samples_of(shown)) <= 40
        assert len(samples_of(shown, beside(vmid=shown.vmid))) <= 50


# Beside the backups of others


def test_a_night_has_two_parts() -> None:
    samples = samples_of(record(stalled_s=3.0), beside())
    assert sample(samples, "pvehook_stalled_seconds", part="own") == 3.0
    assert sample(samples, "pvehook_stalled_seconds", part="beside") == 17.0
    assert sample(samples, "pvehook_slowed_seconds", part="own") == 0.0
    assert sample(samples, "pvehook_slowed_seconds", part="beside") == 41.0
    assert sample(samples, "pvehook_beside_request_p99_seconds", when="during") == 2.405
    assert sample(samples, "pvehook_beside_request_p99_seconds", when="before") == 0.015
    assert sample(samples, "pvehook_beside_slowed_backup_seconds") == 8.0
    assert sample(samples, "pvehook_beside_start_timestamp_seconds") == NOW_S - 8400
    assert sample(samples, "pvehook_view_up", view="beside") == 1.0


def test_a_guest_that_was_in_no_backup_of_its_own_is_there_and_has_a_name() -> None:
    samples = samples_of(record(vmid=102), beside())
    assert ("pvehook_guest_info", frozenset({"vmid": "101", "name": "web", "type": "qemu"}.items())) in samples
    assert sample(samples, "pvehook_stalled_seconds", part="beside") == 17.0
    assert sample(samples, "pvehook_stalled_seconds", part="own") is None
    assert sample(samples, "pvehook_backup_start_timestamp_seconds") is None


def test_a_guest_that_was_renamed_is_joined_with_one_name() -> None:
    samples = samples_of(record(), beside(name="shop"))
    names = [dict(labels)["name"] for metric, labels in samples if metric == "pvehook_guest_info"]
    assert names == ["web"]


def test_beside_others_zero_is_a_sample_absent_is_none_and_broken_is_a_view_that_is_down() -> None:
    zero = samples_of(beside(stalled_s=0.0, slowed_s=0.0))
    assert sample(zero, "pvehook_stalled_seconds", part="beside") == 0.0
    nothing = Absent("it was not exposed")
    absent = samples_of(beside(severity="unknown", stalled_s=nothing, slowed_s=nothing, p99_ms=nothing))
    assert sample(absent, "pvehook_stalled_seconds", part="beside") is None
    assert sample(absent, "pvehook_view_up", view="beside") is None
    broken = samples_of(beside(severity="slowed", stalled_s=HUNG))
    assert sample(broken, "pvehook_stalled_seconds", part="beside") is None
    assert sample(broken, "pvehook_view_up", view="beside") == 0.0


# The dashboard


def expressions(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (part[key] for key in ("expr", "definition", "summary", "description") if key in part)
        for each in part.values():
            yield from expressions(each)
    elif isinstance(part, list):
        for each in part:
            yield from expressions(each)


def dashboard() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return body


def alert_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_the_dashboard_asks_for_metrics_that_are_written() -> None:
    asked = {name for expression in expressions(dashboard()) for name in re.findall(r"pvehook_\w+", expression)}
    assert asked <= set(METRICS)
    assert {"pvehook_stalled_seconds", "pvehook_guest_overdue", "pvehook_last_success_timestamp_seconds"} <= asked


def test_the_alert_rules_ask_for_metrics_that_are_written() -> None:
    asked = {name for rule in alert_rules() for name in re.findall(r"pvehook_\w+", rule["expr"])}
    assert asked <= set(METRICS)
    assert {"pvehook_stalled_seconds", "pvehook_guest_overdue", "pvehook_last_success_timestamp_seconds"} <= asked


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_rule_is_one_that_prometheus_takes_and_says_what_to_do(rule: dict[str, Any]) -> None:
    """Fields: prometheus.io/docs/prometheus/latest/configuration/alerting_rules."""
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Pvehook[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["expr"].count("(") == rule["expr"].count(")")


def test_dashboard_and_alert_rules_ask_for_labels_and_values_that_are_written() -> None:
    written: dict[str, dict[str, set[str]]] = {}
    standing = {101: standing_samples(101, NOW_S, False)}
    records = (charted(), record(vmid=102, hypervisor=HUNG))
    text = exposition(by_guest(*records), {101: beside_samples(beside())}, standing, vms(101, 102))
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                written.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    for expression in [*expressions(dashboard()), *expressions(alert_rules())]:
        for metric, inside in re.findall(r"(pvehook_\w+)\{(.*?)\}", expression):
            for label, values in re.findall(r'(\w+)=~?"(.*?)"', inside):
                if label != "instance":  # Prometheus' own
                    assert label in written[metric], expression
                if not values.startswith("$"):
                    assert set(values.split("|")) <= written[metric][label], expression


def test_the_dashboards_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_sample_has_the_label_by_which_the_metrics_of_proxmox_are_joined() -> None:
    """prometheus-pve-exporter has `pve_guest_info{id="qemu/101",...}`, `pve_up{id="lxc/102"}`."""
    own = by_guest(charted(name='a "{b}"'), container(vmid=102))
    standing = {vmid: standing_samples(vmid, NOW_S, False) for vmid in (101, 102)}
    text = exposition(own, {101: beside_samples(beside())}, standing, {101: "qemu", 102: "lxc"})
    kinds = {"101": "qemu", "102": "lxc"}
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    assert samples
    assert all(each.labels["id"] == f"{kinds[each.labels['vmid']]}/{each.labels['vmid']}" for each in samples)
    assert next(each.labels["name"] for each in samples if each.labels.get("name")) == 'a "{b}"'


def test_every_guest_has_its_last_good_backup_and_whether_it_is_overdue() -> None:
    standing = {101: standing_samples(101, NOW_S, False), 103: standing_samples(103, None, True)}
    text = exposition(by_guest(record()), {}, standing, vms(101, 103))
    found = {
        (sample.name, sample.labels["vmid"]): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in ("pvehook_last_success_timestamp_seconds", "pvehook_guest_overdue")
    }
    assert found == {
        ("pvehook_last_success_timestamp_seconds", "101"): NOW_S,
        ("pvehook_guest_overdue", "101"): 0.0,
        ("pvehook_guest_overdue", "103"): 1.0,
    }
