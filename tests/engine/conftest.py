"""One Ray with the bundled model, real vLLM on CPU, for every test of this folder that asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reasonscale.api.load import load_models, parse
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.local.ray_node import RAY_ENV, RayNode, free_port, start_ray
from reasonscale.local.serve_api import AppState, ServeApi
from reasonscale.render.context import RAY_ENGINE
from reasonscale.serving.access_log import ENV as ACCESS_LOG
from reasonscale.serving.config import INGRESS, deployment_name, serve_app, serve_config

for _name, _value in RAY_ENV.items():  # before any test module imports ray
    os.environ.setdefault(_name, _value)

EXAMPLE = Path(__file__).parents[2] / "examples" / "micro-reasoner.yaml"
READY_WITHIN_S = 600.0  # four engines on two busy cores take 240 s


@dataclass(slots=True)
class Nodes:
    """Ray nodes of this machine beside the head, each with room for so many engines; processes of our own."""

    there: dict[str, Any] = field(default_factory=dict)  # by Ray's id of the node

    def add(self, engines: int) -> str:
        """Start a node as `ray.cluster_utils.Cluster` does, on loopback; return its id."""
        import ray
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        before = {node["NodeID"] for node in ray.nodes()}
        address = ray.get_runtime_context().gcs_address
        params = RayParams(
            gcs_address=address, redis_address=address, node_ip_address="127.0.0.1", num_cpus=16, num_gpus=0,
            resources={RAY_ENGINE: engines}, object_store_memory=100_000_000, min_worker_port=0, max_worker_port=0,
            node_manager_port=0, include_log_monitor=False, metrics_export_port=free_port(), dashboard_agent_listen_port=None,
        )  # fmt: skip
        started = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
        deadline = time.monotonic() + 60.0
        while not (new := {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before):
            assert time.monotonic() < deadline, "the node did not come"
            time.sleep(0.2)
        [found] = new
        self.there[found] = started
        return str(found)

    def kill(self, node: str) -> None:
        """Kill all processes of a node at once."""
        ours = [info.process for infos in self.there.pop(node).all_processes.values() for info in infos]
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed = [p for process in ours for p in psutil.Process(process.pid).children(recursive=True)]
            for process in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for process in ours:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Service:
    """The bundled model, served here."""

    node: RayNode
    resolved: Resolved
    config: dict[str, Any]  # Serve's whole config, as it was put last
    port: int
    access_log: Path
    nodes: Nodes
    _handle: Any = None  # kept: a new one hears of the replicas first, which takes a second where others work beside

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def model(self) -> str:
        return self.resolved.served_name

    @property
    def app(self) -> str:
        return str(self.config["applications"][0]["name"])

    @property
    def deployment(self) -> str:
        return deployment_name(self.resolved)

    def call(self, do: Callable[[ServeApi], Awaitable[Any]]) -> Any:
        """Run something with a client of Serve's dashboard API."""

        async def run() -> Any:
            api = ServeApi(self.node.dashboard_url, self.node.token)
            try:
                return await do(api)
            finally:
                await api.close()

        return asyncio.run(run())

    def state(self) -> AppState:
        found = self.call(lambda api: api.state(self.app))
        assert isinstance(found, AppState)
        return found

    def put(self, config: dict[str, Any]) -> None:
        """Deploy a config and wait until Serve says that it runs."""
        self.config = config
        self.call(lambda api: api.put(config))
        deadline = time.monotonic() + READY_WITHIN_S
        while (state := self.state()).status != "RUNNING":
            assert state.status != "DEPLOY_FAILED", state.message
            assert time.monotonic() < deadline, f"not running after {READY_WITHIN_S:.0f} s: {state}"
            time.sleep(0.5)

    def settings(self, **changes: Any) -> None:
        """Change the model's settings in place, at the ingress and in its engines."""
        config = copy.deepcopy(self.config)
        for deployment in config["applications"][0]["deployments"]:
            told = deployment["user_config"]
            (told["models"][self.model] if deployment["name"] == INGRESS else told).update(changes)
        self.put(config)

    def replicas(self) -> set[str]:
        """Return the ids of the model's replicas that run."""
        return {rid for rid, word, _ in self.state().replicas[self.deployment] if word == "RUNNING"}

    def pids(self) -> dict[str, int]:
        """Return the process of each of the model's replicas that run."""
        return self.pids_of(self.deployment)

    def pids_of(self, deployment: str) -> dict[str, int]:
        """Return the process of each of a deployment's replicas that run."""
        return {r["replica_id"]: r["pid"] for r in self._running(deployment)}

    def nodes_of(self, deployment: str) -> dict[str, str]:
        """Return the Ray node of each of a deployment's replicas that run."""
        return {r["replica_id"]: r["node_id"] for r in self._running(deployment)}

    def _running(self, deployment: str) -> list[dict[str, Any]]:
        async def details(api: ServeApi) -> Any:
            return (await api._call("GET")).json()

        found = self.call(details)["applications"][self.app]["deployments"][deployment]["replicas"]
        return [r for r in found if r["state"] == "RUNNING"]

    def wait_replicas(self, number: int, within_s: float = READY_WITHIN_S, but: frozenset[str] = frozenset()) -> None:
        """Wait until so many replicas run, none of `but` among them."""
        deadline = time.monotonic() + within_s
        while len(there := self.pids().keys() - but) != number or self.pids().keys() & but:
            assert time.monotonic() < deadline, f"{there} run after {within_s:.0f} s"
            time.sleep(0.5)

    def wait_replicas_of(self, deployment: str, number: int, within_s: float = READY_WITHIN_S) -> None:
        """Wait until so many replicas of a deployment run."""
        deadline = time.monotonic() + within_s
        while len(there := self.pids_of(deployment)) != number:
            assert time.monotonic() < deadline, f"{there} run after {within_s:.0f} s"
            time.sleep(0.5)

    def handle(self) -> Any:
        """Return what calls the model's replicas directly."""
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_deployment_handle(self.deployment, self.app)
            # Else it wants the caller's loop, as in an ingress (`ROUTER_ENV`); tests have none.
            self._handle._init(_run_router_in_separate_loop=True)
        return self._handle

    def ledger(self) -> dict[str, Any]:
        """Return one replica's ledger, asked directly."""
        found = self.handle().ledger.remote().result(timeout_s=60)
        assert isinstance(found, dict)
        return found

    def log_line(self, rid: str, within_s: float = 20.0) -> dict[str, Any]:
        """Return a request's line in the access log, once it is there."""
        deadline = time.monotonic() + within_s
        while True:
            for line in self.access_log.read_text().splitlines():
                entry = json.loads(line)
                if entry["id"] == rid:
                    assert isinstance(entry, dict)
                    return entry
            assert time.monotonic() < deadline, f"{rid} never came to the access log"
            time.sleep(0.1)

    def ledgers(self) -> list[dict[str, Any]]:
        """Return the ledger of each replica that runs."""
        return list(self.handle().broadcast("ledger").results(timeout_s=60))

    def wait_all_idle(self, within_s: float = 60.0) -> None:
        """Wait until no ledger of any replica has a row left: one that drifts never gets there."""
        deadline = time.monotonic() + within_s
        while rows := [ledger["rows"] for ledger in self.ledgers() if ledger["rows"]]:
            assert time.monotonic() < deadline, f"still in flight after {within_s:.0f} s: {rows}"
            time.sleep(0.2)

    def wait_idle(self, within_s: float = 60.0) -> dict[str, Any]:
        """Wait until the ledger has no row left; return it."""
        deadline = time.monotonic() + within_s
        while (ledger := self.ledger())["rows"]:
            assert time.monotonic() < deadline, f"still in flight after {within_s:.0f} s: {ledger['rows']}"
            time.sleep(0.2)
        return ledger


