"""Our router against Ray's: `python -m bench.routers simulated` and `python -m bench.routers real`.

simulated   The product's own decision with each router before the fleet, and the same number of replicas at all times:
            attainment, p95 of the time to first token, preemptions, and what a replica that is told to go still owes. Ray's prefix-aware router falls back to two
            choices where no prompt is shared; the engine model has no prefix cache, so that it is not played.
real        Three engines on this machine, each held to a pace; the same arrivals under each router, Ray's prefix-aware one
            among them. Ours has its gate before it, theirs have none, as each comes. What the replica owes that Serve would stop next is read from the ledgers twice a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench.forecast import header
from bench.stack import model, pace

from reasonscale.demo.tasks import collatz_split, collatz_task
from reasonscale.local.ray_node import free_port, start_ray
from reasonscale.local.serve_api import ServeApi
from reasonscale.profiles.library import load as load_profile
from reasonscale.scaling.victims import Standing, victims
from reasonscale.serving.config import ROUTER, app_name, deployment_name, serve_app, serve_config
from reasonscale.simulator import policies, traces
from reasonscale.simulator.run import Options, Outcome, run, setting_of
from reasonscale.simulator.workload import Workload

OUT = Path("bench/results")
PROFILE = "qwen2-32b-h200"
TRACES = ("cot-shift", "rag", "agents", "math-heavy")
SIMULATED = ("expected-load", "two-choices", "least-kv")
REAL = {
    "expected work (ours)": ROUTER,
    "power of two (Ray)": "ray.serve._private.request_router.pow_2_router:PowerOfTwoChoicesRequestRouter",
    "prefix-aware (Ray)": "ray.serve.llm.request_router:PrefixCacheAffinityRouter",
}


def _played(work: Workload, profile: Any, router: str, policy: str) -> tuple[dict[str, Any], Outcome]:
    """Return one run's row, and all of it."""
    options = Options(cold_start_s=120.0, seed=1, router=router)
    found = run(work, profile, policies.make(policy, setting_of(work, profile, options)), options)
    data, owed = found.to_json(), found.owed_at_stop
    row = {
        "trace": work.name, "fleet": policy, "router": router, "attainment": data["attainment"], "gpu_hours": data["gpu_hours"],
        "ttft_p95_s": data["ttft_s"]["p95"], "tpot_p95_ms": data["tpot_ms"]["p95"],
        "preempted_per_1000": data["preempted_per_1000"], "scale_downs": data["scale_downs"],
    }  # fmt: skip
    if owed:
        row["tokens_owed_by_victim_mean"] = round(float(np.mean([went for went, _ in owed])), 1)
        row["tokens_owed_by_the_longest_running_mean"] = round(float(np.mean([longest for _, longest in owed])), 1)
    print(row, file=sys.stderr)
    return row, found


def simulated(names: list[str]) -> dict[str, Any]:
    """Return each trace under each router: with the product's decision, and with as many replicas at all times."""
    profile, rows = load_profile(PROFILE), []
    for name in names:
        work, replicas = traces.load(name, seed=1), 0
        for router in SIMULATED:
            row, found = _played(work, profile, router, "reasonscale")
            rows.append(row)
            replicas = replicas or round(found.replica_s / found.span_s)  # of ours on average, for all routers
        rows += [_played(work, profile, router, f"static:{replicas}")[0] for router in SIMULATED]
    return {"profile": PROFILE, "rows": rows}


def _arrivals(requests: int, rate: float) -> list[tuple[float, str, int]]:
    """Return (time, question, tokens about) of a mix of short chains and long ones, in bursts of one conversation."""
    rng, long, at, out = random.Random(11), sorted(collatz_split()[1], reverse=True), 0.0, []
    for i in range(requests):
        at += rng.expovariate(rate)
        if i % 3:
            question = f"collatz {long[rng.randrange(40)]}"
            out.append((at, question, len(collatz_task(int(question.split()[1])).chain)))
        else:
            a, b = rng.randrange(10_000, 99_999), rng.randrange(10_000, 99_999)
            out.append((at, f"{a}+{b}", 190))
    return out


async def _send(http: httpx.AsyncClient, name: str, due: float, rid: str, question: str, heard: dict[str, Any]) -> None:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    body = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    async with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-request-id": rid}) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            delta = (event.get("choices") or [{}])[0].get("delta") or {}
            if "ttft_s" not in heard and (delta.get("reasoning") or delta.get("content")):
                heard["ttft_s"] = time.monotonic() - due
            if event.get("usage"):
                heard["tokens"] = event["usage"]["completion_tokens"]
    heard["e2e_s"] = time.monotonic() - due


