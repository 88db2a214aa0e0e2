"""The chart before a real API server: what it renders is taken, its account may do what the operator does and no more."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.cluster.control_plane import free_ports
from tests.kube.running import SERVICES, resource, until

from reasonscale.api import constants as c
from reasonscale.profiles.library import Library, load
from reasonscale.profiles.profile import dump

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
CHART = Path(__file__).parents[2] / "charts" / "reasonscale"
GIVEN = ("image.repository=r/operator", "engineImage=r/vllm", "prometheus.url=http://127.0.0.1:9")
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
# group, resource, verbs that the operator uses
NEEDED = (
    (c.GROUP, c.PLURAL, ("get", "list", "watch")),
    (c.GROUP, f"{c.PLURAL}/status", ("patch",)),
    ("ray.io", "rayservices", ("list", "watch", "create", "patch", "delete")),
    ("", "pods", ("list", "watch")),
    ("", "nodes", ("list",)),
    ("", "events", ("create", "patch")),
    ("coordination.k8s.io", "leases", ("create",)),
    ("", "services", ("create", "patch")),
    ("networking.k8s.io", "networkpolicies", ("create", "patch")),
    ("policy", "poddisruptionbudgets", ("create", "patch")),
    ("monitoring.coreos.com", "podmonitors", ("create", "patch")),
)
FORBIDDEN = (
    ("", "secrets", "get"), ("", "secrets", "list"), ("", "pods", "create"), ("", "pods/exec", "create"), ("", "services", "delete"),
    ("", "pods", "delete"), ("", "nodes", "patch"), ("coordination.k8s.io", "leases", "update"), ("ray.io", "rayclusters", "delete"), (c.GROUP, c.PLURAL, "delete"), (c.GROUP, c.PLURAL, "patch"), ("", "namespaces", "delete"),
    ("rbac.authorization.k8s.io", "clusterroles", "create"),
)  # fmt: skip


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = Path(os.environ["REASONSCALE_E2E_BIN"]) / "helm"
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True)


def rendered(*values: str, namespace: str = "default", release: str = "rs") -> list[dict[str, Any]]:
    flags = [part for value in (*GIVEN, *values) for part in ("--set", value)]
    done = helm("template", release, str(CHART), "--kube-version", "1.34.0", "-n", namespace, *flags)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def path_of(manifest: dict[str, Any]) -> str:
    group = manifest["apiVersion"]
    base = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    plural = manifest["kind"].lower() + ("" if manifest["kind"].endswith("s") else "s")
    plural = plural.replace("policys", "policies")
    namespaced = not manifest["kind"].startswith(("Cluster", "ValidatingAdmission"))
    return f"{base}/namespaces/default/{plural}" if namespaced else f"{base}/{plural}"


@pytest.mark.parametrize(
    "values",
    [
        (),
        (
            "namespaced=true",
            "networkPolicy.enabled=true",
            "cpu=true",
            "redisAddress=redis:6379",
            "redisPasswordSecret.name=redis",
            "rdma=true",
            "prometheus.caConfigMap.name=ca",
            "prometheus.tokenSecret.name=token",
        ),
        (
            "replicas=2",
            "freeze=true",
            "dashboard.enabled=true",
            "admission.enabled=true",
            "admission.allowedRegistries={a/b}",
            "admission.allowedEngineArgs={seed}",
        ),
        ("admission.enabled=true", "admission.checkServiceAccount=false"),
        ("profiles.my-gpu.format=1", "profilesConfigMap=others"),
    ],
)
def test_the_server_takes_what_the_chart_renders(cluster: Any, values: tuple[str, ...]) -> None:
    for manifest in rendered(*values):
        answer = cluster.http.post(
            path_of(manifest), params={"dryRun": "All", "fieldValidation": "Strict"}, json=manifest
        )
        assert answer.status_code == 201, (manifest["kind"], answer.text)


def test_without_a_prometheus_the_operator_is_given_none_and_with_one_its_ca_and_token_are_mounted() -> None:
    def operator(*values: str) -> dict[str, Any]:
        (found,) = [m for m in rendered(*values) if m["kind"] == "Deployment"]
        spec: dict[str, Any] = found["spec"]["template"]["spec"]
        return spec

    plain = operator("prometheus.url=")
    assert not [a for a in plain["containers"][0]["args"] if "prometheus" in a]
    given = operator("prometheus.caConfigMap.name=ca", "prometheus.tokenSecret.name=token", "rdma=true")
    args = given["containers"][0]["args"]
    assert {
        "--prometheus-ca-file=/prometheus/ca/ca.crt",
        "--prometheus-token-file=/prometheus/token/token",
        "--rdma",
    } <= set(args)
    mounts = {m["name"]: m["mountPath"] for m in given["containers"][0]["volumeMounts"]}
    assert {v["name"] for v in given["volumes"]} == set(mounts)
    assert mounts["prometheus-ca"] == "/prometheus/ca"


def test_profiles_reach_the_operator_as_files_that_it_reads_by_name(tmp_path: Path) -> None:
    made = dump(load("qwen2-7b-h100"))
    (tmp_path / "mine.json").write_text(made)
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"profiles": {"typed": json.loads(made)}}))
    given = [part for value in (*GIVEN, "profilesConfigMap=others") for part in ("--set", value)]
    files = ["--set-file", f"profiles.mine={tmp_path}/mine.json", "-f", str(tmp_path / "values.yaml")]
    done = helm("template", "rs", str(CHART), "--kube-version", "1.34.0", *given, *files)
    assert done.returncode == 0, done.stderr
    found = {(m["kind"], m["metadata"]["name"]): m for m in yaml.safe_load_all(done.stdout) if m}
    held = found["ConfigMap", "rs-reasonscale-profiles"]["data"]
    folder = tmp_path / "mounted"
    folder.mkdir()
    for key, text in held.items():
        (folder / key).write_text(text)
    for name in ("mine", "typed"):
        assert Library(folder).find(name) == load("qwen2-7b-h100")
    pod = found["Deployment", "rs-reasonscale"]["spec"]["template"]["spec"]
    assert "--profiles=/profiles" in pod["containers"][0]["args"]
    (volume,) = [v for v in pod["volumes"] if v["name"] == "profiles"]
    sources = [source["configMap"] for source in volume["projected"]["sources"]]
    assert sources == [{"name": "others", "optional": True}, {"name": "rs-reasonscale-profiles"}], "the values' own win"
    bare = [m for m in rendered() if m["kind"] in ("ConfigMap", "Deployment")]
    assert "profiles" not in yaml.safe_dump_all(bare)


def test_monitoring_comes_only_where_it_is_asked_for() -> None:
    kinds = {m["kind"] for m in rendered()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"}
    more = {
        m["kind"]
        for m in rendered("serviceMonitor.enabled=true", "prometheusRule.enabled=true", "networkPolicy.enabled=true")
    }
    assert {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"} <= more


def test_the_operator_s_pod_is_restricted(cluster: Any) -> None:
    space = {
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }  # fmt: skip
    assert cluster.http.post("/api/v1/namespaces", json=space).status_code in (201, 409)
    (deployment,) = [m for m in rendered() if m["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": pod["spec"]["serviceAccountName"]}}
    assert cluster.http.post("/api/v1/namespaces/strict/serviceaccounts", json=account).status_code in (201, 409)
    answer = cluster.http.post("/api/v1/namespaces/strict/pods", params={"dryRun": "All"}, json=pod)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("defaultMode=Sometimes", "defaultMode"),
        ("prometheus.scrapeInterval=60", "scrapeInterval"),
        ("prometheus.url=prometheus:9090", "url"),
        ("prometheus.tokenSecret=token", "tokenSecret"),
        ("replicas=0", "replicas"),
        ("freeze=maybe", "freeze"),
        ("admission.allowedEngineArgs={--seed}", "allowedEngineArgs"),
        ("profiles.a/b={}", "profiles"),
        ("profiles.a=7", "profiles"),
    ],
)
def test_wrong_values_are_refused_by_their_name(value: str, said: str) -> None:
    flags = [part for v in (*GIVEN, value) for part in ("--set", v)]
    done = helm("template", "rs", str(CHART), "--kube-version", "1.34.0", *flags)
    assert done.returncode != 0
    assert said in done.stderr


def test_what_is_required_is_asked_for_in_words() -> None:
    done = helm("template", "rs", str(CHART), "--kube-version", "1.34.0")
    assert done.returncode != 0
    assert "is missing; it must" in done.stderr


@pytest.fixture(scope="module")
def account(kuberay: Any) -> tuple[str, str]:
    """Install the chart's account and role; return its name and a token."""
    http = kuberay.http
    for manifest in rendered("replicas=2"):
        if manifest["kind"] in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
            answer = http.post(path_of(manifest), json=manifest)
            assert answer.status_code in (201, 409), answer.text
    name = "rs-reasonscale"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    answer = http.post(f"/api/v1/namespaces/default/serviceaccounts/{name}/token", json=asked)
    assert answer.status_code == 201, answer.text
    return name, str(answer.json()["status"]["token"])


