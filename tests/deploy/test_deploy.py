"""Rules, dashboard and compose file name what the server really exports and takes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from graftwork_server.metrics import Metrics
from graftwork_server.settings import keys
from graftwork_trainer.jobs.metrics import TrainingMetrics
from graftwork_trainer.jobs.states import JobState
from prometheus_client import CollectorRegistry

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/rules/graftwork.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/graftwork.json"


def exported():
    """Names of all series, without those of histograms' parts."""
    names = set()
    registry = Metrics(max_adapter_labels=1).registry
    TrainingMetrics(registry)
    for family in registry.collect():
        names |= {family.name, f"{family.name}_total"}
        names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def used(expression):
    return set(re.findall(r"\b(?:graftwork_|process_)[a-z0-9_]+\b", expression))


def test_rules_use_metrics_that_exist():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    names = set().union(*(used(rule["expr"]) for group in groups for rule in group["rules"]))
    assert names
    assert names <= exported()


def test_rules_and_dashboard_speak_of_every_metric_of_the_loop():
    said = used(RULES.read_text() + DASHBOARD.read_text())
    registry = CollectorRegistry()
    TrainingMetrics(registry)
    loop = {f"{f.name}_total" if f.type == "counter" else f.name for f in registry.collect()}
    assert len(loop) > 5
    assert loop <= said


def test_states_of_jobs_exist():
    for path in (RULES, DASHBOARD):
        found = re.findall(r'state=~?\\?"([a-z|]+)', path.read_text())
        assert found
        assert {state for text in found for state in text.split("|")} <= {s.value for s in JobState}


def test_every_alert_says_what_to_do():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "warn"}
        assert set(alert["annotations"]) == {"summary", "description"}


def test_the_dashboard_shows_metrics_that_exist_and_no_two_panels_overlap():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert set().union(*map(used, expressions)) <= exported()
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))


def test_variables_of_container_and_compose_file_exist():
    known = {key.variable for key in keys()} | {"GRAFTWORK_CACHE_DIR"}
    for name in ("Dockerfile", "deploy/compose.yml"):
        found = set(re.findall(r"\bGRAFTWORK_[A-Z0-9_]+", (ROOT / name).read_text()))
        assert found
        assert found <= known


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "deploy/rules/graftwork.yml"],
        ["check", "config", "deploy/prometheus.yml"],
        ["test", "rules", "tests/deploy/loop_alerts.yml"],
    ],
)
def test_promtool_accepts(command):
    result = subprocess.run(
        ["promtool", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
