"""Ray Serve's dashboard API: deploy, set numbers of replicas, read their states."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from reasonscale.scaling.types import Fleet
from reasonscale.serving.config import INGRESS
from reasonscale.serving.numbers import set_emptied, set_number

_STARTING = ("STARTING", "UPDATING", "RECOVERING", "PENDING_MIGRATION")


class ServeError(RuntimeError):
    """Serve refused something or did not answer; the message says what."""


@dataclass(frozen=True, slots=True)
class AppState:
    """An application's state: Serve's word, its message, and replicas by deployment as (id, state, started)."""

    status: str
    message: str
    replicas: Mapping[str, tuple[tuple[str, str, float | None], ...]]
    messages: Mapping[str, str]


class ServeApi:
    """A client of one Ray's dashboard; used from several tasks, one config at a time."""

    def __init__(self, url: str, token: str | None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=60, transport=transport, trust_env=False)
        self.config: dict[str, Any] = {}
        self._changing = asyncio.Lock()  # a config is put whole: who changes a part reads and puts it in one go

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, **kwargs: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, "/api/serve/applications/", **kwargs)
        except httpx.HTTPError as error:
            raise ServeError(
                f"Ray's dashboard at {self._http.base_url} did not answer: {type(error).__name__} {error}"
            ) from None
        if response.status_code >= 400:
            raise ServeError(f"Ray Serve answered {response.status_code}: {response.text[:500]}")
        return response

    async def put(self, config: Mapping[str, Any]) -> None:
        """Deploy a whole config."""
        async with self._changing:
            await self._put(config)

    async def _put(self, config: Mapping[str, Any]) -> None:
        # Kept before it is sent: Serve may have taken what was cut off before its answer came.
        self.config = copy.deepcopy(dict(config))
        await self._call("PUT", json=self.config)

    async def set_replicas(self, app: str, deployment: str, replicas: int) -> None:
        """Change one deployment's number, in place: running replicas are not touched."""
        await self._change(app, deployment, lambda entry: set_number(entry, replicas))

    async def empty(self, app: str, deployment: str, replicas: Sequence[str], asleep: Sequence[str] = ()) -> None:
        """Have the ingress send nothing more to these of a deployment's replicas, and to all others again; `asleep` of them sleep."""
        await self._change(app, INGRESS, lambda entry: set_emptied(entry, deployment, replicas, asleep))

    async def _change(self, app: str, deployment: str, change: Callable[[dict[str, Any]], None]) -> None:
        async with self._changing:
            before, config = self.config, copy.deepcopy(self.config)
            for application in config["applications"]:
                if application["name"] == app:
                    for entry in application["deployments"]:
                        if entry["name"] == deployment:
                            change(entry)
            try:
                await self._put(config)
            except ServeError:
                self.config = before  # else another model's change would carry what was refused
                raise

    async def applications(self) -> list[str]:
        """Return the names of the applications that Serve has."""
        return sorted((await self._call("GET")).json().get("applications", {}))

    async def listens_at(self) -> tuple[str, int] | None:
        """Return host and port of Serve's proxy, which stay as long as Serve runs; None where it does not run yet."""
        options = (await self._call("GET")).json().get("http_options")
        return (str(options["host"]), int(options["port"])) if options else None

    async def remove_all(self) -> None:
        """Take every application of the config away; their running requests end as their drain allows."""
        if self.config:
            await self.put(self.config | {"applications": []})

    async def state(self, app: str) -> AppState:
        """Return an application's state; status NOT_STARTED where Serve does not know it."""
        data = (await self._call("GET")).json()
        found = data.get("applications", {}).get(app)
        if found is None:
            return AppState("NOT_STARTED", "", {}, {})
        deployments = found.get("deployments", {})
        return AppState(
            status=found.get("status", ""),
            message=found.get("message", "") or "",
            replicas={
                name: tuple((r["replica_id"], r["state"], r.get("start_time_s")) for r in d.get("replicas", []))
                for name, d in deployments.items()
            },
            messages={name: d.get("message", "") or "" for name, d in deployments.items()},
        )


class ServeActuator:
    """One model's deployment as the autoscaler sees it."""

    def __init__(self, api: ServeApi, app: str, deployment: str, target: int) -> None:
        self._api, self._app, self._deployment, self._target = api, app, deployment, target
        self._emptied: tuple[str, ...] = ()
        self._asleep: tuple[str, ...] = ()
        self._seen: dict[str, float] = {}  # replica that is starting -> since when, by our clock

    async def set_replicas(self, replicas: int) -> None:
        """Ask for so many replicas."""
        await self._api.set_replicas(self._app, self._deployment, replicas)
        self._target = replicas

    async def empty(self, replicas: tuple[str, ...], asleep: tuple[str, ...]) -> None:
        """Have the routers send nothing to these, and those `asleep` among them sleep."""
        await self._api.empty(self._app, self._deployment, replicas, asleep)
        self._emptied, self._asleep = replicas, asleep

    async def fleet(self) -> Fleet:
        """Return the replicas by state."""
        state = await self._api.state(self._app)
        now = time.time()
        replicas = state.replicas.get(self._deployment, ())
        starting = [rid for rid, word, _ in replicas if word in _STARTING]
        self._seen = {rid: self._seen.get(rid, now) for rid in starting}
        ages = [now - self._seen[rid] for rid in starting]
        ready = sum(1 for _, word, _ in replicas if word == "RUNNING")
        ages += [0.0] * max(0, self._target - ready - len(ages))
        draining = sum(1 for _, word, _ in replicas if word == "STOPPING")
        return Fleet(self._target, ready, tuple(ages), draining, self._emptied, self._asleep)
