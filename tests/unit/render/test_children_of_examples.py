"""What each example becomes in a cluster: held as golden files, and by what must be true of every one.

Renew the files after a change that is meant: GOLDEN=renew .venv/bin/python -m pytest tests/unit/render
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.api.load import load_models, parse
from reasonscale.api.resolve import resolve
from reasonscale.cli.main import run
from reasonscale.render.children import children
from reasonscale.render.context import MODELS, RAY_ENGINE, RAY_INGRESS, Context, PodSize, SecretKey
from reasonscale.render.text import to_yaml
from reasonscale.serving.numbers import number_of

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CONTEXT = Context(
    namespace="models", replicas=1, image="registry.example/vllm-ray:1", code_image="registry.example/reasonscale:1"
)


def rendered(file: Path, **changes: Any) -> list[dict[str, Any]]:
    [model] = load_models(file)
    context = Context(**{f: getattr(CONTEXT, f) for f in CONTEXT.__slots__} | changes)
    return children(model, resolve(model, MODELS), context)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_becomes_what_is_committed(file: Path) -> None:
    path, text = GOLDEN / file.name, to_yaml(rendered(file, cpu=file.stem == "micro-reasoner"))
    if os.environ.get("GOLDEN") == "renew":
        path.write_text(text)
    assert path.read_text() == text


def _without_numbers(cluster: dict[str, Any]) -> dict[str, Any]:
    """Return a RayClusterSpec as KubeRay hashes it: without the workers' numbers."""
    out = copy.deepcopy(cluster)
    for group in out["workerGroupSpecs"]:
        for name in ("replicas", "minReplicas", "maxReplicas", "scaleStrategy"):
            group.pop(name, None)
    return out


@pytest.mark.parametrize("example", ["r1-distill-qwen-32b", "qwen3-8b-sleeps"])
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_no_sequence_of_decisions_changes_the_cluster(example: str, numbers: list[int]) -> None:
    file = ROOT / "examples" / f"{example}.yaml"
    numbers = numbers if example.endswith("sleeps") else [max(1, n) for n in numbers]
    first = rendered(file)[0]["spec"]
    for n in numbers:
        spec = rendered(file, replicas=n)[0]["spec"]
        assert _without_numbers(spec["rayClusterConfig"]) == _without_numbers(first["rayClusterConfig"])
        config, before = (yaml.safe_load(s["serveConfigV2"])["applications"][0] for s in (spec, first))
        # Only the deployments' list changes in place; anything else restarts every engine.
        assert {k: v for k, v in config.items() if k != "deployments"} == {
            k: v for k, v in before.items() if k != "deployments"
        }
        assert number_of(config["deployments"][0]) == n


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_engines_and_ingress_are_kept_apart_and_nothing_cuts_a_chain(file: Path) -> None:
    [model] = load_models(file)
    resolved = resolve(model)
    service = rendered(file)[0]["spec"]
    cluster = service["rayClusterConfig"]
    ingress, engine = cluster["workerGroupSpecs"]
    assert json.loads(json.loads(ingress["rayStartParams"]["resources"])) == {RAY_INGRESS: 1}
    assert json.loads(json.loads(engine["rayStartParams"]["resources"])) == {RAY_ENGINE: 1}
    assert ingress["minReplicas"] == ingress["maxReplicas"] == 2
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = int(engine["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus * engine.get("numOfHosts", 1) == resolved.gpus_per_replica
    assert "nvidia.com/gpu" not in json.dumps(ingress)
    deployments = yaml.safe_load(service["serveConfigV2"])["applications"][0]["deployments"]
    for deployment in deployments:
        assert deployment["graceful_shutdown_timeout_s"] == resolved.drain_s
    for group in (ingress, engine):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > resolved.drain_s
    # It has no replica, and a pod that waits it out would keep a deleted model's cluster for as long.
    assert cluster["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] <= 30
    assert service["rayClusterDeletionDelaySeconds"] > resolved.drain_s


def test_children_belong_to_their_model_and_have_its_labels() -> None:
    for child in rendered(EXAMPLES[0], uid="u-1"):
        [owner] = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (c.KIND, "u-1", True)
        assert child["metadata"]["labels"][c.LABEL_MODEL] == EXAMPLES[0].stem
        assert "app.kubernetes.io/name" not in json.dumps(child["metadata"])


_EVIL = st.text(alphabet=st.sampled_from("ab\"'\n:{}[]&*#|>-%@`\\ é"), min_size=1, max_size=40)


@given(_EVIL, _EVIL)
def test_no_text_of_a_resource_becomes_syntax(value: str, note: str) -> None:
    resource = {
        "apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"},
        "spec": {
            "model": {"uri": "hf://acme/" + "x" + value.replace("\n", ""), "name": "n/a:1.5"}, "engine": {"args": {"quantization": note}},
            "pod": {"annotations": {"note": note}, "env": [{"name": "X", "value": value}]},
        },
    }  # fmt: skip
    model = parse(resource)
    [service, *_] = yaml.safe_load_all(to_yaml(children(model, resolve(model), CONTEXT)))
    engine = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]
    assert engine["metadata"]["annotations"] == {"note": note}
    assert engine["spec"]["containers"][0]["env"][-1] == {"name": "X", "value": value}
    app = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    assert app["args"]["models"][0]["model_id"] == "n/a:1.5"
    assert [d["name"] for d in app["deployments"]][1] == "Ingress"


def test_the_command_prints_manifests_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--image", CONTEXT.image, "--code-image", CONTEXT.code_image]
    assert run(["render", str(ROOT / "examples" / "qwq-32b.yaml"), *images]) == 0
    kinds = [d["kind"] for d in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds[:2] == ["RayService", "Service"]
    assert run(["render", str(ROOT / "examples" / "qwq-32b.yaml"), "--replicas", "99", *images]) == 2
    assert "--replicas was 99; qwq-32b allows 1 to" in capsys.readouterr().err
    assert run(["render", str(tmp_path / "none.yaml"), *images]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_only_the_engines_get_the_service_account_that_the_resource_names() -> None:
    """The head's is KubeRay's own, with the rights that Ray's autoscaler needs."""
    spec = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "pod": {"serviceAccountName": "reader"}}
    model = parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec})
    cluster = children(model, resolve(model), CONTEXT)[0]["spec"]["rayClusterConfig"]
    head, (ingress, engine) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods = [g["template"]["spec"] for g in (head, ingress, engine)]
    assert [p.get("serviceAccountName") for p in pods] == [None, None, "reader"]
    assert [p.get("automountServiceAccountToken", True) for p in pods] == [True, False, True]


