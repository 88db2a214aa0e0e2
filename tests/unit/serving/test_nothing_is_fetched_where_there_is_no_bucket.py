"""A replica starts without the task that fetches a model from a bucket, unless it has one, or is on several nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.serving import place


@pytest.mark.parametrize(
    ("model", "mirror", "nodes", "fetches"),
    [
        ("/models/r1", None, "a", False),
        ("Qwen/Qwen3-32B", None, "aa", False),
        ("s3://models/r1", None, "a", True),
        ("Qwen/Qwen3-32B", object(), "a", True),
        ("/models/r1", None, "ab", True),
    ],
)
def test_the_task_that_fetches_is_left_out_only_where_it_would_fetch_nothing(
    monkeypatch: pytest.MonkeyPatch, model: str, mirror: object, nodes: str, fetches: bool
) -> None:
    ctx = SimpleNamespace(run_init_node=True, placement_group="group")
    llm_config: Any = SimpleNamespace(
        get_engine_config=lambda: SimpleNamespace(mirror_config=mirror, actual_hf_model_id=model),
        get_or_create_callback=lambda: SimpleNamespace(ctx=ctx),
    )
    tables = {"group": {"bundles_to_node_id": dict(enumerate(nodes))}}
    monkeypatch.setattr("ray.util.placement_group_table", tables.__getitem__)
    place.without_fetching(llm_config)
    assert ctx.run_init_node is fetches