async def _look(deployment: str, app: str, samples: list[list[dict[str, Any]]], stop: asyncio.Event) -> None:
    from ray import serve

    handle = serve.get_deployment_handle(deployment, app)
    while not stop.is_set():
        samples.append(await handle.broadcast("ledger").results_async(timeout_s=60))
        await asyncio.sleep(0.5)


def _owed_by_victim(samples: list[list[dict[str, Any]]], order: list[str], lengths: dict[str, int]) -> float | None:
    """Return what the replica owes on average that Serve would stop next."""
    [victim] = victims([Standing(name, "engine", "here") for name in order], "engine", 1, head="here")
    owed = []
    for ledgers in samples:
        rows = next((led["rows"] for led in ledgers if led["replica"] == victim), {})
        known = [(lengths.get(rid.split("-", 1)[1].split(".")[0]), row["generated"]) for rid, row in rows.items()]
        owed.append(sum(max(0, length - made) for length, made in known if length is not None))
    return round(sum(owed) / len(owed), 1) if owed else None


async def _measure(router: str, pace_ms: float, requests: int, rate: float, replicas: int) -> dict[str, Any]:
    resolved, port = model(), free_port()
    node = await asyncio.to_thread(start_ray)
    api = ServeApi(node.dashboard_url, node.token)
    app, deployment = app_name([resolved]), deployment_name(resolved)
    try:
        config = serve_app([resolved], {resolved.name: replicas}, local=True, env=pace(pace_ms))
        config["args"]["models"][0]["router"] = router
        if router != ROUTER:
            # Ray's routers have no gate before them, and tell ours of no replica: all goes to an engine as it comes.
            config["deployments"][-1]["user_config"]["models"][resolved.served_name]["seats"] = 10_000
        await api.put(serve_config(config, host="127.0.0.1", port=port))
        while (state := await api.state(app)).status != "RUNNING":
            if state.status == "DEPLOY_FAILED":
                raise RuntimeError(state.message)
            await asyncio.sleep(1)
        order = [rid for rid, _, _ in state.replicas[deployment]]
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits, trust_env=False
        ) as http:
            for i in range(2 * replicas):  # warm: a first step compiles
                await _send(http, resolved.served_name, time.monotonic(), f"warm{i}", "12+34", {})
            plan, heard = _arrivals(requests, rate), [dict[str, Any]() for _ in range(requests)]
            samples: list[list[dict[str, Any]]] = []
            stop, began = asyncio.Event(), time.monotonic() + 1
            looks = asyncio.create_task(_look(deployment, app, samples, stop))
            await asyncio.gather(
                *(_send(http, resolved.served_name, began + at, f"q{i}", question, heard[i]) for i, (at, question, _) in enumerate(plan)),
                return_exceptions=True,
            )  # fmt: skip
            stop.set()
            await looks
        lengths = {f"q{i}": h["tokens"] for i, h in enumerate(heard) if "tokens" in h}
        ttft = [h["ttft_s"] for h in heard if "ttft_s" in h]
        return {
            "requests": requests, "failed": sum("tokens" not in h for h in heard),
            "ttft_p50_s": round(float(np.quantile(ttft, 0.5)), 4), "ttft_p95_s": round(float(np.quantile(ttft, 0.95)), 4),
            "e2e_p95_s": round(float(np.quantile([h["e2e_s"] for h in heard if "e2e_s" in h], 0.95)), 3),
            "preemptions": sum(ledger["preemptions"] for ledger in samples[-1]),
            "tokens_owed_by_victim_mean": _owed_by_victim(samples, order, lengths),
        }  # fmt: skip
    finally:
        await api.close()
        await asyncio.to_thread(node.stop)


def real(pace_ms: float, requests: int, rate: float, replicas: int) -> dict[str, Any]:
    """Return what came of the same arrivals under each router."""
    rows = []
    for name, router in REAL.items():
        rows.append({"router": name, **asyncio.run(_measure(router, pace_ms, requests, rate, replicas))})
        print(rows[-1], file=sys.stderr)
    return {"pace_ms": pace_ms, "rate": rate, "replicas": replicas, "rows": rows}


def main() -> int:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulated", "real"))
    parser.add_argument("--traces", default=",".join(TRACES))
    parser.add_argument("--pace-ms", type=float, default=40.0)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second")
    parser.add_argument("--replicas", type=int, default=3)
    args = parser.parse_args()
    if args.what == "simulated":
        found, command = simulated(args.traces.split(",")), f"python -m bench.routers simulated --traces {args.traces}"
    else:
        found = real(args.pace_ms, args.requests, args.rate, args.replicas)
        command = (
            f"python -m bench.routers real --pace-ms {args.pace_ms:g} --requests {args.requests} --rate {args.rate:g}"
        )
        command += f" --replicas {args.replicas}"
    out = OUT / f"routers-{args.what}.json"
    out.write_text(json.dumps({"header": header(command), **found}, indent=2) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