@pytest.mark.parametrize(("rdma", "nodes", "locks"), [(False, 2, False), (True, 1, False), (True, 2, True)])
def test_engines_of_several_nodes_alone_may_lock_memory_and_only_where_the_operator_says_so(
    rdma: bool, nodes: int, locks: bool
) -> None:
    spec = {"model": {"uri": "hf://acme/big"}, "parallelism": {"tensor": 8, "pipeline": nodes}}
    model = parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec})
    groups = children(model, resolve(model), replace(CONTEXT, rdma=rdma))[0]["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    found = [g["template"]["spec"]["containers"][0]["securityContext"]["capabilities"] for g in groups]
    assert found[0] == {"drop": ["ALL"]}
    assert found[1] == ({"drop": ["ALL"], "add": ["IPC_LOCK"]} if locks else {"drop": ["ALL"]})


# What an example may claim. `make test-kube` brings each before a real API server, `make demo` starts the one that runs on a CPU.
PROVEN = (
    "Proven: rendered, and accepted by a real API server; no engine has been started from it.",
    "Proven: rendered, accepted by a real API server, and started on CPU (make demo, make e2e).",
)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_says_what_was_proven_of_it(file: Path) -> None:
    head = " ".join(x.lstrip("# ") for x in file.read_text().splitlines() if x.startswith("#"))
    assert head.endswith(PROVEN[file.stem == "micro-reasoner"])


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_scales_whatever_the_chart_s_default_is(file: Path) -> None:
    assert all(model.spec.scaling.mode == "Auto" for model in load_models(file))


def test_a_replica_of_sixteen_gpus_is_two_pods_of_one_group_that_ray_gives_to_one_engine() -> None:
    service = rendered(ROOT / "examples" / "deepseek-r1-h100x16.yaml")[0]["spec"]
    engine = service["rayClusterConfig"]["workerGroupSpecs"][1]
    pod = engine["template"]["spec"]
    assert (engine["numOfHosts"], pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == (2, "8")
    model = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["models"][0]
    assert model["gpus"] == 16
    assert (model["engine_kwargs"]["tensor_parallel_size"], model["engine_kwargs"]["pipeline_parallel_size"]) == (8, 2)
    assert {"name": "reasonscale-model", "mountPath": "/models", "readOnly": True} in pod["containers"][0][
        "volumeMounts"
    ]


def test_every_variable_that_engines_get_is_kept_from_the_resource() -> None:
    from reasonscale.api.pod_rules import OWN_ENV

    for file in EXAMPLES:
        group = rendered(file)[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
        assert {e["name"] for e in group["template"]["spec"]["containers"][0]["env"]} <= OWN_ENV


@pytest.mark.parametrize(("replicas", "least"), [(1, 0), (3, 2)])
def test_disruption_budgets_name_a_number_that_needs_no_scale_subresource(replicas: int, least: int) -> None:
    file = ROOT / "examples" / "qwq-32b.yaml"
    budgets = {x["metadata"]["name"]: x["spec"] for x in rendered(file, replicas=replicas) if x["kind"] == "PodDisruptionBudget"}  # fmt: skip
    assert not any("maxUnavailable" in spec for spec in budgets.values())
    assert budgets["qwq-32b-engine"]["minAvailable"] == least
    assert budgets["qwq-32b-ingress"]["minAvailable"] == 1
    assert rendered(file, ingress_replicas=1)[2]["spec"]["minAvailable"] == 0


def test_sizes_of_head_and_ingress_are_the_operators() -> None:
    file = ROOT / "examples" / "qwq-32b.yaml"
    cluster = rendered(file, head=PodSize("100m", "1Gi"), ingress=PodSize("0.2", "512Mi"), ingress_replicas=3)[0]["spec"]["rayClusterConfig"]  # fmt: skip
    head, ingress = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    assert head["template"]["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}  # fmt: skip
    assert ingress["template"]["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "0.2", "memory": "512Mi"}, "limits": {"memory": "1024Mi"}}  # fmt: skip
    assert (ingress["replicas"], ingress["minReplicas"], ingress["maxReplicas"]) == (3, 3, 3)


@pytest.mark.parametrize(
    ("cpu", "memory", "word"), [("half", "2Gi", "CPU was 'half'"), ("1", "2", "memory was '2'"), ("1", "2G", "must be")]
)
def test_a_size_that_is_none_is_refused_in_words(cpu: str, memory: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        PodSize(cpu, memory)


def test_other_tolerations_are_seen_by_kuberay_which_does_not_compare_them() -> None:
    """By a test with a real KubeRay 1.6: of all fields of the pods these alone started no new cluster."""

    def note(*keys: str) -> str | None:
        given = [{"key": key, "operator": "Exists"} for key in keys]
        spec = {"model": {"uri": "hf://Qwen/QwQ-32B"}, "pod": {"tolerations": given}}
        model = parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec})
        engines = children(model, resolve(model), CONTEXT)[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
        found: dict[str, str] = engines["template"]["metadata"].get("annotations") or {}
        return found.get(c.ANNOTATION_TOLERATIONS)

    assert note() is None
    assert note("a") == note("a") != note("b") != note("a", "b")


def test_the_password_of_a_redis_comes_from_a_secret_that_nobody_reads_here() -> None:
    file = ROOT / "examples" / "qwq-32b.yaml"
    cluster = rendered(file, redis_address="redis:6379", redis_password=SecretKey.of("redis/pw"))[0]["spec"]["rayClusterConfig"]  # fmt: skip
    reference = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "pw"}}}
    assert cluster["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379", "redisPassword": reference}
    plain = rendered(file, redis_address="redis:6379")[0]["spec"]["rayClusterConfig"]
    assert plain["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}
    assert SecretKey.of("redis") == SecretKey("redis", "password")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--redis-address", "r:6379", "--redis-password-secret", "a b"), "--redis-password-secret was 'a b'; must be"),
        (("--redis-address", "r:6379", "--redis-password-secret", "a/b/c"), "must be a Secret's NAME or NAME/KEY"),
        (("--redis-password-secret", "a"), "--redis-address is not"),
        (("--head-cpu", "half"), "--head-cpu was 'half'"),
        (("--ingress-replicas", "17"), "--ingress-replicas was 17"),
    ],
)
@pytest.mark.parametrize("command", [("render", str(ROOT / "examples" / "qwq-32b.yaml")), ("operator", "--kubeconfig", str(ROOT / "README.md"))])  # fmt: skip
def test_both_commands_refuse_the_same_options_in_the_same_words(
    command: tuple[str, ...], given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--image", "i:1", "--code-image", "j:1", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{command[0]}: ")
    assert said in error


def test_the_service_selects_the_cluster_that_serves_and_no_other() -> None:
    file = ROOT / "examples" / "qwq-32b.yaml"
    selectors = [next(x for x in rendered(file, active_cluster=name) if x["kind"] == "Service")["spec"]["selector"] for name in (None, "qwq-32b-abcde")]  # fmt: skip
    assert "ray.io/cluster" not in selectors[0]
    assert selectors[1] == selectors[0] | {"ray.io/cluster": "qwq-32b-abcde"}
    before, after = (rendered(file, active_cluster=name)[0] for name in (None, "qwq-32b-abcde"))
    assert before == after, "the RayService does not follow it"
