"""All models' samples are read once a turn; each gets its own, also where two serve the same name."""

from __future__ import annotations

import httpx
import pytest

from reasonscale.api import constants as c
from reasonscale.signals.assemble import Sample
from reasonscale.signals.pods import PodScrape, Target
from reasonscale.signals.shared import SharedSamples
from reasonscale.signals.sources import SignalsMissing

PAGE = 'ray_reasonscale_ledger_time_seconds{WorkerId="w",model="m"} 1000.0\n'


class Given:
    limit_s = 30.0

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.reads = samples, 0

    async def fetch(self) -> list[Sample]:
        self.reads += 1
        return self.samples


def sample(value: float, **labels: str) -> Sample:
    return Sample(c.M_LEDGER_TIME, {"model": "r1", **labels}, value)


async def test_two_resources_that_serve_the_same_name_get_their_own_ledgers() -> None:
    given = Given([
        sample(1, namespace="a", reasonscale_io_model="r1"), sample(2, namespace="b", reasonscale_io_model="r1"),
        sample(3, namespace="a", reasonscale_io_model="other"), Sample(c.M_LEDGER_TIME, {"model": "q"}, 4),
    ])  # fmt: skip
    shared = SharedSamples(given)
    await shared.renew()
    found = {
        which: [s.value for s in await shared.of(*which).fetch()]
        for which in (("a", "r1", "r1"), ("b", "r1", "r1"), ("a", "other", "r1"), ("x", "q", "q"))
    }
    assert found == {("a", "r1", "r1"): [1], ("b", "r1", "r1"): [2], ("a", "other", "r1"): [3], ("x", "q", "q"): [4]}
    assert given.reads == 1


async def test_a_scrape_without_labels_of_its_own_is_taken_as_it_is() -> None:
    shared = SharedSamples(Given([sample(1)]))
    await shared.renew()
    assert len(await shared.of("a", "x", "r1").fetch()) == 1


async def test_before_the_first_read_and_after_a_failed_one_samples_are_missing_not_none() -> None:
    shared = SharedSamples(Given([]))
    with pytest.raises(SignalsMissing):
        await shared.of("a", "x", "r1").fetch()


async def test_pods_are_read_directly_and_their_samples_say_whose_they_are() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "10.0.0.2":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=PAGE)

    targets = [Target(f"http://10.0.0.{n}:8080/metrics", {"namespace": f"n{n}"}) for n in (1, 2)]
    scrape = PodScrape(lambda: targets, httpx.MockTransport(answer))
    found = await scrape.fetch()
    assert [(s.labels["namespace"], s.labels["model"]) for s in found] == [("n1", "m")], "the other's ledger grows old"
    targets.pop(0)
    with pytest.raises(SignalsMissing, match=r"no pod's metrics port answered: http://10\.0\.0\.2"):
        await scrape.fetch()
    targets.clear()
    assert await scrape.fetch() == [], "no pod yet is no failure"
    await scrape.close()
