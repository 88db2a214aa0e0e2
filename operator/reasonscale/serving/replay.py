"""Goes on with a request that another engine began: its outputs come as that engine would have made them. Runs under Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

# Tokens made again are handed on in slices; parsers of tools may not like a slice that an engine would not make.
SLICE = 32


def end_ids(client: Any, params: Any) -> frozenset[int]:
    """Return the tokens at which the engine ends a request."""
    ends = set(params.stop_token_ids or ())
    if not params.ignore_eos:
        found = client.input_processor.generation_config_fields.get("eos_token_id")
        ends.update(found if isinstance(found, list) else [found] if found is not None else [])
        eos = client.get_tokenizer().eos_token_id
        ends.update([eos] if eos is not None else [])
    return frozenset(ends)


class Replay:
    """The text and the end of one output, whichever engine made which of its tokens."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], params: Any, rid: str) -> None:
        self._rid, self._prompt, self._params = rid, list(prompt_ids), params
        self._delta = params.output_kind == RequestOutputKind.DELTA
        seen = SimpleNamespace(request_id=rid, prompt_token_ids=self._prompt, sampling_params=params)
        self._text = IncrementalDetokenizer.from_new_request(tokenizer if params.detokenize else None, seen)
        self._ids: list[int] = []

    def output(
        self, ids: Sequence[int], finish: str | None, reason: int | str | None
    ) -> tuple[RequestOutput, list[int]]:
        """Return the next output and its tokens; it is the last where it is finished.

        A stop string may end it before its engine does, and within what came at once: an engine hands over several
        tokens together where its reader is slow, and what lies behind the stop was never asked for.
        """
        taken = list(ids)
        ends = finish == "stop" and isinstance(reason, int | None)
        for i, token in enumerate(taken):
            stop = self._text.update([token], ends and i + 1 == len(taken))
            if stop is not None:
                finish, reason, taken = "stop", stop, taken[: i + 1]
                break
        text = self._text.get_next_output_text(finish is not None, self._delta)
        self._ids.extend(taken)
        made = CompletionOutput(
            0, text, taken if self._delta else list(self._ids), None, None, finish_reason=finish, stop_reason=reason
        )
        return RequestOutput(self._rid, None, self._prompt, None, [made], finish is not None), taken


async def go_on(
    generate: Callable[..., AsyncGenerator[Any, None]], client: Any, prompt: Mapping[str, Any], params: Any, rid: str, made: Sequence[int],
    *, by_token: bool, on_tokens: Callable[[Sequence[int], str | None], None], **kwargs: Any,
) -> AsyncGenerator[Any, None]:  # fmt: skip
    """Yield the outputs of a request of which `made` exists, from its first token on.

    `on_tokens` is called with each new token ids and the reason of the end. The budget stays the original one: the
    engine counts the thinking tokens that stand in its prompt.
    """
    prompt_ids = list(prompt["prompt_token_ids"])
    replay = Replay(client.get_tokenizer(), prompt_ids, params, rid)
    delta = params.output_kind == RequestOutputKind.DELTA
    ends = end_ids(client, params)
    full = params.max_tokens is not None and len(made) >= params.max_tokens
    over = "stop" if made and made[-1] in ends and len(made) >= params.min_tokens else "length" if full else None
    step = 1 if by_token else SLICE
    for at in range(0, len(made), step):
        piece = made[at : at + step]
        last = at + step >= len(made)
        output, _ = replay.output(piece, over if last else None, None)
        ended = output.finished
        if ended:
            on_tokens((), over or "stop")
        if delta or ended:
            yield output
        if ended:
            return
    rest = params.clone()
    rest.output_kind, rest.detokenize, rest.stop = RequestOutputKind.DELTA, False, []
    rest.min_tokens = max(0, params.min_tokens - len(made))
    if params.max_tokens is not None:
        rest.max_tokens = params.max_tokens - len(made)
    whole = {**prompt, "prompt_token_ids": prompt_ids + list(made)}
    whole.pop("prompt", None)  # the text of what now is only a part
    async with aclosing(generate(whole, rest, rid, **kwargs)) as stream:
        async for found in stream:
            for part in found.outputs:
                output, taken = replay.output(part.token_ids, part.finish_reason, part.stop_reason)
                ended = output.finished
                output.num_cached_tokens = found.num_cached_tokens
                on_tokens(taken, output.outputs[0].finish_reason)
                if delta or ended:
                    yield output
                if ended:
                    return
