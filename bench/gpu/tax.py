"""What the whole stack costs against a bare vLLM on the same GPU, in turns: `python -m bench.gpu tax`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
from bench.gpu.client import Seen, body, play
from bench.processes import cpu
from bench.stack import vllm_server

from reasonscale.api.load import load_models
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.load.client import percentile
from reasonscale.local.app import LocalApp
from reasonscale.local.ray_node import free_port
from reasonscale.serving.config import CPU_ENV, OFFLINE_ENV, model_args

STEADY = (16.0, 15.0)  # requests a second, seconds


def resolved_of(file: Path) -> Resolved:
    """Return the one resource of a file."""
    return resolve(load_models(file)[0], file.parent)


@asynccontextmanager
async def bare(resolved: Resolved, log: Path, *, gpus: bool = True, timeout_s: float = 400.0) -> AsyncIterator[str]:
    """Run vLLM's own server with the arguments that the stack would give it; yield its address."""
    args = model_args(resolved, local=True, gpus=gpus, env={})
    env = os.environ | OFFLINE_ENV | ({} if gpus else dict(CPU_ENV)) | {"VLLM_NO_USAGE_STATS": "1"}
    async with vllm_server(resolved, args["engine_kwargs"], env, log, timeout_s) as url:
        yield url


@asynccontextmanager
async def stack(resolved: Resolved, log_dir: Path) -> AsyncIterator[LocalApp]:
    """Run the whole stack as `reasonscale up` does, its loop included; stop it at the end."""
    app = LocalApp([resolved], "127.0.0.1", free_port(), log_dir, say=lambda text: print(text, file=sys.stderr))
    try:
        await app.start()
        app.run_loops()
        yield app
    finally:
        await app.stop(drain_s=5)


async def metric(app: LocalApp, *names: str) -> float:
    """Return the sum of the ledger's counters over all replicas and classes."""
    assert app._node is not None
    total = 0.0
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        for url in app._node.metrics_urls:
            for line in (await http.get(url)).text.splitlines():
                if line.startswith(tuple(f"ray_{n}{{" for n in names)):
                    total += float(line.rsplit(" ", 1)[1])
    return total


async def burst(url: str, name: str, streams: int, tokens: int) -> list[Seen]:
    """Run so many streams at once, started over one second."""
    start = time.time() + (1.5 if streams > 1 else 1.0)
    plan = [(start + i / streams, body(name, tokens)) for i in range(streams)]
    return await play(url, plan, processes=1 if streams < 8 else 6)


async def steady(url: str, name: str, rate: float, seconds: float, tokens: int) -> list[Seen]:
    """Send so many requests a second, evenly: what a request meets where others run, and not where all come at once."""
    start = time.time() + 1.5
    return await play(url, [(start + i / rate, body(name, tokens)) for i in range(int(rate * seconds))], processes=6)


async def single(url: str, name: str, times: int, tokens: int) -> list[Seen]:
    """Run requests one after another."""
    start = time.time() + 1.0
    found: list[Seen] = []
    for _ in range(times):
        found += await play(url, [(max(start, time.time() + 0.2), body(name, tokens))], processes=1)
    return found


def cores(before: dict[int, tuple[str, float]], began: float) -> dict[str, float]:
    """Return how many cores each kind of process took since `before`, which was taken at `began`."""
    passed, out = time.monotonic() - began, dict[str, float]()
    for pid, (what, spent) in cpu().items():
        out[what] = out.get(what, 0.0) + (spent - before.get(pid, (what, 0.0))[1]) / passed
    return {what: round(taken, 2) for what, taken in sorted(out.items())}


async def in_turns(
    pairs: int, play_: Callable[[str], Awaitable[list[Seen]]], tokens: int, rounds: dict[str, list[Any]], said: str,
    keep: Callable[[], None],
) -> None:  # fmt: skip
    """Play a load on both sides so many times, each side first in every other pair; add what came of it to their rounds."""
    for pair in range(pairs):
        for side in ("bare", "stack") if pair % 2 == 0 else ("stack", "bare"):
            before, began = cpu(), time.monotonic()
            found = await play_(side)
            rounds[side].append(figures(found, tokens) | {"cores": cores(before, began)})
            print(f"{said:>6} {side:>5}: {rounds[side][-1]}", file=sys.stderr, flush=True)
            keep()


def figures(found: list[Seen], tokens: int) -> dict[str, Any]:
    """Return a round's figures: tokens/s, times in ms, and what failed."""
    good = [s for s in found if not s.error and s.tokens == tokens]
    if not good:
        return {"failed": len(found), "why": sorted({s.error for s in found})[:2]}
    wall = max(s.last for s in good) - min(s.due for s in good)
    quantile = {
        "ttft_ms": ([s.first - s.sent for s in good], (0.5, 0.95)),
        "tpot_ms": ([s.tpot_s for s in good], (0.5, 0.99)),
        "longest_pause_ms": ([s.longest_pause for s in good], (0.5, 0.99)),
    }
    return {
        "streams": len(found), "failed": len(found) - len(good), "tokens_per_s": round(sum(s.tokens for s in good) / wall, 1),
        "sent_late_ms": round(1000 * max(s.sent - s.due for s in good), 1),
        **{
            f"{key}_p{round(q * 100)}": round(1000 * (percentile(values, q) or 0.0), 3)
            for key, (values, shares) in quantile.items() for q in shares
        },
    }  # fmt: skip


