"""`reasonscale profile measure`: times the steps of a resource's engine on this machine and fits a profile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonscale.api.load import base_of, load_models
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.api.sizes import size_in, size_of
from reasonscale.api.validate import InvalidResource
from reasonscale.profiles.fit import fit
from reasonscale.profiles.profile import BadProfile, dump
from reasonscale.serving.config import CPU_ENV, OFFLINE_ENV, engine_kwargs
from reasonscale.serving.gpus import GIB, WORKING_BYTES, Gpu, NoGpuError, shortage, visible


def measure(
    file: Path, out: Path | None, report: Path | None, dummy: bool, cpu: bool, console: Console, err: Console
) -> int:
    """Measure, write the profile to `out` and the measurements to `report`; 2 where the input or the machine won't do."""
    if out is None:
        raise BadProfile("--out is missing; it must name the profile to write, such as my-gpu.json")
    try:
        models = load_models(file)
        if len(models) != 1:
            raise BadProfile(f"{file}: holds {len(models)} resources; one is measured at a time")
        resolved = resolve(models[0], base_of(file))
        gpu = None if cpu else _gpu(resolved)
    except InvalidResource as error:
        for problem in error.problems:
            err.print(f"{file}: {problem}", markup=False)
        return 2
    except NoGpuError as error:
        err.print(f"profile: {error}", markup=False)
        return 2
    try:
        data = _run(resolved, gpu, dummy, console)
    except Exception as error:  # an engine that does not start has many ways not to
        err.print(f"profile: the engine could not be measured: {type(error).__name__}: {error}", markup=False)
        return 1
    data = {"model": resolved.served_name, **data}
    if report is not None:
        report.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    made = fit(data, name=out.stem, where=str(report or "what was measured"))
    out.write_text(dump(made), encoding="utf-8")
    from reasonscale.cli.profile import said

    console.print(said(out, made))
    return 0


def _gpu(resolved: Resolved) -> Gpu:
    """Return the GPU to measure on; NoGpuError says in numbers why the engine would not start."""
    found = visible()
    if resolved.gpus_per_replica > len(found):
        raise NoGpuError(
            f"{resolved.served_name} wants {resolved.gpus_per_replica} GPUs for a replica; there are {len(found)}"
        )
    gpu = max(found, key=lambda g: g.free)
    size = size_of(resolved.model_source) or size_in(Path(resolved.model_source))
    share = resolved.gpu_memory_utilization
    if size is not None and "quantization" not in resolved.engine_args:
        # A GPU that can't hold them even when empty is the wrong one; one that is full may be free later.
        each, room = size.weight_bytes / resolved.gpus_per_replica, share * gpu.total - WORKING_BYTES
        if each > room:
            raise NoGpuError(
                f"{gpu}: weights of {each / GIB:.1f} GiB do not fit {share:.0%} of {gpu.total / GIB:.1f} GiB with 2 GiB to work in"
            )
    lack = shortage(gpu, share)
    if lack is not None:
        raise NoGpuError(f"{lack}; end what holds it, or set spec.accelerator.fraction lower")
    return gpu


def _run(resolved: Resolved, gpu: Gpu | None, dummy: bool, console: Console) -> dict[str, Any]:
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")})
    if resolved.model_source.startswith("/"):
        os.environ.update(OFFLINE_ENV)
    kwargs = engine_kwargs(resolved)
    if gpu is None:
        os.environ.update(CPU_ENV)
    else:
        if resolved.gpus_per_replica == 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu.index)
        kwargs["gpu_memory_utilization"] = resolved.gpu_memory_utilization
    if dummy:
        kwargs["load_format"] = "dummy"
    from reasonscale.serving.measure import describe_machine, measure

    console.print(f"measuring {resolved.served_name} on {gpu or 'this CPU'}: some minutes", markup=False)
    return describe_machine(gpu) | measure(
        kwargs, resolved.model_source, say=lambda text: console.print(text, markup=False)
    )
