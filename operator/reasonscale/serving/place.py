"""The GPU that a replica was given: found, waited for until its memory is free, and used without a process between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

from reasonscale.api.resolve import GPU_MEMORY_UTILIZATION
from reasonscale.serving import gpus


async def gpu_of(llm_config: Any) -> int | None:
    """Return the index of the one GPU, or part of one, that this replica's bundle is on, and show the process no other.

    None for engines of several GPUs, which Ray's workers hold, for those on a CPU, and for those that have a part which the driver
    made of one (MIG): nobody else is there, and nobody tells what memory it has. NoGpuError where several would share such a part.
    """
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    config = llm_config.get_engine_config()
    group = get_current_placement_group()
    wanted = sum(bundle.get("GPU", 0) for bundle in config.placement_bundles)
    if group is None or not 0 < wanted <= 1 or config.num_devices > 1:
        return None
    # Only a task's own GPUs have numbers; one that takes next to nothing of the bundle's learns it.
    ask = ray.remote(_gpu_ids).options(
        num_cpus=0, num_gpus=0.001, scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group)
    )
    ids = await ask.remote()
    if not ids:
        return None
    gpu = gpus.named(ids[0], await asyncio.to_thread(gpus.gpus))
    if gpu is None:
        if wanted < 1:
            raise gpus.NoGpuError(gpus.DIVIDED)
        return None
    os.environ[gpus.VISIBLE_ENV] = ids[0]
    return gpu.index


def _gpu_ids() -> list[str]:
    import ray

    return [str(i) for i in ray.get_gpu_ids()]  # as CUDA_VISIBLE_DEVICES names them: by index, or by UUID


def _share(llm_config: Any) -> float:
    return float(llm_config.engine_kwargs.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION))


@asynccontextmanager
async def room(index: int, llm_config: Any) -> AsyncIterator[None]:
    """Hold the GPU's start lock with the engine's memory free; NoGpuError in words where that does not become so."""
    share = _share(llm_config)
    while True:
        # Waited for without the lock: who falls asleep, and so gives its memory, needs it.
        await asyncio.to_thread(gpus.wait_for_room, index, share)
        with ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, gpus.starting(index))
            if await asyncio.to_thread(gpus.has_room, index, share):
                yield
                return


@contextmanager
def none_starts(index: int | None) -> Iterator[bool]:
    """Keep engines from starting on the GPU meanwhile; False where one does, which must not find memory come or go."""
    with ExitStack() as stack:
        try:
            if index is not None:
                stack.enter_context(gpus.none_starts(index))
        except BlockingIOError:
            yield False
        else:
            yield True


def without_fetching(llm_config: Any) -> None:
    """Leave out the task that fetches a model from a bucket where there is none: it imports the engine anew, for 15 s.

    On several nodes, where each runs it, it stays: nobody has tried them without.
    """
    from ray.util import placement_group_table

    config, ctx = llm_config.get_engine_config(), llm_config.get_or_create_callback().ctx
    nodes = set(placement_group_table(ctx.placement_group)["bundles_to_node_id"].values())
    if config.mirror_config is None and "://" not in config.actual_hf_model_id and len(nodes) == 1:
        ctx.run_init_node = False


def engine_config(llm_config: Any) -> tuple[Any, Any, Any]:
    """Return engine arguments, frontend arguments and configuration of an engine that holds its GPU itself."""
    from ray.llm._internal.serve.engines.vllm.vllm_engine import _normalize_vllm_engine_kwargs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.usage.usage_lib import UsageContext

    config = llm_config.get_engine_config()
    kwargs = config.get_initialization_kwargs() | {"distributed_executor_backend": "uni"}
    args = AsyncEngineArgs(**_normalize_vllm_engine_kwargs(kwargs))
    made = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return args, FrontendArgs(**config.frontend_kwargs), made
