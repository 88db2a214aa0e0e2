"""A stand-in for the Ray of many fake clusters: the part of the dashboard that KubeRay calls, and the ledgers of their engines.

One process listens on ports 8265 and 8000 of every fake pod's address, and on no other, and keeps what it is told by the address of
the head.
`/metrics`, on a port of loopback, has what each engine's ledger would say: a load that stays as it is.
    python -m e2e.cluster.fake_ray METRICS_PORT
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from typing import Any, Final

from aiohttp import web
from e2e.cluster.fake_nodes import CIDR

from reasonscale.api import constants as c
from reasonscale.serving.config import INGRESS
from reasonscale.serving.numbers import number_of

STARTS_S: Final = 2.0
_CLASSES: Final = (c.CLASS_MEDIUM, c.CLASS_HIGH)
_BINS: Final = 16  # of lengths that were ever seen
_apps: dict[str, tuple[float, dict[str, Any]]] = {}  # address of a head -> when it was told, its Serve config


def details(told_s: float, config: dict[str, Any]) -> dict[str, Any]:
    """Return what the dashboard says of the applications of a cluster."""
    runs = time.time() - told_s >= STARTS_S
    apps = {
        app["name"]: {
            "name": app["name"], "route_prefix": "/", "status": "RUNNING" if runs else "DEPLOYING", "message": "",
            "last_deployed_time_s": told_s, "deployed_app_config": app, "source": "declarative",
            "deployments": {
                d["name"]: {
                    "name": d["name"], "status": "HEALTHY" if runs else "UPDATING", "message": "",
                    "replicas": [{"replica_id": f"{d['name']}#{n}", "state": "RUNNING" if runs else "STARTING"} for n in range(number_of(d))],
                }
                for d in app["deployments"]
            },
        }
        for app in config.get("applications", ())
    }  # fmt: skip
    return {
        "controller_info": {},
        "proxy_location": "EveryNode",
        "proxies": {},
        "applications": apps,
        "target_capacity": None,
    }


def _ledger(model: str, worker: str, now: float) -> list[str]:
    """Return one engine's page: four requests in flight in each class, none waiting, and nothing that changes but the time."""
    own = f'{c.LABEL_METRIC_RESOURCE}="{model}",model="{model}",WorkerId="{worker}"'

    def line(name: str, value: float, **labels: object) -> str:
        more = "".join(f',{k}="{v}"' for k, v in labels.items())
        return f"{c.RAY_PREFIX}{name}{{{own}{more}}} {value}"

    out = [line(c.M_LEDGER_TIME, now), line(c.M_KV_CAPACITY, 400_000), line(c.M_KV_USED, 20_000)]
    out += [line(name, 1000.0) for name in (c.M_STEPS, c.M_STEP_SECONDS, c.M_STEP_BATCH, c.M_STEP_KV, c.M_STEP_PREFILL)]
    for cls in _CLASSES:
        out += [line(name, 0, cls=cls) for name in (c.M_WAITING, c.M_WAITING_PROMPT)]
        out += [
            line(name, 5000, cls=cls)
            for name in (c.M_ARRIVALS, c.M_PROMPT_TOKENS, c.M_REASONING_TOKENS, c.M_ANSWER_TOKENS)
        ]
        for n, edge in enumerate(c.TOKEN_BINS[:_BINS]):
            for phase in (c.PHASE_REASONING, c.PHASE_ANSWERING):
                out.append(
                    line(
                        c.M_INFLIGHT,
                        1 if phase == c.PHASE_REASONING and n % 4 == 0 else 0,
                        cls=cls,
                        phase=phase,
                        bin=edge,
                    )
                )
            out.append(line(c.M_INFLIGHT_PROMPT, 200 if n % 4 == 0 else 0, cls=cls, bin=edge))
            out += [line(c.M_REACHED, 1000 - 50 * n, cls=cls, bin=edge), line(c.M_ENDED, 50, cls=cls, bin=edge)]
    return out


def page() -> str:
    """Return the ledgers of all engines of all clusters."""
    now, out = time.time(), []
    known = [config for told_s, config in _apps.values() if now - told_s >= STARTS_S]
    for config in known:
        for app in config.get("applications", ()):
            engines = next(d for d in app["deployments"] if d["name"] != INGRESS)
            for n in range(number_of(engines)):
                out += _ledger(app["name"], f"{app['name']}-{n}", now)
    return "\n".join(out) + "\n"


def _head(request: web.Request) -> str:
    assert request.transport is not None
    return str(request.transport.get_extra_info("sockname")[0])


async def _read(request: web.Request) -> web.Response:
    return web.json_response(details(*_apps.get(_head(request), (0.0, {}))))


async def _take(request: web.Request) -> web.Response:
    _apps[_head(request)] = (time.time(), await request.json())
    return web.Response()


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="success")


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(text=page())


def _app(*routes: web.RouteDef) -> web.AppRunner:
    app = web.Application()
    app.add_routes(routes)
    return web.AppRunner(app, access_log=None)


async def serve(metrics_port: int) -> None:
    """Answer until killed."""
    pods, ledgers = (
        _app(
            web.get("/api/serve/applications/", _read), web.put("/api/serve/applications/", _take), web.get("/-/healthz", _healthy),
        ),
        _app(web.get("/metrics", _metrics)),
    )  # fmt: skip
    loop, hosts = asyncio.get_running_loop(), [str(x) for x in ipaddress.ip_network(CIDR).hosts()]
    for runner in (pods, ledgers):
        await runner.setup()
    for port in (8265, 8000):
        await loop.create_server(pods.server, hosts, port, backlog=64)
    await web.TCPSite(ledgers, "127.0.0.1", metrics_port).start()
    print("the stand-in answers", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
