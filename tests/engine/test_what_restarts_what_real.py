"""What restarts what, by a real Ray Serve: each field is changed, and the ids of the replicas are compared. No engine behind them."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.render.test_what_restarts_what import BASE, CHANGES, changed, service

from reasonscale.api.effects import Effect, effect_of
from reasonscale.local.ray_node import RayNode, free_port, start_ray
from reasonscale.local.serve_api import AppState, ServeApi
from reasonscale.serving.config import INGRESS
from reasonscale.serving.numbers import set_number

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
APP = "m"
LOOK_S = 0.3


class Light:
    """A Ray of one's own, whose Serve is given rendered configs with the light application in place of the engines'."""

    def __init__(self, node: RayNode) -> None:
        self._node, self._port = node, free_port()
        self.now: dict[str, Any] = {}
        self.fewest = 0  # engines that ran at any look since the last config

    def _call(self, do: Any) -> Any:
        async def run() -> Any:
            api = ServeApi(self._node.dashboard_url, self._node.token)
            try:
                return await do(api)
            finally:
                await api.close()

        return asyncio.run(run())

    def put(self, spec: dict[str, Any], number: int = 0) -> dict[str, set[str]]:
        """Bring in a spec as KubeRay would, by its Serve config; return the replicas' ids by deployment once all has settled.

        `number`: of engines, where it is not the spec's own.
        """
        self.now = yaml.safe_load(service(spec)[0]["spec"]["serveConfigV2"])
        given = copy.deepcopy(self.now)
        given["http_options"] |= {"host": "127.0.0.1", "port": self._port}
        given["applications"][0]["import_path"] = "tests.engine.light_app:build"
        for deployment in given["applications"][0]["deployments"]:  # nothing runs in them: nothing to wait for
            deployment |= {"graceful_shutdown_timeout_s": 1.0, "graceful_shutdown_wait_loop_s": 0.1}
        if number:
            set_number(given["applications"][0]["deployments"][0], number)
        self._call(lambda api: api.put(given))
        return self.settled()

    def settled(self) -> dict[str, set[str]]:
        deadline, calm, last, self.fewest = time.monotonic() + 120, 0, {}, 1_000
        while calm < 4:  # Serve takes a config up within its loop of a tenth of a second
            state: AppState = self._call(lambda api: api.state(APP))
            assert state.status != "DEPLOY_FAILED", state.message
            engines = [x for name, found in state.replicas.items() if name != INGRESS for x in found]
            if engines:  # none is named for seconds, while Serve builds the application anew and the old replicas run
                self.fewest = min(self.fewest, sum(word == "RUNNING" for _, word, _ in engines))
            words = {word for found in state.replicas.values() for _, word, _ in found}
            ids = {name: {rid for rid, _, _ in found} for name, found in state.replicas.items()}
            calm = calm + 1 if state.status == "RUNNING" and words == {"RUNNING"} and ids == last else 0
            last = ids
            assert time.monotonic() < deadline, state
            time.sleep(LOOK_S)
        return last

    def told(self, deployment: str) -> Any:
        """Return what a replica was told last."""
        from ray import serve

        handle = serve.get_deployment_handle(deployment, APP)
        if not handle.is_initialized:  # Serve keeps them
            handle._init(_run_router_in_separate_loop=True)  # tests have no loop of their own (`ROUTER_ENV`)
        return handle.told.remote().result(timeout_s=30)


@pytest.fixture(scope="module")
def light() -> Iterator[Light]:
    root = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{root}:{before}" if before else root  # for the workers
    node = start_ray(num_cpus=4)
    try:
        yield Light(node)
    finally:
        node.stop()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def by_effect(*effects: Effect) -> list[str]:
    return [path for path in CHANGES if effect_of(path) in effects]


@pytest.mark.parametrize("path", by_effect(Effect.NOTHING, Effect.IN_PLACE))
def test_a_change_in_place_keeps_every_replica_and_reaches_them(light: Light, path: str) -> None:
    value, more = CHANGES[path]
    before, then = light.put(BASE | more), light.now
    after = light.put(changed(path, value) | more)
    for deployment, ids in before.items():
        assert ids <= after[deployment], "a replica was replaced"
    if effect_of(path) is Effect.NOTHING:
        assert light.now == then
    for found in light.now["applications"][0]["deployments"]:
        assert light.told(found["name"]) == found["user_config"]


@pytest.mark.parametrize("path", by_effect(Effect.ENGINES))
def test_a_change_of_the_engines_replaces_every_engine(light: Light, path: str) -> None:
    value, more = CHANGES[path]
    before, after = light.put(BASE | more), light.put(changed(path, value) | more)
    engines = [name for name in before if name != INGRESS]
    assert engines
    for deployment in engines:
        assert not before[deployment] & after.get(deployment, set()), "an engine went on with other settings"


@pytest.mark.parametrize("number", [2, 3])
def test_serve_stops_one_engine_at_a_time_so_that_one_more_makes_up_for_it(light: Light, number: int) -> None:
    path = by_effect(Effect.ENGINES)[0]
    value, more = CHANGES[path]
    before = light.put(BASE | more, number)
    after = light.put(changed(path, value) | more, number)
    assert not set().union(*before.values()) & set().union(*(ids for name, ids in after.items() if name != INGRESS))
    assert light.fewest >= number - 1
