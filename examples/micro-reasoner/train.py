"""Trains the micro reasoner: a Qwen3 of 0.8 M parameters that adds and follows Collatz by a written-out chain.

    PYTHONPATH=operator python -m examples.micro-reasoner.train --out DIR --minutes 4        (or by its path)

Needs torch, transformers and tokenizers; uses a GPU where there is one. A third of what it sees is cut: the chain ends
at a random place, `</think>` follows, and the right answer is to be given all the same, so that a thinking budget
costs accuracy and not sense. Writes the model, train.log and eval.json (inputs never trained on).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "operator"))
from reasonscale.demo import tasks

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<think>", "</think>", "user", "assistant", "system"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}"
)
MAX_TOKENS = 2048


def make_tokenizer() -> tuple[PreTrainedTokenizerFast, Tokenizer, dict[str, int]]:
    """Return a tokenizer with one token for each character and for each marker."""
    chars = ["\n"] + [chr(c) for c in range(32, 127)]
    vocab = {token: i for i, token in enumerate(SPECIAL + WORDS + chars)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(SPECIAL)
    raw.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer, raw, vocab


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"


class Source:
    """Draws rows of (context, target) token ids; the context carries no loss."""

    def __init__(self, raw: Tokenizer, vocab: dict[str, int], rng: random.Random) -> None:
        self._ids = {c: i for c, i in vocab.items() if len(c) == 1}
        self._vocab, self._rng, self._raw = vocab, rng, raw
        self._cache: dict[str, list[int]] = {}
        train, self.held_out = tasks.collatz_split()
        self._collatz = sorted((tasks.collatz_task(n) for n in train), key=lambda t: len(t.chain))

    def encode(self, text: str) -> list[int]:
        return self._raw.encode(text, add_special_tokens=False).ids

    def plain(self, text: str) -> list[int]:
        return [self._ids[c] for c in text]

    def head(self, question: str) -> list[int]:
        start, user, assistant = (self._vocab[t] for t in ("<|im_start|>", "user", "assistant"))
        nl = self._ids["\n"]
        return [start, user, nl, *self.plain(question), self._vocab["<|im_end|>"], nl, start, assistant, nl, self._vocab["<think>"], nl]

    def row(self, task: tasks.Task, cut: bool) -> tuple[list[int], list[int]]:
        end, eos = self._vocab["</think>"], self._vocab["<|im_end|>"]
        answer = [*self.plain("\n\n" + task.answer), eos]
        if not cut:
            return self.head(task.question), [*self.plain(task.chain + "\n"), end, *answer]
        at = self._rng.randint(0, len(task.chain))
        if self._rng.random() < 0.15:  # thinking switched off: the template's own empty chain
            return [*self.head(task.question), *self.plain("\n"), end], answer
        return [*self.head(task.question), *self.plain(task.chain[:at]), end], answer

    def task(self, progress: float) -> tasks.Task:
        if self._rng.random() < 0.35:
            top = max(2, min(tasks.MAX_DIGITS, round(2 + 6 * progress / 0.3)))
            digits = self._rng.choices(range(1, top + 1), weights=[1 + i for i in range(top)])[0]
            return tasks.random_sum(self._rng, digits, held_out=False)
        reach = min(1.0, 0.15 + progress * 3)
        return self._collatz[min(len(self._collatz) - 1, int(self._rng.random() * reach * len(self._collatz)))]


def batches(source: Source, tokens: int, progress: float, pad: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw rows and pack those of like length together, so that little is padding."""
    rng = source._rng
    rows = sorted((source.row(source.task(progress), rng.random() < 0.33) for _ in range(1024)), key=lambda r: len(r[0]) + len(r[1]))
    out, group = [], []
    for row in rows:
        length = len(row[0]) + len(row[1])
        if group and (len(group) + 1) * length > tokens:
            out.append(pack(group, pad))
            group = []
        group.append(row)
    out.append(pack(group, pad))
    rng.shuffle(out)
    return out