def test_its_account_may_do_what_the_operator_does_and_no_more(kuberay: Any, account: tuple[str, str]) -> None:
    def allowed(group: str, plural: str, verb: str) -> bool:
        name, _, sub = plural.partition("/")
        attributes = {"group": group, "resource": name, "subresource": sub, "verb": verb, "namespace": "default"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = kuberay.http.post(REVIEWS, json=review, headers={"Authorization": f"Bearer {account[1]}"})
        assert answer.status_code == 201, answer.text
        return bool(answer.json()["status"]["allowed"])

    until(lambda: allowed(c.GROUP, c.PLURAL, "get"))  # the authorizer sees a new role a moment later
    assert [(g, r, v) for g, r, verbs in NEEDED for v in verbs if not allowed(g, r, v)] == []
    assert [(g, r, v) for g, r, v in FORBIDDEN if allowed(g, r, v)] == []


def test_the_operator_works_with_that_account_alone(kuberay: Any, account: tuple[str, str], tmp_path: Path) -> None:
    import signal
    import sys

    config = yaml.safe_load(Path(kuberay.plane.kubeconfig).read_text())
    for user in config["users"]:
        user["user"] = {"token": account[1]}
    kubeconfig = tmp_path / "account.yaml"
    kubeconfig.write_text(yaml.safe_dump(config))
    ports = free_ports(2)
    made = kuberay.http.post(f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}", json=resource("by-account"))
    assert made.status_code == 201, made.text
    command = [
        sys.executable, "-m", "reasonscale.cli.main", "operator", "--kubeconfig", str(kubeconfig), "--image", "i:1", "--code-image", "j:1",
        "--prometheus-url", "http://127.0.0.1:9", "--health-port", str(ports[0]), "--metrics-port", str(ports[1]),
        "--leader-election", "--operator-namespace", "default", "--lease-name", "rs-reasonscale",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: kuberay.http.get(f"{SERVICES}/by-account").status_code == 200, 60)
        path = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}/by-account"
        until(lambda: kuberay.http.get(path).json().get("status", {}).get("conditions"), 60)
        until(lambda: "forbidden" not in (log := (tmp_path / "log").read_text().lower()) and "leading" in log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        kuberay.http.delete(f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}/by-account")


@pytest.fixture(scope="module")
def admission(cluster: Any) -> Any:
    """Install the policy, and wait until the server holds to it."""
    values = (
        "admission.enabled=true",
        "admission.allowedRegistries={registry.corp/vllm}",
        "admission.allowedEngineArgs={seed}",
    )
    made = []
    for manifest in rendered(*values):
        if manifest["kind"].startswith("ValidatingAdmissionPolicy"):
            base = "/apis/admissionregistration.k8s.io/v1/"
            path = base + (
                "validatingadmissionpolicybindings" if "Binding" in manifest["kind"] else "validatingadmissionpolicies"
            )
            answer = cluster.http.post(path, json=manifest)
            assert answer.status_code == 201, answer.text
            made.append(f"{path}/{manifest['metadata']['name']}")
    until(lambda: denied(cluster, {"engine": {"image": "evil/x:1"}}), 60)
    yield cluster
    for path in made:
        cluster.http.delete(path)
    until(lambda: not denied(cluster, {"engine": {"image": "evil/x:1"}}), 60)


def denied(cluster: Any, spec: dict[str, Any], **headers: str) -> str:
    models = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}"
    answer = cluster.http.post(models, params={"dryRun": "All"}, json=resource("asked", **spec), headers=headers)
    return "" if answer.status_code == 201 else str(answer.json()["message"])