@contextmanager
def serving(
    log: Path, replicas: int = 1, env: dict[str, str] | None = None, ingress_replicas: int = 1, drain_s: float = 1800.0,
    scaling: dict[str, Any] | None = None, args: dict[str, str] | None = None, keep_alive_s: int = 90, folder: Path | None = None,
    engines_on: tuple[int, ...] = (),
) -> Iterator[Service]:  # fmt: skip
    """Start Ray and so many replicas of the bundled model, or of one in a folder, with other scaling and engine arguments; stop both at the end.

    `engines_on`: they run on nodes beside the head, one for each number, with room for so many.
    """
    model = load_models(EXAMPLE)[0]
    document = model.model_dump(by_alias=True, mode="json", exclude_unset=True)
    if scaling is not None:
        document["spec"]["scaling"] = scaling
    if folder is not None:
        document["spec"]["model"]["uri"] = f"file://{folder}"
    model = parse(document, EXAMPLE.parent)
    model.spec.engine.args.update(args or {})
    resolved = replace(resolve(model, EXAMPLE.parent), drain_s=drain_s)
    node, nodes = start_ray(), Nodes()
    try:
        for engines in engines_on:
            nodes.add(engines)
        apart: dict[str, Any] = {}
        if engines_on:  # as in a cluster, where ingress and engines have nodes of their own
            apart = {"engine_resources": {RAY_ENGINE: 1}, "ingress_resources": {"node:__internal_head__": 0.001}}
        app = serve_app(
            [resolved], {resolved.name: replicas}, local=True, env=env, ingress_env={ACCESS_LOG: str(log)},
            ingress_replicas=ingress_replicas, **apart,
        )  # fmt: skip
        port = free_port()
        found = Service(node, resolved, {}, port, log, nodes)
        config = serve_config(app, host="127.0.0.1", port=port)
        config["http_options"]["keep_alive_timeout_s"] = keep_alive_s
        found.put(config)
        yield found
    finally:
        node.stop()
        for each in list(nodes.there):
            nodes.kill(each)


@pytest.fixture(scope="session")
def start_service() -> Any:
    """What starts a Ray with replicas of its own, for tests that harm them; a process has one Ray at a time."""
    return serving


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One replica, for every test that does it no harm."""
    with serving(tmp_path_factory.mktemp("logs") / "access.jsonl") as found:
        yield found


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A plain client of the service."""
    with httpx.Client(base_url=service.url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def put_back(service: Service) -> Iterator[None]:
    """Put the config back as it was before the test, whatever the test did to it."""
    before = copy.deepcopy(service.config)
    yield
    if service.config != before:
        service.put(before)
