"""What is made for those who watch: the names of our metrics, the dashboard, the alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import DoubleFactory, config
from prometheus_client.core import Metric
from ruamel.yaml import YAML

import appliance.models.proxy  # noqa: F401 - the metrics of upstreams are there once it is imported
from appliance.server import create_app

ROOT = Path(__file__).parent.parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "dashboards" / "grafana.json").read_text())
ALERTS: dict[str, Any] = YAML(typ="safe").load((ROOT / "examples" / "prometheus" / "alerts.yaml").read_text())
AUTOSCALING: dict[str, Any] = YAML(typ="safe").load((ROOT / "examples/kubernetes/autoscaling.yaml").read_text())

_NAME = re.compile(r"\b(?:appliance_|vllm:)\w+")
_LABEL = re.compile(r"(\w+)(?:=~|!~|!=|=)\"|by \(([^)]*)\)")
_SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}

# What Prometheus and a histogram add, and what vLLM calls its models.
_FOREIGN = {"instance", "le", "model_name"}


@pytest.fixture(scope="module")
def families() -> list[Metric]:
    """Every family of ours, whether or not it has a sample yet."""
    app = create_app(config(), factory=DoubleFactory())
    return [each for each in app.state.health.metrics() if each.name.startswith("appliance_")]


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def _expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in _panels() for target in panel["targets"])
    yield from (rule["expr"] for rule in _rules())


def test_names_are_as_prometheus_wants_them(families: list[Metric]) -> None:
    """What promtool's linter asks: base units, no type in a name, `_total` for counters alone, a help for each.

    Source: https://prometheus.io/docs/practices/naming/
    """
    assert len(families) >= 20
    for family in families:
        assert re.fullmatch(r"appliance_[a-z_]*[a-z]", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"milli|micro|minute|hour|kilo|mega|percent|counter|gauge|histogram", family.name)
        assert not re.search(r"_(total|sum|count|bucket)$", family.name)
        assert family.type in _SUFFIXES
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_every_name_in_an_expression_is_a_metric(families: list[Metric]) -> None:
    """
    A panel that shows nothing, and an alert that never fires, are not noticed otherwise; vLLM's names are held against
    an engine in `tests/serving`.
    """
    known = {family.name + suffix for family in families for suffix in _SUFFIXES[family.type]}

    used = {name for expression in _expressions() for name in _NAME.findall(expression)}

    assert {name for name in used if not name.startswith("vllm:")} <= known


def test_what_replicas_follow_is_a_metric(families: list[Metric]) -> None:
    """An autoscaler that asks for a name nobody has leaves the replicas as they are."""
    gauges = {family.name for family in families if family.type == "gauge"}
    asked = {metric["pods"]["metric"]["name"] for metric in AUTOSCALING["spec"]["metrics"]}

    assert asked
    assert asked <= gauges


def test_every_label_in_an_expression_is_a_label(families: list[Metric]) -> None:
    """A misspelt label matches nothing."""
    source = "\n".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py") if "metric" in path.read_text())
    found = [pair for expression in _expressions() for pair in _LABEL.findall(expression)]
    used = {name.strip() for one, several in found for name in (one, *several.split(",")) if name.strip()}

    assert {name for name in used - _FOREIGN if f'"{name}"' not in source} == set()


def test_the_dashboard_shows_every_metric(families: list[Metric]) -> None:
    """What is not shown is not seen."""
    shown = " ".join(target["expr"] for panel in _panels() for target in panel["targets"])

    assert [family.name for family in families if family.name not in shown] == []


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """It has a stable id, its data source is a variable, and no two panels share an id or a place."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]

    assert DASHBOARD["uid"] == "appliance"
    assert DASHBOARD["schemaVersion"] >= 36
    assert variables["datasource"]["type"] == "datasource"
    assert variables["model"]["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(set(places)) == len(places)
    for panel in _panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_every_alert_says_what_is_wrong_and_whom_to_wake() -> None:
    """And has a name of its own; braces and brackets of its expression are closed."""
    names = [rule["alert"] for rule in _rules()]

    assert len(set(names)) == len(names) >= 8
    for rule in _rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        for opening, closing in ("()", "{}", "[]"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing)