def test_images_come_from_the_registries_that_are_allowed(admission: Any) -> None:
    said = denied(admission, {"engine": {"image": "evil/x:1"}})
    assert "spec.engine.image: was evil/x:1; images come from registry.corp/vllm" in said
    assert denied(admission, {"engine": {"image": "registry.corp/vllm-evil:1"}})
    for image in ("registry.corp/vllm:1", "registry.corp/vllm/x:1", "registry.corp/vllm@sha256:00"):
        assert denied(admission, {"engine": {"image": image}}) == ""
    assert denied(admission, {}) == ""


def test_engine_arguments_beside_those_allowed_are_refused_by_name(admission: Any) -> None:
    said = denied(admission, {"engine": {"args": {"seed": "1", "block_size": "16"}}})
    assert "spec.engine.args: block_size; this cluster allows seed" in said
    assert denied(admission, {"engine": {"args": {"seed": "1"}}}) == ""


def test_who_may_not_use_a_service_account_can_t_name_it(admission: Any) -> None:
    spec = {"pod": {"serviceAccountName": "mighty"}}
    assert denied(admission, spec) == "", "an admin may"
    rules = [
        {"apiGroups": [c.GROUP], "resources": [c.PLURAL], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["own"], "verbs": ["use"]},
    ]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "author"},
        "rules": rules,
    }
    bound = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "author"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "author"},
        "subjects": [{"kind": "ServiceAccount", "name": "author", "namespace": "default"}],
    }  # fmt: skip
    user = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "author"}}
    for manifest in (user, role, bound):
        assert admission.http.post(path_of(manifest), json=manifest).status_code in (201, 409)
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = admission.http.post("/api/v1/namespaces/default/serviceaccounts/author/token", json=asked).json()["status"][
        "token"
    ]
    until(lambda: denied(admission, {}, Authorization=f"Bearer {token}") == "")
    said = denied(admission, spec, Authorization=f"Bearer {token}")
    assert "spec.pod.serviceAccountName: was mighty; you lack the verb use on it" in said
    assert denied(admission, {"pod": {"serviceAccountName": "own"}}, Authorization=f"Bearer {token}") == ""
