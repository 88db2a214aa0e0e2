"""The whole loop on one machine: Ray, the Serve application, and one autoscaler for each model."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reasonscale.api.resolve import Resolved
from reasonscale.api.sizes import size_in, size_of
from reasonscale.autoscaler import Autoscaler, Record, RecordFile
from reasonscale.local.ray_node import RayNode, attach_ray, port_taken, start_ray
from reasonscale.local.serve_api import AppState, ServeActuator, ServeApi, ServeError
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.types import Freshness, Policy, StepTime
from reasonscale.serving.config import app_name, deployment_name, serve_app, serve_config
from reasonscale.serving.gpus import CONTEXT_BYTES, GIB, WORKING_BYTES, Gpu, NoGpuError, shortage, visible
from reasonscale.serving.settings import LOCAL_START_PRIOR_S
from reasonscale.signals.sources import ModelSource, Scrape

_DRAIN_POLL_S = 0.5
_CORES_PER_INGRESS, _MOST_INGRESSES = 8, 4


class StartFailed(RuntimeError):
    """The application did not come up; the message has the engine's own last words."""


@dataclass(slots=True)
class LocalApp:
    """What runs, and what it needs to stop again. Use `start`, then `run_loops`, then `stop`."""

    models: Sequence[Resolved]
    host: str
    port: int
    log_dir: Path
    say: Callable[[str], None] = lambda text: None
    env: Mapping[str, str] = field(default_factory=dict)
    priors: Mapping[str, StepTime] = field(default_factory=dict)  # of the models that name a profile, by their names
    autoscalers: dict[str, Autoscaler] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    _node: RayNode | None = None
    _api: ServeApi | None = None
    _scrape: Scrape | None = None
    _file: RecordFile | None = None
    _sources: list[ModelSource] = field(default_factory=list)  # by which a drain sees what still runs
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @property
    def access_log(self) -> Path:
        return self.log_dir / "access.jsonl"

    async def start(self, ray_address: str | None = None) -> None:
        """Start (or attach to) Ray, deploy, and wait until every model answers; StartFailed in words if not."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        offline = all(m.model_source.startswith("/") for m in self.models)
        if ray_address:
            self._node = attach_ray(ray_address, offline=offline)
            self.say(f"attached to Ray at {ray_address}")
        else:
            self._node = start_ray(offline=offline)
            self.say("Ray runs on 127.0.0.1")
        self._api = ServeApi(self._node.dashboard_url, self._node.token)
        others = [] if self._node.owned else await self._api.applications()
        if others:
            # Serve's config is whole: what it does not name is taken away.
            raise StartFailed(
                f"that Ray serves {', '.join(others)} already, which deploying would take away: use another Ray"
            )
        if not self._node.owned:
            await self._take_address()
        short = next((m for m in self.models if 0 < self._node.gpus < m.gpus_per_replica), None)
        if short is not None:
            raise StartFailed(
                f"{short.served_name} wants {short.gpus_per_replica} GPUs for a replica; this machine has {self._node.gpus}: "
                "lower spec.parallelism or take a smaller model"
            )
        problem = sleep_problem(self.models, self._node.gpus)
        if problem is not None:
            raise StartFailed(problem)
        replicas = {m.name: _first_number(m) for m in self.models}
        if self._node.gpus and self._node.owned:
            lack = await asyncio.to_thread(room_problem, self.models, replicas)
            if lack is not None:
                raise StartFailed(lack)
        ingress_env = {"REASONSCALE_ACCESS_LOG": str(self.access_log.resolve())}
        app = serve_app(
            self.models, replicas, local=True, gpus=self._node.gpus > 0, env=self.env, ingress_env=ingress_env,
            ingress_replicas=ingresses(self._node.gpus, os.cpu_count() or 1),
        )  # fmt: skip
        await self._api.put(serve_config(app, host=self.host, port=self.port))
        self.say(f"{', '.join(m.served_name for m in self.models)}: the engine starts; that takes half a minute to two")
        await self._wait_until_running(max(m.start_timeout_s for m in self.models))
        self._make_loops(app["name"], replicas)

    async def _take_address(self) -> None:
        """Take over where the Serve of others listens, if it runs: it stays there, whatever a config says."""
        assert self._api is not None
        there = await self._api.listens_at()
        if there is None:
            if port_taken(self.host, self.port):
                raise StartFailed(f"port {self.port} is taken already; choose another with --port")
        elif there != (self.host, self.port):
            self.say(f"that Ray's Serve listens at {there[0]}:{there[1]} already and stays there")
            self.host, self.port = there

    async def _wait_until_running(self, timeout_s: float) -> None:
        assert self._api is not None
        deadline, began = time.monotonic() + timeout_s, time.time()
        name = app_name(self.models)
        while True:
            state = await self._api.state(name)
            if state.status == "RUNNING":
                return
            trouble = _trouble(state)
            if trouble:
                raise StartFailed((self._node.engine_error(began) if self._node else None) or trouble)
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"not ready after {timeout_s:.0f} s; Serve says {state.status}: {state.message or '; '.join(state.messages.values())}"
                )
            await asyncio.sleep(1)

    def _make_loops(self, app: str, replicas: Mapping[str, int]) -> None:
        assert self._api is not None
        assert self._node is not None
        self._scrape = Scrape(self._node.metrics_urls)
        self._file = RecordFile(self.log_dir / "decisions.jsonl")
        for m in self.models:
            actuator = ServeActuator(self._api, app, deployment_name(m), replicas[m.name])
            source = ModelSource(self._scrape, m.served_name, actuator.fleet)
            loop = Autoscaler(m.name, source, actuator, self.policy(m), listeners=[self._file, self._keep])
            self.autoscalers[m.name] = loop
            self._sources.append(ModelSource(self._scrape, m.served_name, actuator.fleet))

    def policy(self, model: Resolved) -> Policy:
        """Return a model's policy here."""
        return policy_of(model, start_prior_s=LOCAL_START_PRIOR_S, step_time=self.priors.get(model.name))

    def _keep(self, record: Record) -> None:
        self.records[record.model] = record

    def run_loops(self) -> None:
        """Let the autoscalers tick until `stop`."""
        self._tasks = [asyncio.create_task(a.run(self._stop)) for a in self.autoscalers.values()]

    async def stop(self, drain_s: float = 60.0) -> None:
        """Stop deciding, let running requests end for at most `drain_s`, and stop everything that was started."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if self._api is not None and self.autoscalers:
                await self._drain(drain_s)
            if self._api is not None and self._node is not None and not self._node.owned:
                await self._api.remove_all()
        finally:
            for closing in (self._scrape, self._api):
                if closing is not None:
                    await closing.close()
            if self._file is not None:
                self._file.close()
            if self._node is not None:
                await asyncio.to_thread(self._node.stop)
                self._node = None

    async def _drain(self, drain_s: float) -> None:
        """Wait until nothing runs, at most so long. That nobody knows what runs does not mean that nothing does."""
        zeros, told = 0, False
        counted = [0.0] * len(self._sources)  # when each model's last zero was written
        try:
            async with asyncio.timeout(drain_s):
                while True:
                    found = [await _running(source) for source in self._sources]
                    known = [f for f in found if f is not None]
                    busy = sum(requests for requests, _ in known)
                    if len(known) < len(found) or busy >= 0.5:
                        zeros = 0
                        if not told:
                            what = (
                                f"{busy:.0f} requests still run"
                                if busy >= 0.5
                                else "whether requests still run can't be seen"
                            )
                            self.say(f"{what}; waiting, at most {drain_s:.0f} s (again Ctrl-C: at once)")
                            told = True
                    elif all(when > before for (_, when), before in zip(known, counted, strict=True)):
                        # One zero may have been written just before a request came.
                        zeros, counted = zeros + 1, [when for _, when in known]
                        if zeros == 2:
                            return
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            return


def ingresses(gpus: int, cores: int) -> int:
    """Return how many ingress processes a machine runs: one hands on what engines on a CPU make, not what those on a GPU do."""
    return max(1, min(_MOST_INGRESSES, cores // _CORES_PER_INGRESS)) if gpus else 1


async def _running(source: ModelSource) -> tuple[float, float] | None:
    """Return how many requests of a model run, and when the oldest of its ledgers was written; None where nobody knows."""
    try:
        seen = await source.observe()
    except ServeError:
        return None
    if not seen.fleet.ready and not seen.fleet.starting_s and not seen.fleet.draining:
        return seen.held_requests or 0.0, seen.time  # no replica, no request but one that is held for it
    if seen.freshness is not Freshness.FRESH or seen.age_s is None or len(seen.replicas) < seen.fleet.ready:
        return None
    busy = sum(k.waiting + sum(k.reasoning) + sum(k.answering) for k in seen.classes.values())
    return busy, round(seen.time - seen.age_s, 3)  # the difference of two times is not exact


def sleep_problem(models: Sequence[Resolved], gpus: int) -> str | None:
    """Return why replicas can't sleep here; None where they can, or none shall."""
    sleeps = next((m for m in models if m.asleep), None)
    if sleeps is None or gpus:
        return None
    return (
        f"{sleeps.served_name}: spec.scaling.asleep is {sleeps.asleep}, but there is no GPU here, and vLLM puts no engine on "
        "a CPU to sleep: leave it out"
    )


