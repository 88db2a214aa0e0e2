"""A light client in processes of its own: streams requests at their times, and notes when tokens came.

`httpx` takes 0.2 ms of a core for each event, which at 256 streams would measure the client.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TEXT = re.compile(rb'"(?:reasoning|reasoning_content|content)":\s*"[^"]')
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_FINISH = re.compile(rb'"finish_reason":\s*"(\w+)"')


@dataclass(slots=True)
class Seen:
    """What came of one request; unix seconds."""

    due: float
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    reads: int = 0
    longest_pause: float = 0.0
    finish: str = ""
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first - self.due

    @property
    def tpot_s(self) -> float:
        return (self.last - self.first) / max(1, self.tokens - 1)


async def one(host: str, port: int, due: float, body: dict[str, Any]) -> Seen:
    """Send one request when it is due and read it to its end."""
    seen = Seen(due)
    await asyncio.sleep(max(0.0, due - time.time()))
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    tail = b""
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=2**20)
        seen.sent = time.time()
        writer.write(head.encode() + data)
        while True:
            piece = await reader.read(2**18)
            if not piece:
                break
            now = time.time()
            seen.reads += 1
            if _TEXT.search(piece):
                if seen.first:
                    seen.longest_pause = max(seen.longest_pause, now - seen.last)
                seen.first, seen.last = seen.first or now, now
            tail = (tail + piece)[-4000:]
            if b"data: [DONE]" in tail:
                break
        writer.close()
    except (OSError, asyncio.IncompleteReadError) as error:
        seen.error = f"{type(error).__name__}: {error}"
        return seen
    tokens, finish = _TOKENS.findall(tail), _FINISH.findall(tail)
    seen.tokens, seen.finish = int(tokens[-1]) if tokens else 0, finish[-1].decode() if finish else ""
    if b"data: [DONE]" not in tail or not tokens:
        seen.error = tail[:300].decode(errors="replace") or "nothing came"
    return seen


async def _play(host: str, port: int, plan: Sequence[tuple[float, dict[str, Any]]]) -> list[Seen]:
    return list(await asyncio.gather(*(one(host, port, due, body) for due, body in plan)))


def main() -> None:
    """Read {host, port, plan} from standard input, play it, and print what was seen."""
    asked = json.load(sys.stdin)
    found = asyncio.run(_play(asked["host"], asked["port"], asked["plan"]))
    json.dump([asdict(s) for s in found], sys.stdout)


async def play(url: str, plan: Sequence[tuple[float, dict[str, Any]]], processes: int = 4) -> list[Seen]:
    """Play a plan of (unix time, body) from several processes; return what was seen in the plan's order."""
    host, port = url.removeprefix("http://").split(":")

    async def share(part: int) -> list[Seen]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.gpu.client", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        asked = {"host": host, "port": int(port), "plan": list(plan[part::processes])}
        out, _ = await process.communicate(json.dumps(asked).encode())
        return [Seen(**row) for row in json.loads(out)]

    parts = await asyncio.gather(*(share(p) for p in range(processes)))
    found: list[Seen] = [Seen(0.0)] * len(plan)
    for p, part in enumerate(parts):
        found[p::processes] = part
    return found


def body(model: str, output: int, *, prompt: int = 100, stops: bool = False, eos: int = 2) -> dict[str, Any]:
    """Return a request that makes just `output` tokens; `stops`: it ends of itself there, not by max_tokens."""
    words = ("0123456789abcdefghijklmnopqrstuvwxyz " * (1 + prompt // 37))[:prompt]
    out: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": words}], "temperature": 0.6, "top_p": 0.95,
    }  # fmt: skip
    if stops:
        # The end mark is forbidden before, and all but certain after.
        return out | {"min_tokens": output - 1, "max_tokens": output + 64, "logit_bias": {str(eos): 100}}
    # The stack gives every request a budget; so does the client, to be paired with an engine that is bare.
    budget = {"thinking_token_budget": output - 16} if output > 32 else {}
    return out | budget | {"min_tokens": output, "max_tokens": output, "ignore_eos": True}


if __name__ == "__main__":
    main()