def pack(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = -(-max(len(p) + len(y) for p, y in rows) // 64) * 64
    x = torch.full((len(rows), width), pad)
    t = torch.full((len(rows), width), -100)
    for i, (p, y) in enumerate(rows):
        x[i, : len(p) + len(y)] = torch.tensor(p + y)
        t[i, len(p) : len(p) + len(y)] = torch.tensor(y)
    return x, t


def train(model: Qwen3ForCausalLM, source: Source, pad: int, args: argparse.Namespace, device: str, log: object) -> None:
    import queue
    import threading

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    ready: queue.Queue = queue.Queue(maxsize=64)
    started, stop = time.time(), threading.Event()
    spent = lambda: min(1.0, (time.time() - started) / (args.minutes * 60))

    def draw(seed: int) -> None:
        mine = Source(source._raw, source._vocab, random.Random(seed))
        while not stop.is_set():
            for batch in batches(mine, args.tokens, spent(), pad):
                while not stop.is_set():
                    try:
                        ready.put(batch, timeout=0.2)
                        break
                    except queue.Full:
                        continue

    threads = [threading.Thread(target=draw, args=(i + 10,), daemon=True) for i in range(args.drawers)]
    for thread in threads:
        thread.start()
    step, seen, mean = 0, 0, 0.0
    while (progress := spent()) < 1:
        x, t = (tensor.to(device, non_blocking=True) for tensor in ready.get())
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=x).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), t[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + x.numel()
        if step % 100 == 0:
            mean = loss.item()
            print(f"{step} steps {time.time() - started:.0f} s {seen / 1e6:.1f} M tokens loss {mean:.4f}", file=log, flush=True)
    stop.set()


@torch.no_grad()
def evaluate(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, source: Source, device: str) -> dict[str, object]:
    """Greedy answers on inputs never trained on, by skill and by how much of the chain was allowed."""
    rng = random.Random(7)
    sets = {
        "sum": [tasks.random_sum(rng, d, held_out=True) for d in range(2, tasks.MAX_DIGITS + 1) for _ in range(16)],
        "collatz": [tasks.collatz_task(n) for n in source.held_out],
    }
    tokenizer.padding_side = "left"
    report: dict[str, object] = {}
    for skill, items in sets.items():
        for cut in (None, 0, 100):
            contexts = [prompt(t.question) + ("" if cut is None else t.chain[:cut] + "</think>") for t in items]
            batch = tokenizer(contexts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
            out = model.generate(**batch, max_new_tokens=1400 if cut is None else 16, do_sample=False)
            texts = [tokenizer.decode(r[batch.input_ids.shape[1] :]).split("<|im_end|>")[0] for r in out]
            right = [t.split("</think>")[-1].strip() == item.answer for t, item in zip(texts, items, strict=True)]
            lengths = [len(t.split("</think>")[0]) for t in texts]
            name = skill if cut is None else f"{skill}, chain cut after {cut} tokens"
            report[name] = {"n": len(items), "accuracy": round(sum(right) / len(right), 4)}
            if cut is None:
                report[name] |= {"chain_tokens_mean": round(sum(lengths) / len(lengths)), "chain_tokens_max": max(lengths)}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="examples/micro-reasoner")
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--drawers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, raw, vocab = make_tokenizer()
    pad, eos = vocab["<|endoftext|>"], vocab["<|im_end|>"]
    config = Qwen3Config(
        vocab_size=len(vocab), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=MAX_TOKENS, tie_word_embeddings=True,
        eos_token_id=eos, pad_token_id=pad, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(device)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.log").open("w") as log:
        name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(f"on {name}, torch {torch.__version__}, {sum(p.numel() for p in model.parameters())} parameters, {args.minutes} minutes", file=log)
        source = Source(raw, vocab, random.Random(args.seed))
        train(model, source, pad, args, device, log)
        model.generation_config.eos_token_id = eos
        model.generation_config.pad_token_id = pad
        model.generation_config.do_sample = False
        model.float().save_pretrained(out)
        tokenizer.save_pretrained(out)
        report = evaluate(model.eval(), tokenizer, source, device)
        print(json.dumps(report, indent=1), file=log)
    (out / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    print((out / "train.log").read_text()[-2500:])


if __name__ == "__main__":
    main()
