"""What the charts ship fits the code: the definition, the flags, the metrics that alerts read, their runbooks."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from reasonscale.api import constants as c
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.cli import operator as command
from reasonscale.cli.cluster_options import ClusterOptions
from reasonscale.controller.metrics import OperatorMetrics

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "reasonscale"
ALERTS = [rule for group in yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def test_the_chart_of_the_definition_holds_the_generated_one_and_keeps_it_on_uninstall() -> None:
    ours = yaml.safe_load((ROOT / "crds" / "reasonscale.io_reasoningmodels.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "charts/reasonscale-crds/templates/reasoningmodels.yaml").read_text())
    assert shipped["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert shipped == ours, "renew it with: make reference"


def test_every_flag_of_the_deployment_is_one_that_the_operator_takes() -> None:
    text = (CHART / "templates" / "deployment.yaml").read_text()
    flags = set(re.findall(r"^\s+- --([a-z-]+)", text, re.MULTILINE))
    known = {name.replace("_", "-") for name in command.operator.__kwdefaults__ or {}}
    known |= {f.name.replace("_", "-") for f in fields(ClusterOptions)} | {"prometheus-url"}
    assert flags <= known
    assert {"image", "code-image", "prometheus-url", "default-mode", "listen"} <= flags


@pytest.mark.parametrize("alert", ALERTS, ids=lambda a: a["alert"])
def test_an_alert_reads_metrics_that_the_operator_exports_and_has_a_runbook(alert: dict[str, object]) -> None:
    registry = CollectorRegistry()
    DecisionMetrics(registry)
    OperatorMetrics(registry)
    exported = {family.name for family in registry.collect()}
    exported |= {c.RAY_PREFIX + value for name, value in vars(c).items() if name.startswith("M_")}
    read = set(re.findall(r"(?:ray_)?reasonscale_[a-z_]+", str(alert["expr"])))
    assert read
    assert read <= exported
    page = (ROOT / "docs" / "operations.md").read_text()
    assert f"### {alert['alert']}\n" in page
    assert str(alert["annotations"]["runbook"]).endswith(f"#{str(alert['alert']).lower()}")  # type: ignore[index]


# What each alert must fire on, and what it must leave alone: series and values by minute.
CASES = {
    "ReasonscaleKVFullSoon": ({"decision_kv_full_in_s": 40, "decision_horizon_s": 120}, {"decision_kv_full_in_s": 40, "decision_horizon_s": 30}),
    "ReasonscalePreempting": ({"decision_preemption_rate": 1}, {"decision_preemption_rate": 0.05}),
    "ReasonscaleQueueOverObjective": ({"decision_need_queue": 3}, {"decision_need_queue": 0}),
    "ReasonscaleSignalsStale": ({"signals_fresh": 0}, {"signals_fresh": 1}),
    "ReasonscaleAtMaximum": (
        {"scaling_limited": 1, "decision_need_kv": 5, "decision_need_concurrency": 1, "replicas_desired": 4},
        {"scaling_limited": 1, "decision_need_kv": 1, "decision_need_concurrency": 1, "replicas_desired": 4},
    ),
    "ReasonscaleDrainStuck": ({"replicas_draining": 1}, {"replicas_draining": 0}),
    "ReasonscaleRequestsLost": (
        {'ray_reasonscale_resumes_total{model="m",outcome="engine_lost"}': "0+1"},
        {
            'ray_reasonscale_resumes_total{model="m",outcome="resumed"}': "0+9", 'ray_reasonscale_resumes_total{model="m",outcome="engine_lost"}': "3+0",
            'ray_reasonscale_resumes_total{model="m",outcome="moved"}': "0+9",
        },
    ),
    "ReasonscaleResumeOff": ({'ray_reasonscale_resume_off{model="m"}': 1}, {'ray_reasonscale_resume_off{model="m"}': 0}),
    "ReasonscaleBudgetsExhausted": (
        {'ray_reasonscale_budget_exhausted_total{model="m"}': "0+30", 'ray_reasonscale_arrivals_total{model="m"}': "0+60"},
        {'ray_reasonscale_budget_exhausted_total{model="m"}': "0+3", 'ray_reasonscale_arrivals_total{model="m"}': "0+60"},
    ),
    "ReasonscaleDoesNotWake": ({"held": 3, "replicas_ready": 0}, {"held": 3, "replicas_ready": 1}),
    "ReasonscaleRefusing": (
        {'ray_reasonscale_gate_refused_total{model="m",cls="low"}': "0+4", 'ray_reasonscale_gate_entered_total{model="m",cls="low"}': "0+60"},
        {  # one in sixty, each of which comes back sixty times
            'ray_reasonscale_gate_refused_total{model="m",cls="low"}': "0+1", 'ray_reasonscale_gate_entered_total{model="m",cls="low"}': "0+60",
            'ray_reasonscale_rejected_total{model="m",reason="overloaded"}': "0+60",
        },
    ),
    "ReasonscaleUnderPressure": (
        {'ray_reasonscale_pressure_step{model="m",WorkerId="a"}': 2, 'ray_reasonscale_pressure_step{model="m",WorkerId="b"}': 0},
        {'ray_reasonscale_pressure_step{model="m"}': 0},
    ),
    "ReasonscaleWatchStalled": (
        {'reasonscale_operator_watch_age_seconds{kind="Pod"}': 200},
        {'reasonscale_operator_watch_age_seconds{kind="Pod"}': 20},
    ),
    "ReasonscaleNoDecisions": ({"decision_time_seconds": 0}, {"decision_time_seconds": 7190}),
}  # fmt: skip


@pytest.mark.prometheus
def test_each_alert_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    assert set(CASES) == {a["alert"] for a in ALERTS}
    tests = []
    for name, sides in CASES.items():
        for fires, series in zip((True, False), sides, strict=True):
            expected = []
            if fires:
                rule = next(a for a in ALERTS if a["alert"] == name)
                label = {"kind": "Pod"} if name == "ReasonscaleWatchStalled" else {"model": "m"}
                expected = [{"exp_labels": {**label, **rule["labels"]}}]
            tests.append({
                "interval": "1m",
                "input_series": [
                    {"series": metric if "{" in metric else f'reasonscale_{metric}{{model="m"}}', "values": f"{value}x120"}
                    for metric, value in series.items()
                ],
                "alert_rule_test": [{"eval_time": "2h", "alertname": name, "exp_alerts": expected}],
            })  # fmt: skip
    rules = tmp_path / "alerts.yaml"
    # What the annotations say is for people; promtool would compare them word for word.
    plain = yaml.safe_load((CHART / "alerts.yaml").read_text())
    for group in plain["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    rules.write_text(yaml.safe_dump(plain))
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["alerts.yaml", "recording.yaml"])
def test_promtool_takes_the_rules_as_they_are_shipped(name: str) -> None:
    done = subprocess.run(["promtool", "check", "rules", str(CHART / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_that_is_gone_leaves_no_series() -> None:
    registry = CollectorRegistry()
    metrics = DecisionMetrics(registry)
    metrics.forget("never seen")
    metrics._time.labels("m").set(1.0)
    metrics.forget("m")
    assert not [s for family in registry.collect() for s in family.samples if s.labels.get("model") == "m"]
