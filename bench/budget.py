"""Accuracy and tokens against the thinking budget, on the bundled model in a real vLLM.

    python -m bench.budget [--each 100] [--out bench/results/budget.json] [--plot docs/img/budget.png]

Every question was kept from training. vLLM itself ends the chain when the budget is spent (`thinking_token_budget`);
`off` is thinking switched off by the chat template. Decoding is greedy, so the same machine gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from reasonscale.demo import tasks

BUDGETS = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
UNLIMITED, OFF = "none", "off"  # no budget; no thought
COLORS = {"sum": "#0f766e", "collatz": "#7c3aed"}
TITLES = {"sum": "column addition (2 to 8 digits)", "collatz": "Collatz counts (n up to 999)"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What one skill made of one budget."""

    skill: str
    budget: int | str
    questions: int
    right: int
    thought_tokens_mean: float
    cut: int  # chains that the budget ended

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the accuracy."""
        n, p, z = self.questions, self.accuracy, 1.96
        middle, half = (p + z * z / (2 * n)), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def questions(each: int) -> list[tasks.Task]:
    """Return so many questions of each skill, none of which was trained on."""
    rng = random.Random(7)
    sums = [tasks.random_sum(rng, 2 + i % (tasks.MAX_DIGITS - 1), held_out=True) for i in range(each)]
    return sums + [tasks.collatz_task(n) for n in tasks.collatz_split()[1][:each]]


def measure(model: Path, items: list[tasks.Task], budgets: list[int | str]) -> list[Cell]:
    """Ask every question under every budget, all in one engine."""
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(model), dtype="float32", max_model_len=2048, max_num_seqs=128, max_num_batched_tokens=4096, enforce_eager=True,
        reasoning_parser="qwen3", enable_prefix_caching=False, disable_log_stats=True, seed=0,
    )  # fmt: skip
    tokenizer = engine.get_tokenizer()
    end = tokenizer.convert_tokens_to_ids("</think>")
    prompts, params, keys = [], [], []
    for budget in budgets:
        for item in items:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": item.question}], tokenize=False, add_generation_prompt=True,
                enable_thinking=budget != OFF,
            )  # fmt: skip
            # Token ids: a text prompt would get special tokens a second time from some tokenizers.
            prompts.append({"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)})
            params.append(
                SamplingParams(
                    temperature=0, max_tokens=1900, thinking_token_budget=budget if isinstance(budget, int) else None
                )
            )
            keys.append((item, budget))
    outputs = engine.generate(prompts, params, use_tqdm=sys.stderr.isatty())
    found: dict[tuple[str, int | str], list[tuple[bool, int, bool]]] = {}
    for (item, budget), output in zip(keys, outputs, strict=True):
        ids = list(output.outputs[0].token_ids)
        thought = 0 if budget == OFF else (ids.index(end) if end in ids else len(ids))
        answer = tokenizer.decode(ids[thought + (0 if budget == OFF else 1) :], skip_special_tokens=True).strip()
        # The line break that the template puts after <think> counts as a token of thought, too.
        cut = isinstance(budget, int) and thought + 1 >= budget
        found.setdefault((item.skill, budget), []).append((answer == item.answer, thought, cut))
    return [
        Cell(
            skill, budget, len(rows), sum(r for r, _, _ in rows), sum(t for _, t, _ in rows) / len(rows),
            sum(c for _, _, c in rows),
        )
        for (skill, budget), rows in found.items()
    ]  # fmt: skip


def draw(cells: list[Cell], path: Path) -> None:
    """Draw accuracy above tokens, both against the budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    labels: list[int | str] = [OFF, *BUDGETS, UNLIMITED]
    at = {budget: i for i, budget in enumerate(labels)}
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8.6, 6.4), sharex=True, height_ratios=[3, 2], layout="constrained"
    )
    for skill, color in COLORS.items():
        mine = sorted((c for c in cells if c.skill == skill), key=lambda c: at[c.budget])
        x = [at[c.budget] for c in mine]
        top.fill_between(
            x,
            [100 * c.interval()[0] for c in mine],
            [100 * c.interval()[1] for c in mine],
            color=color,
            alpha=0.14,
            lw=0,
        )
        top.plot(x, [100 * c.accuracy for c in mine], "o-", color=color, label=TITLES[skill], ms=5)
        bottom.plot(x, [c.thought_tokens_mean for c in mine], "o-", color=color, ms=5)
    top.set(
        ylabel="right answers, %",
        ylim=(-3, 103),
        title="More thought, better answers: the bundled model under thinking budgets",
    )
    top.legend(frameon=False, loc="upper left")
    bottom.set(
        ylabel="tokens thought, mean",
        xlabel="thinking budget, tokens (the steps are not even; off: no thinking, none: no budget)",
    )
    bottom.set_xticks(range(len(labels)), [str(v) for v in labels])
    for axis in (top, bottom):
        axis.grid(axis="y", color="#e4e9ee")
        axis.spines[["top", "right"]].set_visible(False)
    n = min(c.questions for c in cells)
    figure.supxlabel(
        f"{n} questions a skill and budget, none trained on; bands: 95 % intervals", fontsize=8.5, color="#667788"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _report(cells: list[Cell], each: int, took_s: float) -> dict[str, Any]:
    import vllm

    rows = [
        {
            "skill": c.skill, "budget": c.budget, "questions": c.questions, "accuracy": round(c.accuracy, 4),
            "accuracy_95": [round(v, 4) for v in c.interval()], "thought_tokens_mean": round(c.thought_tokens_mean, 1), "cut": c.cut,
        }
        for c in cells
    ]  # fmt: skip
    return {
        "command": f"python -m bench.budget --each {each}", "took_s": round(took_s), "python": platform.python_version(),
        "vllm": vllm.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows,
    }  # fmt: skip


def main() -> int:
    """Measure, write, draw; fails if thought does not help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=100, help="questions a skill, at most 100")
    parser.add_argument("--model", type=Path, default=Path("examples/micro-reasoner"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/budget.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/img/budget.png"))
    args = parser.parse_args()
    if not 1 <= args.each <= tasks.HELD_OUT_COLLATZ:
        parser.error(f"--each was {args.each}; it must lie between 1 and {tasks.HELD_OUT_COLLATZ}")
    started = time.monotonic()
    cells = measure(args.model, questions(args.each), [OFF, *BUDGETS, UNLIMITED])
    report = _report(cells, args.each, time.monotonic() - started)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for c in cells:
        print(
            f"{c.skill:<8} budget {c.budget!s:>9}: {100 * c.accuracy:5.1f} % right, {c.thought_tokens_mean:6.0f} tokens thought, {c.cut} cut"
        )
    draw(cells, args.plot)
    print(f"written to {args.out} and {args.plot}")
    best = {c.skill: c.accuracy for c in cells if c.budget == UNLIMITED}
    poor = [skill for skill, share in best.items() if share < 0.95]
    if poor:
        print(f"budget: {', '.join(poor)}: fewer than 95 % right without a budget", file=sys.stderr)
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
