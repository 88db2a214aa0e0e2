"""Everything that is measured on a GPU: `python -m bench.gpu [STAGE...] [--out FOLDER]`; all stages where none is named.

`--rehearse` runs the same on a CPU with a tiny shape: it shows that the bench works, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import fidelity
from bench.gpu import answers, asleep, ledger, loop, shapes, sleep, tax, tensor

STAGES = ("profile", "tax", "three", "small", "loop", "ledger", "answers", "sleep", "asleep", "fleet", "tensor")


class Bench:
    """The stages, and where their results go."""

    def __init__(self, out: Path, work: Path, rehearse: bool) -> None:
        self.out, self.work, self.rehearse = out, work, rehearse
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    def keep(self, stage: str, file: Path | None = None) -> Callable[[Any], None]:
        """Return what writes a stage's result, to its own file or another: a run that is cut off keeps what it had."""

        def write(found: Any) -> None:
            text = json.dumps({"header": self.header(stage), **found}, indent=1)
            (file or self.out / f"gpu-{stage}.json").write_text(text + "\n")

        return write

    def header(self, stage: str) -> dict[str, str]:
        """Return what the stage ran on."""
        import torch
        import vllm

        head = {"command": f"python -m bench.gpu {stage}", "vllm": vllm.__version__, "torch": torch.__version__}
        import ray

        head["ray"] = ray.__version__
        if not self.rehearse:
            from reasonscale.serving.gpus import visible

            gpu = visible()[0]
            head |= {"gpu": gpu.name, "driver": gpu.driver, "cuda": str(torch.version.cuda)}
        return head

    def profile(self) -> None:
        """`reasonscale profile measure` of the 7B."""
        self._profile("qwen2-7b")

    def small(self) -> None:
        """`reasonscale profile measure` of the 1.5B, of which three share a GPU below."""
        self._profile("qwen2-1.5b")

    def _profile(self, shape: str) -> None:
        shape, folder = "tiny" if self.rehearse else shape, self.work / "profile"
        folder.mkdir(exist_ok=True)
        file = shapes.resource(shape, folder, fraction=100, cpu=self.rehearse, seats=8 if self.rehearse else 256)
        command = [
            sys.executable, "-m", "reasonscale.cli.main", "profile", "measure", str(file), "--dummy",
            *(["--cpu"] if self.rehearse else []),
            "--out", str(self.out / f"profile-{shape}.json"), "--json", str(self.out / f"measured-{shape}.json"),
        ]  # fmt: skip
        subprocess.run(command, check=True)

    def tax(self) -> None:
        """The whole stack against a bare vLLM."""
        shape = "tiny" if self.rehearse else "qwen2-7b"
        folder = self.work / "tax"
        folder.mkdir(exist_ok=True)
        file = shapes.resource(
            shape, folder, fraction=45, replicas=1, cpu=self.rehearse, seats=8 if self.rehearse else 256
        )
        streams, tokens = ((1, 4), 24) if self.rehearse else ((1, 64, 256), 500)
        asyncio.run(tax.measure(file, streams, tokens, 3, self.keep("tax"), gpus=not self.rehearse))

    def three(self) -> None:
        """One stack with three engines against three bare servers."""
        shape, cpu = ("tiny", True) if self.rehearse else ("qwen2-1.5b", False)
        folder = self.work / "three"
        folder.mkdir(exist_ok=True)
        count = 2 if cpu else 3
        file = shapes.resource(shape, folder, fraction=14, replicas=count, cpu=cpu, seats=8 if cpu else 256)
        streams, tokens, pairs = (8, 24, 1) if cpu else (192, 500, 3)
        asyncio.run(tax.three(file, streams, tokens, pairs, self.keep("three"), gpus=not cpu, engines=count))

    def ledger(self) -> None:
        """The ledger's count under three engines."""
        shape = "tiny" if self.rehearse else "qwen2-1.5b"
        folder = self.work / "ledger"
        folder.mkdir(exist_ok=True)
        file = shapes.resource(
            shape,
            folder,
            fraction=30,
            replicas=2 if self.rehearse else 3,
            cpu=self.rehearse,
            seats=8 if self.rehearse else 256,
        )
        streams, tokens = (8, 24) if self.rehearse else (768, 300)
        asyncio.run(ledger.measure(file, streams, tokens, self.keep("ledger")))

    def loop(self) -> None:
        """The product under a load whose chains get longer and shorter, and the simulator under the same."""
        folder = self.work / "loop"
        folder.mkdir(exist_ok=True)
        asyncio.run(loop.measure(loop.SHARED, folder, self.out, self.keep("loop"), rehearse=self.rehearse))
        found = fidelity.compare(fidelity.of_gpu(self.out))
        fidelity.draw(found, self.out / "gpu-loop.png", "one load: engines on a GPU, and the simulator")

    def fleet(self) -> None:
        """The same with a GPU for each engine, at the GPU's own pace; its results lie in a folder of their own."""
        folder, out = self.work / "fleet", self.out / "fleet"
        folder.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        keep = self.keep("fleet", out / "gpu-loop.json")
        asyncio.run(loop.measure(loop.WHOLE, folder, out, keep, rehearse=self.rehearse))

    def tensor(self) -> None:
        """An engine over two GPUs: its streams, and what becomes of them when it is killed."""
        shape, folder = "tiny" if self.rehearse else "qwen2-7b", self.work / "tensor"
        folder.mkdir(exist_ok=True)
        file = shapes.resource(
            shape, folder, fraction=100, replicas=1, cpu=self.rehearse, seats=8 if self.rehearse else 256,
            tensor=1 if self.rehearse else 2,
        )  # fmt: skip
        streams, tokens = (4, 24) if self.rehearse else (64, 500)
        asyncio.run(tensor.measure(file, streams, tokens, self.keep("tensor")))

    def answers(self) -> None:
        """Right answers while an engine is killed."""
        folder = self.work / "answers"
        folder.mkdir(exist_ok=True)
        asyncio.run(answers.measure(folder, self.keep("answers"), rehearse=self.rehearse))

    def sleep(self) -> None:
        """How long an engine takes to go to sleep and to wake."""
        shape = "tiny" if self.rehearse else "qwen2-7b"
        folder = self.work / "sleep"
        folder.mkdir(exist_ok=True)
        self.keep("sleep")(sleep.measure(shapes.write(shape, folder)))

    def asleep(self) -> None:
        """Replicas that sleep instead of being stopped, through the loop."""
        folder = self.work / "asleep"
        folder.mkdir(exist_ok=True)
        asyncio.run(asleep.measure(folder, self.keep("asleep"), rehearse=self.rehearse))


def main() -> int:
    """Run the stages; one that fails is reported and the others still run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/reasonscale-gpu"))
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    unknown = [s for s in args.stages if s not in STAGES]
    if unknown:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    bench, failed = Bench(args.out, args.work, args.rehearse), 0
    for stage in args.stages or STAGES:
        began = time.monotonic()
        try:
            getattr(bench, stage)()
            print(f"STAGE {stage} done after {time.monotonic() - began:.0f} s", flush=True)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"STAGE {stage} FAILED after {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