async def measure(
    file: Path, streams: tuple[int, ...], tokens: int, pairs: int, keep: Any, *, gpus: bool = True
) -> dict[str, Any]:
    """Return both sides' rounds by number of streams; `keep` is called with what there is after every round."""
    resolved = resolved_of(file)
    name, out = resolved.served_name, dict[str, Any](tokens=tokens, rounds={}, starts_s={})
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        async with bare(resolved, Path(folder) / "bare.log", gpus=gpus) as bare_url:
            out["starts_s"]["bare"] = round(time.monotonic() - began, 1)
            began = time.monotonic()
            async with stack(resolved, Path(folder) / "logs") as app:
                out["starts_s"]["stack"] = round(time.monotonic() - began, 1)
                keep(out)
                urls = {"bare": bare_url, "stack": app.url}

                def sent(count: int, side: str) -> Awaitable[list[Seen]]:
                    return burst(urls[side], name, count, tokens)

                for side, url in urls.items():
                    for _ in range(2):  # kernels are compiled at their first use, by size of the batch
                        warm = await burst(url, name, max(streams), 40)
                    print(side, "warm", figures(warm, 40), file=sys.stderr)
                for count in streams:
                    rounds: dict[str, list[Any]] = {"bare": [], "stack": []}
                    out["rounds"][str(count)] = rounds
                    times = pairs if count > 1 else 1  # one stream is measured again below
                    await in_turns(times, partial(sent, count), tokens, rounds, str(count), lambda: keep(out))
                out["steady"] = {"bare": [], "stack": [], "rate": STEADY[0]}
                await in_turns(
                    2, lambda side: steady(urls[side], name, *STEADY, tokens), tokens, out["steady"], "steady", lambda: keep(out)
                )  # fmt: skip
                alone = {side: await single(url, name, 8, 40) for side, url in urls.items()}
                out["alone"] = {side: figures(found, 40) for side, found in alone.items()}
                keep(out)
    out["tax"] = summary(out)
    keep(out)
    return out


def added(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return what the stack costs over pairs of (bare, stack): throughput in percent, times in ms added."""
    return {
        "throughput_percent": round(100 * (1 - mean(s["tokens_per_s"] / b["tokens_per_s"] for b, s in pairs)), 2),
        "throughput_percent_by_pair": [round(100 * (1 - s["tokens_per_s"] / b["tokens_per_s"]), 2) for b, s in pairs],
        **{
            f"{k}_added": round(mean(s[k] - b[k] for b, s in pairs), 3)
            for k in ("ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "tpot_ms_p99")
        },
    }


def summary(out: dict[str, Any]) -> dict[str, Any]:
    """Return the tax by number of streams, and at a steady rate."""
    tax = {}
    for count, rounds in {**out["rounds"], "steady": out.get("steady", {"bare": [], "stack": []})}.items():
        both = zip(rounds["bare"], rounds["stack"], strict=False)
        pairs = [(b, s) for b, s in both if "tokens_per_s" in b and "tokens_per_s" in s]
        if pairs:
            tax[count] = added(pairs)
    alone = out.get("alone", {})
    if "ttft_ms_p50" in alone.get("bare", {}) and "ttft_ms_p50" in alone.get("stack", {}):
        tax["alone"] = {"ttft_ms_p50_added": round(alone["stack"]["ttft_ms_p50"] - alone["bare"]["ttft_ms_p50"], 3)}
    return tax


async def three(
    file: Path, streams: int, tokens: int, pairs: int, keep: Any, *, gpus: bool = True, engines: int = 3
) -> dict[str, Any]:
    """Return the tax of one stack with three engines against three bare servers, between which the client takes turns."""
    resolved = resolved_of(file)
    name, out = resolved.served_name, dict[str, Any](streams=streams, tokens=tokens, engines=engines, rounds={})
    rounds: dict[str, list[Any]] = {"bare": [], "stack": []}
    out["rounds"][str(streams)] = rounds
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as servers:
            urls = [
                await servers.enter_async_context(bare(resolved, Path(folder) / f"bare{i}.log", gpus=gpus))
                for i in range(engines)
            ]
            app = await servers.enter_async_context(stack(resolved, Path(folder) / "logs"))
            await replicas_ready(app, engines)

            async def round_of(side: str, count: int, length: int) -> list[Seen]:
                asked = urls if side == "bare" else [app.url] * engines
                parts = await asyncio.gather(*(burst(url, name, count // engines, length) for url in asked))
                return [seen for part in parts for seen in part]

            for side in ("bare", "stack"):
                for _ in range(2):
                    await round_of(side, streams, 40)
            await in_turns(
                pairs, lambda side: round_of(side, streams, tokens), tokens, rounds, "three", lambda: keep(out)
            )  # fmt: skip
    out["tax"] = summary(out)
    keep(out)
    return out


async def replicas_ready(app: LocalApp, number: int, timeout_s: float = 400.0) -> None:
    """Wait until the loop sees so many replicas ready, and a little longer for the routers."""
    deadline = time.monotonic() + timeout_s
    while not app.records or next(iter(app.records.values())).observation.fleet.ready < number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"fewer than {number} replicas after {timeout_s:.0f} s")
        await asyncio.sleep(1)
    await asyncio.sleep(4)
