"""The resource in a real API server: what it takes, what it refuses, and that its words are those of `validate`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.validate import InvalidResource

pytestmark = [pytest.mark.kube, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MODELS = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}"


def _cases() -> dict[str, tuple[dict[str, Any], str, str]]:
    """Return the table that `validate` is held to."""
    spec = importlib.util.spec_from_file_location("bad_input_table", ROOT / "tests/unit/api/test_bad_input.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[dict[str, Any], str, str]] = module.CASES
    return found


CASES = _cases()


def resource(name: str = "m", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": c.API_VERSION,
        "kind": c.KIND,
        "metadata": {"name": name},
        "spec": {"model": {"uri": "hf://acme/some-model"}} | spec,
    }


def test_the_server_takes_the_definition_as_structural(cluster: Any) -> None:
    held = {x["type"]: x["status"] for x in cluster.crd["status"]["conditions"]}
    assert held["Established"] == "True"
    assert held["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in held
    assert cluster.crd["status"]["acceptedNames"]["shortNames"] == [c.SHORT_NAME]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_every_example_is_taken(cluster: Any, file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text()):
        assert cluster.refusals(document) == {}


# What only `validate` (and the operator, as Accepted=False) can tell: it needs the family, the size, files, or the fields
# that a server drops as unknown.
NOT_FOR_CEL = {
    "a field misspelt",
    "a nested field misspelt",
    "a native effort of a family without one",
    "shrinking what has no budget",
    "R1 told never to think",
    "weights that don't fit",
    # Shapes of Kubernetes' own, which the definition leaves as they are.
    "a variable that is ours",
    "a token said twice",
    "a variable there twice",
    "a volume of our name",
    "a mount over our code",
    "a mount of nothing",
    "a label that KubeRay selects by",
    "a variable's number",
    # Two quantities of which each may be text or a number.
    "a limit below what is asked for",
    "a limit below what an engine asks for by itself",
    # The context is the model's own.
    "a floor above the default of a context nobody wrote",
    # The server drops a null.
    "an argument without a value",
}


def test_the_server_refuses_what_validate_refuses(cluster: Any) -> None:
    taken = {name for name, (bad, _, _) in CASES.items() if bad.get("kind") == c.KIND and bad.get("apiVersion") == c.API_VERSION
             and isinstance(bad.get("metadata"), dict) and bad["metadata"].get("name") and not cluster.refusals(bad)}  # fmt: skip
    assert taken == NOT_FOR_CEL


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"scaling": {"minReplicas": 3, "maxReplicas": 2}}, "spec.scaling.minReplicas", "was 3; it exceeds maxReplicas 2"),
        ({"scaling": {"mode": "Manual"}}, "spec.replicas", "is missing; mode Manual obeys it: say how many"),
        ({"scaling": {"objectives": {"tpot": "2m"}}}, "spec.scaling.objectives.tpot", "was 2m; must lie between 0.001s and 60s"),
        ({"scaling": {"minReplicas": 0}}, "spec.scaling.minReplicas", "was 0 without scaleToZero: say when it may sleep"),
        ({"scaling": {"minReplicas": 0, "scaleToZero": {}, "mode": "External"}, "replicas": 1}, "spec.scaling.minReplicas", "was 0; mode External obeys spec.replicas and can't wake a model"),
        ({"scaling": {"minReplicas": 0, "scaleToZero": {"after": "9s"}}}, "spec.scaling.scaleToZero.after", "was 9s; must lie between 10s and 168h"),
        ({"scaling": {"minReplicas": 0, "scaleToZero": {"hold": {"max": "25h"}}}}, "spec.scaling.scaleToZero.hold.max", "was 25h; must lie between 1s and 24h"),
        ({"scaling": {"minReplicas": 0, "scaleToZero": {"hold": {"maxBytes": "1Mi"}}}}, "spec.scaling.scaleToZero.hold.maxBytes", "was 1Mi; must lie between 8Mi"),
        ({"drain": {"max": "25h"}}, "spec.drain.max", "was 25h; must lie between 1s and 24h"),
        ({"resume": {"hangAfter": "5s"}}, "spec.resume.hangAfter", "was 5s; must lie between 15s and 1h"),
        ({"parallelism": {"tensor": 8, "expert": 4}}, "spec.parallelism.expert", "was 4; experts spread over all tensor x data GPUs: write 8, or 1"),
        ({"model": {"uri": "hf://acme/m", "maxModelLen": 8192}, "reasoning": {"parser": "qwen3", "underPressure": {"floor": 9000}}}, "spec.reasoning.underPressure.floor", "was 9000; it exceeds the default budget, 2048"),
        ({"model": {"uri": "hf://acme/m", "maxModelLen": 8192}, "reasoning": {"parser": "qwen3", "budget": {"max": 9000, "answerReserve": 8192}}}, "spec.reasoning.budget.answerReserve", "was 8192; maxModelLen is 8192: it must be smaller"),
        ({"reasoning": {"parser": "qwen3", "budget": {"default": 9, "max": 5}}}, "spec.reasoning.budget.default", "was 9; it exceeds budget.max 5"),
    ],
)  # fmt: skip
def test_both_say_the_same_of_the_same_field(cluster: Any, spec: dict[str, Any], field: str, words: str) -> None:
    said = cluster.refusals(resource(**spec))
    assert list(said) == [field]
    assert words in said[field]
    with pytest.raises(InvalidResource) as refused:
        parse(resource(**spec))
    assert words in {p.field: p.message for p in refused.value.problems}[field]


def test_the_server_names_the_argument_its_value_and_what_would_be_right(cluster: Any) -> None:
    said = cluster.refusals(resource(engine={"args": {"dtype": "banana", "seed": "1"}}))
    assert list(said) == ["spec.engine.args"]
    assert '["dtype was banana"]; dtype must be one of auto, half, float16' in said["spec.engine.args"]


def _maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_NUMBER = st.integers(1, 6)
_TIME = st.sampled_from(["1ms", "50ms", "2s", "100s", "2h", "25h", "500us", "1h30m"])
_TOKENS = st.integers(0, 9000)
_KEYS = st.dictionaries(
    st.sampled_from(["a", "corp.com/a", "Corp.com/a", "a/b/c", "/a", "a ", "a" * 63, "a" * 64, "é", "a.b_c-d"]),
    st.sampled_from(["", "b", "b c", "-b", "B.b_b", "b" * 63]), max_size=2,
)  # fmt: skip
_PARTS = dict[str, st.SearchStrategy[Any]](
    scaling=_maybe(
        minReplicas=st.integers(0, 4), maxReplicas=_NUMBER, scaleToZero=_maybe(
            after=_TIME, hold=_maybe(max=_TIME, maxBytes=st.sampled_from(["64Mi", "1Mi", "8Mi", "9000k", "65Gi", "100"]), maxRequests=st.integers(0, 3)),
        ), mode=st.sampled_from(["Auto", "Recommend", "Manual", "External"]),
        objectives=_maybe(ttft=_TIME, tpot=_TIME, maxQueue=_TIME), startTimeout=_TIME,
    ),
    replicas=st.integers(0, 4),
    drain=_maybe(max=_TIME),
    parallelism=_maybe(tensor=st.integers(1, 9), pipeline=st.integers(1, 2), data=st.sampled_from([1, 2, 8]), expert=st.sampled_from([1, 2, 8, 16])),
    reasoning=st.fixed_dictionaries(
        {"parser": st.sampled_from(["qwen3", "deepseek_r1", "none", "nobody"])},
        optional={
            "budget": _maybe(default=_TOKENS, max=_TOKENS, answerReserve=st.integers(1, 9000)),
            "efforts": st.dictionaries(st.sampled_from(["none", "low", "high", "huge"]), st.integers(-1, 9000) | st.sampled_from(["5", "nativ", True]), max_size=3),
            "mode": st.sampled_from(["Auto", "Never"]),
            "underPressure": _maybe(floor=st.integers(1, 9000), steps=st.integers(1, 16)),
        },
    ),
    engine=_maybe(args=st.dictionaries(
        st.sampled_from(["max_num_seqs", "seed", "trust_remote_code", "max-num-seqs"]), st.sampled_from(["8", "0", "x"]), max_size=2,
    ) | st.dictionaries(
        st.sampled_from([
            "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "gpu_memory_utilization", "dtype", "max_logprobs", "cpu_offload_gb",
            "optimization_level", "long_prefill_token_threshold",
        ]),
        st.sampled_from(["8", "0", "0.9", ".0", "1.0", "1.01", "-1", "256", "4096", "9" * 30, "False", "FALSE", "true", "auto", "float16", "8\n", "1e3"]), max_size=4,
    )),
    pod=_maybe(
        labels=_KEYS, annotations=_KEYS, nodeSelector=_KEYS, serviceAccountName=st.sampled_from(["", "a", "a.b", "A", "a..b"]),
        resources=st.dictionaries(st.sampled_from(["requests", "limits", "limit"]), st.dictionaries(
            st.sampled_from(["nvidia.com/gpu", "corp.com/fpga", "a b"]), st.sampled_from(["1", 1, -1, "500m", "1e3", "1.", ".", "2Ki", "2ki", "", "-1", True]), max_size=2,
        ), max_size=1),
    ),
    classes=st.lists(st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b"]), "match": st.just({"header": "x-t", "values": ["v"]})},
        optional={"weight": st.integers(1, 2)},
    ), max_size=2),
    model=st.fixed_dictionaries({"uri": st.just("hf://acme/some-model")}, optional={"maxModelLen": st.sampled_from([64, 4096, 8192])}),
)  # fmt: skip
# One part alone is right often enough; of all together hardly one is.
SPECS = _maybe(**_PARTS) | st.sampled_from(sorted(_PARTS)).flatmap(lambda n: st.fixed_dictionaries({n: _PARTS[n]}))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(spec=SPECS)
def test_the_server_and_validate_agree_on_any_resource(cluster: Any, spec: dict[str, Any]) -> None:
    given_ = resource(**spec)
    if "maxModelLen" not in given_["spec"]["model"]:
        # Without it the context is the model's own, which a server can't know.
        given_["spec"]["model"] = given_["spec"]["model"] | {"maxModelLen": 8192}
    try:
        parse(given_)
        problems: list[str] = []
    except InvalidResource as error:
        problems = [str(p) for p in error.problems]
    said = cluster.refusals(given_)
    assert bool(said) == bool(problems), f"validate: {problems}; server: {said}"


def test_defaults_are_filled_in_and_unknown_fields_are_dropped(cluster: Any) -> None:
    answer = cluster.http.post(MODELS, params={"dryRun": "All", "fieldValidation": "Ignore"}, json=resource(nonsense=1))
    spec = answer.json()["spec"]
    assert "nonsense" not in spec
    assert spec["scaling"]["objectives"]["tpot"] == "50ms"
    assert spec["scaling"]["maxReplicas"] == 1
    assert spec["drain"]["max"] == "30m"
    assert "mode" not in spec["scaling"], "the chart's default mode is for models that name none"
    strict = cluster.http.post(MODELS, params={"dryRun": "All", "fieldValidation": "Strict"}, json=resource(nonsense=1))
    assert strict.status_code == 400
    assert "nonsense" in strict.text


def test_kubectl_shows_the_columns_and_scales_it(cluster: Any) -> None:
    made = resource("r1", scaling={"mode": "Manual", "maxReplicas": 4}, replicas=1)
    assert cluster.http.post(MODELS, json=made).status_code == 201
    try:
        status = {
            "replicas": {"desired": 2, "ready": 1}, "selector": "reasonscale.io/model=r1",
            "demand": {"queuedTokens": 1900, "kvUsagePercent": 71, "kvFullIn": "140s"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": "2026-11-24T00:00:00Z"}],
            "lastDecision": {"from": 1, "to": 2, "reason": c.REASON_COT, "message": "m", "time": "2026-11-24T00:00:00Z"},
        }  # fmt: skip
        patch = cluster.http.patch(
            f"{MODELS}/r1/status", json={"status": status}, headers={"Content-Type": "application/merge-patch+json"}
        )
        assert patch.status_code == 200, patch.text
        head, row = cluster.plane.kubectl("get", c.SHORT_NAME).stdout.splitlines()
        names = ["NAME", "MODEL", "READY", "DESIRED", "REPLICAS", "COT QUEUED", "KV %", "FULL IN", "REASON", "AGE"]
        assert [w for w in head.split("  ") if w] == [*names] or head.split() == " ".join(names).split()
        assert row.split()[:9] == ["r1", "hf://acme/some-model", "True", "2", "1", "1900", "71", "140s", "CoTBacklog"]
        cluster.plane.kubectl("scale", c.SHORT_NAME, "r1", "--replicas=3")
        assert cluster.http.get(f"{MODELS}/r1").json()["spec"]["replicas"] == 3
        scale = cluster.http.get(f"{MODELS}/r1/scale").json()
        assert scale["status"] == {"replicas": 1, "selector": "reasonscale.io/model=r1"}
        over = cluster.plane.kubectl("scale", c.SHORT_NAME, "r1", "--replicas=5", check=False)
        assert over.returncode != 0
        assert "exceeds scaling.maxReplicas 4" in over.stderr
        assert cluster.http.get(f"{MODELS}/r1").json()["metadata"].get("finalizers") is None
    finally:
        cluster.http.delete(f"{MODELS}/r1")
    explained = cluster.plane.kubectl("explain", "reasoningmodel.spec.scaling.objectives.tpot").stdout
    assert "Time per output token." in explained
