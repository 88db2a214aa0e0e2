"""Each condition's reason, each event, each reason of a decision and each alert has an entry in docs/operations.md, and no other has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from reasonscale.api import constants as c

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
CONTROLLER = sorted((ROOT / "operator" / "reasonscale" / "controller").glob("*.py"))


def section(title: str) -> str:
    head = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.MULTILINE)
    assert head, title
    rest = PAGE[head.end() :]
    end = re.search(rf"^#{{1,{len(head[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def words(text: str) -> set[str]:
    return set(re.findall(r"`([A-Z]\w+)`", text))


def literals(node: ast.expr) -> set[str]:
    """Return the constant words that an expression can be."""
    return {x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and isinstance(x.value, str)}


def calls(name: str) -> Iterator[list[ast.expr]]:
    for file in CONTROLLER:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node.args


def of_code(name: str, place: int) -> set[str]:
    found = {w for args in calls(name) if len(args) > place for w in literals(args[place])}
    return {w for w in found if re.fullmatch(r"[A-Z][A-Za-z]+", w)}


def test_each_reason_of_degraded_has_a_row_and_there_is_no_other() -> None:
    rows = set(re.findall(r"^\| `(\w+)`", section("Reasons of Degraded"), re.MULTILINE))
    assert rows == of_code("Cause", 0) | {"ResumeOff"}, "the last is no cause of pods: the ingress says it"
    assert len(rows) > 15


def test_each_condition_and_each_other_reason_is_on_the_page() -> None:
    table = section("Conditions")
    assert words(table) >= set(c.CONDITIONS)
    profiles = {v for k, v in vars(c).items() if k.startswith("PROFILE_")}
    reasons = (
        of_code("condition", 2)
        | profiles
        | {
            "Held",
            "Frozen",
            "PrometheusDown",
            "ScrapeFailed",
            "Auto",
            "Recommend",
            "Manual",
            "External",
        }
    )
    assert reasons - words(table) - words(section("Reasons of Degraded")) == set()


def test_each_event_is_on_the_page() -> None:
    said = words(section("Events"))
    events = of_code("Event", 1)
    for file in CONTROLLER:  # outcomes of the applier, and the table of what is worth an event
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Tuple) and len(node.elts) in (3, 4):
                found = [x.value for x in node.elts if isinstance(x, ast.Constant) and isinstance(x.value, str)]
                if "Normal" in found or "Warning" in found:
                    place = 1 if found[0] in ("Normal", "Warning") else -2
                    events.add(found[place])
    events = {e for e in events if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)*", e)} - {
        "True",
        "False",
        "Normal",
        "Warning",
    }
    assert {"DriftRepaired", "Created", "RolloutStarted", "SignalsMissing", "Scaled"} <= events
    assert events | {c.PROFILE_UNKNOWN, c.PROFILE_UNUSABLE, c.PROFILE_DIFFERS} <= said


def test_each_reason_of_a_decision_is_on_the_page() -> None:
    reasons = {v for k, v in vars(c).items() if k.startswith("REASON_")}
    assert reasons - words(section("Reasons of a decision")) <= {c.REASON_IDLE, c.REASON_WAKE}, (
        "scaling to zero brings these"
    )


def test_each_alert_has_a_runbook_and_there_is_no_other() -> None:
    groups = yaml.safe_load((ROOT / "charts" / "reasonscale" / "alerts.yaml").read_text())["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    runbooks = set(re.findall(r"^### (Reasonscale\w+)$", PAGE, re.MULTILINE))
    assert set(alerts) == runbooks
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert len(section(name).split()) >= 15, name