def room_problem(
    models: Sequence[Resolved], replicas: Mapping[str, int], found: Callable[[], list[Gpu]] = visible
) -> str | None:
    """Return in numbers why the first replicas would find no room on this machine's GPUs; None where they would.

    Engines of less than a whole GPU go where there is room, the largest first, as Ray packs them.
    """
    try:
        free = {gpu.index: (gpu, float(gpu.free)) for gpu in found()}
    except NoGpuError as error:
        return f"Ray has GPUs, but {error}"
    for model in sorted(models, key=lambda m: -m.gpu_memory_utilization):
        size = size_of(model.model_source) or size_in(Path(model.model_source))
        whole = max(gpu.total for gpu, _ in free.values())
        share = model.gpu_memory_utilization
        if size is not None and "quantization" not in model.engine_args:
            each, room = size.weight_bytes / model.gpus_per_replica, share * whole - WORKING_BYTES
            if each > room:
                return (
                    f"{model.served_name}: weights of {each / GIB:.1f} GiB do not fit {share:.0%} of {whole / GIB:.1f} GiB"
                    f" with {WORKING_BYTES / GIB:.0f} GiB to work in: raise spec.accelerator.fraction or spec.parallelism.tensor"
                )
        for _ in range(replicas[model.name] * model.gpus_per_replica):
            index = max(free, key=lambda i: free[i][1])
            gpu, left = free[index]
            lack = shortage(replace(gpu, free=int(left)), share)
            if lack is not None:
                return f"{model.served_name}: {lack}; end what holds it, or lower spec.accelerator.fraction"
            free[index] = (gpu, left - share * gpu.total - CONTEXT_BYTES)
    return None


def _first_number(model: Resolved) -> int:
    if model.mode in ("Manual", "External") and model.replicas:
        return model.replicas
    return max(1, model.min_replicas)


def _trouble(state: AppState) -> str | None:
    """Return what Serve says of an application that won't come up; None while it may."""
    texts = [state.message, *state.messages.values()]
    text = next((t for t in texts if "failed" in t.lower() or "error" in t.lower()), "")
    if state.status != "DEPLOY_FAILED" and not ("Traceback" in text and "Retrying" not in text):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":", 1)[0] and " " not in line.split(":", 1)[0]]
    return (errors or lines or ["Serve gives no reason"])[-1]


__all__ = ["LocalApp", "ServeError", "StartFailed"]
