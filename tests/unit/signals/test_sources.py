"""Samples come from metrics pages or a Prometheus; what can't be had is said, never made up."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIServer, make_server

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from reasonscale.api import constants as c
from reasonscale.scaling.types import Fleet, Freshness
from reasonscale.signals.assemble import READ, Sample
from reasonscale.signals.sources import ModelSource, Prometheus, Scrape, SignalsMissing, parse

PAGE = """# HELP ray_reasonscale_requests_waiting x
# TYPE ray_reasonscale_requests_waiting gauge
ray_reasonscale_requests_waiting{WorkerId="w",cls="medium",model="m"} 3.0
ray_reasonscale_ledger_time_seconds{WorkerId="w",model="m"} 1000.0
ray_reasonscale_e2e_seconds_bucket{le="1",model="m"} 3.0
ray_serve_other 1.0
"""


async def one() -> Fleet:
    return Fleet(1, 1)


def test_only_our_series_are_read_and_rays_prefix_goes() -> None:
    assert [(s.name, s.value) for s in parse(PAGE)] == [(c.M_WAITING, 3.0), (c.M_LEDGER_TIME, 1000.0)]


def test_a_page_that_is_none_is_said() -> None:
    with pytest.raises(SignalsMissing, match="could not be read"):
        parse("ray_reasonscale_requests_waiting{ 3")


async def test_several_models_share_one_read() -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(200, text=PAGE)

    now = 1001.0
    scrape = Scrape(["http://x/metrics"], httpx.MockTransport(answer), clock=lambda: now)
    seen = await ModelSource(scrape, "m", one, clock=lambda: now).observe()
    other = await ModelSource(scrape, "n", one, clock=lambda: now).observe()
    assert (seen.freshness, seen.classes["medium"].waiting, other.freshness) == (Freshness.FRESH, 3, Freshness.ABSENT)
    assert calls == 1


async def test_an_endpoint_that_is_gone_makes_signals_absent() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    scrape = Scrape(["http://x/metrics"], httpx.MockTransport(refuse))
    with pytest.raises(SignalsMissing, match="no metrics endpoint answered: http://x/metrics: ConnectError refused"):
        await scrape.fetch()
    assert (await ModelSource(scrape, "m", one).observe()).freshness is Freshness.ABSENT


async def test_one_endpoint_of_two_is_enough() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=PAGE) if request.url.host == "a" else httpx.Response(500)

    assert len(await Scrape(["http://a/metrics", "http://b/metrics"], httpx.MockTransport(answer)).fetch()) == 2


async def test_a_prometheus_is_asked_for_what_is_read_and_for_no_histogram() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(parse_qs(request.content.decode())["query"][0])
        labels = {"__name__": "ray_" + c.M_KV_USED, "model": "m", "WorkerId": "a", "job": "ray"}
        return httpx.Response(
            200, json={"status": "success", "data": {"result": [{"metric": labels, "value": [0, "7"]}]}}
        )

    found = await Prometheus("http://p", transport=httpx.MockTransport(answer)).fetch()
    assert found == [Sample(c.M_KV_USED, {"model": "m", "WorkerId": "a"}, 7.0)]
    wanted = re.fullmatch(r'\{__name__=~"(.+)"\}', asked[0])
    assert wanted is not None
    for name in READ:
        assert re.fullmatch(wanted[1], "ray_" + name)
    assert not re.fullmatch(wanted[1], "ray_" + c.M_TTFT + "_sum")


async def test_a_prometheus_that_refuses_is_said() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"status": "error", "error": "parse error"})

    with pytest.raises(SignalsMissing, match="refused the query: parse error"):
        await Prometheus("http://p", transport=httpx.MockTransport(answer)).fetch()


async def test_the_bearer_token_is_sent_and_read_again_for_each_query(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != "Bearer s":
            return httpx.Response(401, text="<html>no</html>")
        return httpx.Response(200, json={"status": "success", "data": {"result": []}})

    token = tmp_path / "token"
    token.write_text("s\n")
    source = Prometheus("http://p", token_file=token, transport=httpx.MockTransport(answer))
    assert await source.fetch() == []
    token.write_text("renewed")
    with pytest.raises(SignalsMissing, match="refused the query with 401: give it the bearer token that it wants"):
        await source.fetch()
    token.unlink()
    with pytest.raises(SignalsMissing, match="the token for Prometheus can't be read"):
        await source.fetch()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.prometheus
async def test_a_real_prometheus_gives_the_same_observation() -> None:
    registry = CollectorRegistry()
    labels = ["model", "WorkerId"]
    Gauge("ray_" + c.M_LEDGER_TIME, "t", labels, registry=registry).labels("m", "w").set_function(time.time)
    Gauge("ray_" + c.M_WAITING, "w", [*labels, "cls"], registry=registry).labels("m", "w", "medium").set(4)
    arrivals = Counter("ray_" + c.M_ARRIVALS.removesuffix("_total"), "a", [*labels, "cls"], registry=registry).labels(
        "m", "w", "medium"
    )
    web: WSGIServer = make_server("127.0.0.1", 0, make_wsgi_app(registry))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    folder, port = Path(tempfile.mkdtemp()), _free_port()
    (folder / "p.yml").write_text(
        f"global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: a, static_configs: [{{targets: ['127.0.0.1:{web.server_port}']}}]}}]\n"
    )
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder}/p.yml",
            f"--storage.tsdb.path={folder}/d",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        source = ModelSource(Prometheus(f"http://127.0.0.1:{port}", scrape_interval_s=1), "m", one)
        deadline = time.monotonic() + 60
        while (seen := await source.observe()).freshness is not Freshness.FRESH and time.monotonic() < deadline:
            await asyncio.sleep(0.3)
        assert seen.freshness is Freshness.FRESH
        assert seen.classes["medium"].waiting == 4
        arrivals.inc(3)
        total = 0.0
        while total < 3 and time.monotonic() < deadline:
            total += (await source.observe()).classes["medium"].arrivals
            await asyncio.sleep(0.3)
        assert total == 3
    finally:
        process.terminate()
        process.wait(20)
        web.shutdown()
        shutil.rmtree(folder)


@pytest.mark.prometheus
async def test_a_real_prometheus_with_tls_is_trusted_by_its_certificate_alone(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=p",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "k", "-out", tmp_path / "c"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "web.yml").write_text(f"tls_server_config: {{cert_file: {tmp_path}/c, key_file: {tmp_path}/k}}\n")
    (tmp_path / "p.yml").write_text("scrape_configs: []\n")
    port = _free_port()
    command = [
        "prometheus", f"--config.file={tmp_path}/p.yml", f"--web.config.file={tmp_path}/web.yml", f"--storage.tsdb.path={tmp_path}/d",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url, deadline = f"https://127.0.0.1:{port}", time.monotonic() + 60
        source, found = Prometheus(url, ca_file=tmp_path / "c"), None
        while found is None and time.monotonic() < deadline:
            try:
                found = await source.fetch()
            except SignalsMissing:
                await asyncio.sleep(0.3)
        assert found == []
        with pytest.raises(SignalsMissing, match="CERTIFICATE_VERIFY_FAILED"):
            await Prometheus(url).fetch()
    finally:
        process.terminate()
        process.wait(20)
