"""The chart before a real API server: what it renders is taken, its account may do what the operator does and no more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.kube.test_operator_real import SERVICES, kuberay, resource, until  # noqa: F401  (a fixture)

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
CHART = Path(__file__).parents[2] / "charts" / "reasonscale"
GIVEN = ("image.repository=r/operator", "engineImage=r/vllm", "prometheus.url=http://127.0.0.1:9")
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
# group, resource, verbs that the operator uses
NEEDED = (
    (c.GROUP, c.PLURAL, ("get", "list", "watch")),
    (c.GROUP, f"{c.PLURAL}/status", ("patch",)),
    ("ray.io", "rayservices", ("get", "create", "patch")),
    ("", "services", ("create", "patch")),
    ("networking.k8s.io", "networkpolicies", ("create", "patch")),
    ("policy", "poddisruptionbudgets", ("create", "patch")),
    ("monitoring.coreos.com", "podmonitors", ("create", "patch")),
)
FORBIDDEN = (
    ("", "secrets", "get"), ("", "secrets", "list"), ("", "pods", "create"), ("", "pods/exec", "create"), ("", "services", "delete"),
    ("ray.io", "rayservices", "delete"), (c.GROUP, c.PLURAL, "delete"), (c.GROUP, c.PLURAL, "patch"), ("", "namespaces", "delete"),
    ("rbac.authorization.k8s.io", "clusterroles", "create"),
)  # fmt: skip


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = Path(os.environ["REASONSCALE_E2E_BIN"]) / "helm"
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True)


def rendered(*values: str, namespace: str = "default") -> list[dict[str, Any]]:
    flags = [part for value in (*GIVEN, *values) for part in ("--set", value)]
    done = helm("template", "rs", str(CHART), "--kube-version", "1.34.0", "-n", namespace, *flags)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def path_of(manifest: dict[str, Any]) -> str:
    group = manifest["apiVersion"]
    base = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    plural = manifest["kind"].lower() + ("" if manifest["kind"].endswith("s") else "s")
    plural = plural.replace("policys", "policies")
    namespaced = not manifest["kind"].startswith("Cluster")
    return f"{base}/namespaces/default/{plural}" if namespaced else f"{base}/{plural}"


@pytest.mark.parametrize(
    "values", [(), ("namespaced=true", "networkPolicy.enabled=true", "cpu=true", "redisAddress=redis:6379")]
)
def test_the_server_takes_what_the_chart_renders(cluster: Any, values: tuple[str, ...]) -> None:
    for manifest in rendered(*values):
        answer = cluster.http.post(
            path_of(manifest), params={"dryRun": "All", "fieldValidation": "Strict"}, json=manifest
        )
        assert answer.status_code == 201, (manifest["kind"], answer.text)


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
        ("replicas=2", "replicas"),
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
def account(kuberay: Any) -> tuple[str, str]:  # noqa: F811
    """Install the chart's account and role; return its name and a token."""
    http = kuberay.http
    for manifest in rendered():
        if manifest["kind"] in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
            answer = http.post(path_of(manifest), json=manifest)
            assert answer.status_code in (201, 409), answer.text
    name = "rs-reasonscale"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    answer = http.post(f"/api/v1/namespaces/default/serviceaccounts/{name}/token", json=asked)
    assert answer.status_code == 201, answer.text
    return name, str(answer.json()["status"]["token"])


def test_its_account_may_do_what_the_operator_does_and_no_more(kuberay: Any, account: tuple[str, str]) -> None:  # noqa: F811
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


def test_the_operator_works_with_that_account_alone(kuberay: Any, account: tuple[str, str], tmp_path: Path) -> None:  # noqa: F811
    import signal
    import sys

    config = yaml.safe_load(Path(kuberay.plane.kubeconfig).read_text())
    for user in config["users"]:
        user["user"] = {"token": account[1]}
    kubeconfig = tmp_path / "account.yaml"
    kubeconfig.write_text(yaml.safe_dump(config))
    made = kuberay.http.post(f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}", json=resource("by-account"))
    assert made.status_code == 201, made.text
    command = [
        sys.executable, "-m", "reasonscale.cli.main", "operator", "--kubeconfig", str(kubeconfig), "--image", "i:1", "--code-image", "j:1",
        "--prometheus-url", "http://127.0.0.1:9", "--health-port", str(kuberay.ports[0]), "--metrics-port", str(kuberay.ports[1]),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: kuberay.http.get(f"{SERVICES}/by-account").status_code == 200, 60)
        path = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}/by-account"
        until(lambda: kuberay.http.get(path).json().get("status", {}).get("conditions"), 60)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        kuberay.http.delete(f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}/by-account")
