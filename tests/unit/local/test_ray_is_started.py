"""What a Ray of ours is told, and what `ray.init` does not change in our own process. Ray itself is played."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.local.ray_node import OFFLINE_ENV, RAY_ENV, port_taken, start_ray


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def init(**_: Any) -> Any:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(15))
        return SimpleNamespace(address_info={"webui_url": "127.0.0.1:1", "session_dir": ""})

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, cluster_resources=dict))
    for name in {**RAY_ENV, **OFFLINE_ENV}:
        # Set first, so that what the test sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_model_of_the_hub_can_be_fetched() -> None:
    start_ray(offline=False)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_where_every_model_is_a_file_the_hub_is_not_asked() -> None:
    start_ray(offline=True)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_ray_does_not_replace_our_handler_of_sigterm() -> None:
    def ours(number: int, frame: Any) -> None: ...

    signal.signal(signal.SIGTERM, ours)
    start_ray()
    assert signal.getsignal(signal.SIGTERM) is ours


@pytest.mark.parametrize(("host", "port"), [("nosuch.invalid", 80), ("::1", 80), ("127.0.0.1", 70000)])
def test_nobody_listens_at_an_address_that_is_none(host: str, port: int) -> None:
    assert not port_taken(host, port)
