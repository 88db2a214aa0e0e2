"""Scans what the chart and the examples become for unsafe settings, by checkov in an environment of its own.

    python scripts/scan.py CHECKOV HELM
Each finding has to stand in scan-explained.yaml with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.render.children import children
from reasonscale.render.context import Context

ROOT = Path(__file__).parents[1]
VALUES = (
    ("", "image.repository=r/operator,engineImage=r/vllm"),
    (
        "more",
        "image.repository=r/operator,engineImage=r/vllm,prometheus.url=https://p,prometheus.caConfigMap.name=ca,"
        "prometheus.tokenSecret.name=t,replicas=2,networkPolicy.enabled=true,admission.enabled=true,dashboard.enabled=true",
    ),
    ("namespaced", "image.repository=r/operator,engineImage=r/vllm,namespaced=true"),
)


def chart(helm: str, values: str) -> str:
    """Return what the chart renders with these values."""
    command = [
        helm,
        "template",
        "rs",
        str(ROOT / "charts" / "reasonscale"),
        "--kube-version",
        "1.34.0",
        "-n",
        "reasonscale",
        "--set",
        values,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pods(file: Path) -> Iterator[dict[str, Any]]:
    """Yield an example's children, its RayService as the pods that KubeRay makes of it."""
    [model] = load_models(file)
    context = Context(
        namespace="models", replicas=1, image="r/vllm:1", code_image="r/code:1", cpu=file.stem == "micro-reasoner"
    )
    service, *rest = children(model, resolve(model), context)
    yield from rest
    cluster = service["spec"]["rayClusterConfig"]
    for role, group in (
        ("head", cluster["headGroupSpec"]),
        *((g["groupName"], g) for g in cluster["workerGroupSpecs"]),
    ):
        template = group["template"]
        metadata = {"name": f"{file.stem}.{role}", "namespace": "models", **template["metadata"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def findings(checkov: str, folder: Path) -> list[tuple[str, str, str]]:
    """Return each finding: check, resource, and what is asked for."""
    env = {
        **os.environ,
        "BC_SKIP_MAPPING": "TRUE",
        "LOG_LEVEL": "ERROR",
    }  # it asks its maker's server for texts otherwise
    command = [checkov, "-d", str(folder), "--framework", "kubernetes", "--compact", "--quiet", "-o", "json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"scan: {checkov} gave no result: {done.stderr[-2000:]}") from None
    if found["summary"]["parsing_errors"] or not found["summary"]["passed"]:
        raise SystemExit(f"scan: not everything was read: {found['summary']}")
    return [(x["check_id"], x["resource"], x["check_name"]) for x in found["results"]["failed_checks"]]


def main(checkov: str, helm: str) -> int:
    """Scan; print what nobody explains."""
    explained = yaml.safe_load((ROOT / "scripts" / "scan-explained.yaml").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, values in VALUES:
            (folder / f"chart-{label}.yaml").write_text(chart(helm, values))
        for file in sorted((ROOT / "examples").glob("*.yaml")):
            (folder / file.name).write_text(yaml.safe_dump_all(pods(file), sort_keys=False))
        found = findings(checkov, folder)
    used: set[int] = set()
    unexplained = []
    for check, resource, said in found:
        reasons = {n for n, e in enumerate(explained) if e["check"] == check and fnmatch(resource, e["resource"])}
        used |= reasons
        if not reasons:
            unexplained.append(f"{check} {resource}: {said}")
    stale = [
        f"{e['check']} {e['resource']}: explained, and no longer found"
        for n, e in enumerate(explained)
        if n not in used
    ]
    print(*unexplained, *stale, f"scan: {len(found)} findings, {len(unexplained)} unexplained", sep="\n")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
