"""`reasonscale operator`: watches ReasoningModels in a cluster, applies what they need and scales them."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from reasonscale.cli.checks import BadOption, endpoint, label, number, one_of
from reasonscale.cli.cluster_options import ClusterOptions


def operator(
    *, options: ClusterOptions, prometheus_url: str | None = None, prometheus_scrape_interval: float = 15.0,
    prometheus_ca_file: Path | None = None, prometheus_token_file: Path | None = None, namespace: str | None = None,
    kubeconfig: Path | None = None, default_mode: str = "Recommend", health_port: int = 8080, metrics_port: int = 9090,
    listen: str = "127.0.0.1", freeze: bool = False, leader_election: bool = False, operator_namespace: str = "reasonscale",
    lease_name: str = "reasonscale", lease_seconds: int = 15, profiles: Path | None = None,
) -> int:  # fmt: skip
    """Watch ReasoningModels, apply what they need, and scale them by their chain of thought.

    Parameters
    ----------
    prometheus_url
        The Prometheus that scrapes the engines' pods; when absent, the operator reads their metrics ports itself.
    prometheus_scrape_interval
        How often it does, in seconds; at most 30.
    prometheus_ca_file
        Certificates that its own is checked by, as PEM; the system's when absent.
    prometheus_token_file
        File with the bearer token that it wants; read again for each query, so that a token may be renewed.
    namespace
        Look after this namespace alone; all of them when absent.
    kubeconfig
        Connect by this file; as the pod's service account when absent.
    default_mode
        Mode of models that name none: Auto or Recommend.
    health_port
        Port of /healthz and /readyz.
    metrics_port
        Port of /metrics.
    listen
        Address of both ports; 0.0.0.0 in a pod.
    freeze
        Hold every model as it is: observe and report, neither scale nor roll out.
    leader_election
        Act only while this process holds a Lease, so that several can run.
    operator_namespace
        Namespace of the operator itself: of its Lease, and let in by the models' network policies.
    lease_name
        Name of the Lease.
    lease_seconds
        How long a Lease that is not renewed stays taken; at least 5.
    profiles
        Folder with hardware profiles, NAME.json, beside the shipped ones; read as it stands at each turn.
    """
    number("--lease-seconds", lease_seconds, 5)
    one_of("--default-mode", default_mode, ("Auto", "Recommend"))
    number("--prometheus-scrape-interval", prometheus_scrape_interval, 0, 30, above=True)
    prometheus_url = None if prometheus_url is None else endpoint("--prometheus-url", prometheus_url)
    for flag, name in (("--namespace", namespace), ("--operator-namespace", operator_namespace)):
        if name is not None:
            label(flag, name)
    for flag, file in (
        ("--kubeconfig", kubeconfig), ("--prometheus-ca-file", prometheus_ca_file), ("--prometheus-token-file", prometheus_token_file),
    ):  # fmt: skip
        if file is not None and not file.is_file():
            print(f"operator: {flag} was {file}; there is no such file", file=sys.stderr)
            return 2
    if profiles is not None and not profiles.is_dir():
        print(f"operator: --profiles was {profiles}; there is no such folder", file=sys.stderr)
        return 2
    if prometheus_url is None and (prometheus_ca_file or prometheus_token_file):
        print("operator: --prometheus-url is missing; a CA or a token for Prometheus is given", file=sys.stderr)
        return 2
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        print("operator: this is no pod; name a cluster with --kubeconfig FILE", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it tells of every event that it hands on
    logging.getLogger("httpx").setLevel(logging.WARNING)  # and this one of each query
    from reasonscale.controller.model_loop import Settings
    from reasonscale.profiles.library import Library

    settings = Settings(
        default_mode=default_mode, namespace=operator_namespace, freeze=freeze, direct=prometheus_url is None,
        profiles=Library(profiles), **options.given()
    )  # fmt: skip
    from reasonscale.signals.sources import Prometheus

    try:
        prometheus = prometheus_url and Prometheus(
            prometheus_url, scrape_interval_s=prometheus_scrape_interval, ca_file=prometheus_ca_file, token_file=prometheus_token_file
        )  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"operator: --prometheus-ca-file was {prometheus_ca_file}; it can't be read: {error}", file=sys.stderr)
        return 2
    for flag, port in (("--health-port", health_port), ("--metrics-port", metrics_port)):
        if (problem := _taken(listen, port)) is not None:
            print(f"operator: {flag} was {port}; {problem}", file=sys.stderr)
            return 2
    lease = (lease_name, lease_seconds) if leader_election else None
    return asyncio.run(
        _run(
            settings, prometheus or None, namespace, kubeconfig, listen, health_port, metrics_port, lease
        )
    )  # fmt: skip


def _taken(host: str, port: int) -> str | None:
    """Return why nothing can listen there; None where something can."""
    import socket

    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except (OSError, OverflowError) as error:
            return f"nothing can listen on {host}:{port}: {getattr(error, 'strerror', None) or error}; choose another"
    return None


async def _run(
    settings: object, prometheus: object, namespace: str | None, kubeconfig: Path | None, listen: str,
    health_port: int, metrics_port: int, lease: tuple[str, int] | None,
) -> int:  # fmt: skip
    import socket
    import uuid
    from collections.abc import Callable, Coroutine
    from typing import Any

    import kopf
    from prometheus_client import CollectorRegistry, start_http_server

    from reasonscale.autoscaler_metrics import DecisionMetrics
    from reasonscale.controller.health import serve
    from reasonscale.controller.kube import Kube, NoCluster
    from reasonscale.controller.leader import Leader
    from reasonscale.controller.metrics import OperatorMetrics
    from reasonscale.controller.model_loop import Settings
    from reasonscale.controller.operator import Manager, registry_of
    from reasonscale.signals.sources import Prometheus

    assert isinstance(settings, Settings)
    assert prometheus is None or isinstance(prometheus, Prometheus)
    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(kubeconfig)  # where kopf looks for it
    try:
        kube = await Kube.connect(kubeconfig)
    except ValueError as error:
        raise BadOption(str(error)) from None
    except NoCluster as error:
        print(f"operator: {error}", file=sys.stderr)
        return 1
    metrics = CollectorRegistry()
    server, thread = start_http_server(metrics_port, addr=listen, registry=metrics)
    manager = Manager(kube, prometheus, settings, DecisionMetrics(metrics), OperatorMetrics(metrics), namespace)
    health = await serve(listen, health_port, manager.stalled, manager.unready)

    async def alone(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await work()

    lead = alone
    if lease is not None:
        leader = Leader(
            kube.api, lease[0], settings.namespace, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", lease[1]
        )
        kube.may_act, lead = leader.may_act, leader.run
    try:
        await manager.guard.wait()
        await kopf.operator(
            registry=registry_of(manager, kubeconfig, lead), standalone=True, clusterwide=namespace is None,
            namespaces=[namespace] if namespace else [],
        )  # fmt: skip
    finally:
        server.shutdown()
        thread.join(5)
        await health.cleanup()
        await manager.close()
        await kube.close()
    return 0
