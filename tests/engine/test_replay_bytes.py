"""A chain is cut inside a character, inside a stop string, inside a tool's JSON: vLLM's own detokenizer makes it whole.

Tokens are single bytes, so that there is a cut inside each character; the bundled model's tokens are whole ones.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation

pytestmark = pytest.mark.engine
TEXTS = {
    "characters of two, three and four bytes": "né 漢字 😀 ok",
    "a tool's call": '{"name": "add", "arguments": {"note": "größer 😀", "a": [1, 2, {"b": "\\u00e9"}]}}',
}
END = 256


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes, and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=vocab | {"<end>": END}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")


def params(stop: Sequence[str] = (), keep: bool = False) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=1000, stop=list(stop), include_stop_str_in_output=keep, output_kind=RequestOutputKind.DELTA
    )  # fmt: skip


class Engine:
    """Makes the tokens it was told to, so many an output; it goes on after what stands in its prompt."""

    def __init__(self, tokenizer: Any, prompt: list[int], ids: list[int], at_once: int) -> None:
        self._prompt, self._ids, self._at_once = prompt, ids, at_once
        self.input_processor = SimpleNamespace(generation_config_fields={})
        self.get_tokenizer = lambda: tokenizer

    async def generate(self, prompt: Any, params: Any, rid: str, **kwargs: Any) -> AsyncIterator[Any]:
        at = len(prompt["prompt_token_ids"]) - len(self._prompt)
        assert list(prompt["prompt_token_ids"]) == self._prompt + self._ids[:at]
        for i in range(at, len(self._ids), self._at_once):
            last = i + self._at_once >= len(self._ids)
            part = SimpleNamespace(
                token_ids=self._ids[i : i + self._at_once], finish_reason="stop" if last else None, stop_reason=None
            )
            yield SimpleNamespace(outputs=[part], num_cached_tokens=0)


async def heard(
    tokenizer: Any, ids: list[int], asked: Any, cut: int | None, by_token: bool, at_once: int = 1
) -> tuple[str, int, int]:
    """Return what a client gets, how often it ended, and its tokens, where the first engine is lost after `cut` of them.

    The engine that takes over hands over `at_once` tokens together, as a real one does where its reader is slow.
    """
    from reasonscale.serving.replay import go_on

    prompt = tokenizer.encode("question: ")
    kept, text, ends, tokens = Continuation(None), "", 0, 0
    for lost in [False] if cut is None else [True, False]:
        engine = Engine(tokenizer, prompt, ids, 1 if lost else at_once)
        fresh: list[int] = []
        tokens = 0
        made = list(kept.kept)
        # The first engine's outputs too are made by the replay, of nothing: it is vLLM's detokenizer all the same.
        outputs = go_on(
            engine.generate, engine, {"prompt_token_ids": prompt}, asked, "r", made, by_token=by_token,
            on_tokens=lambda new, finish, fresh=fresh: fresh.extend(new),
        )  # fmt: skip
        async for output in outputs:
            part = output.outputs[0]
            tokens += len(part.token_ids)
            data = {"created": 1, "choices": [{"delta": {"content": part.text}, "finish_reason": part.finish_reason}]}
            kind, event, said = events.rewrite_event(f"data: {json.dumps(data)}\n\n", ("reasoning",), False, 0, 1)
            found = kept.take((kind, event, list(fresh), said))
            fresh.clear()
            if found is not None and found[1]:
                choice = json.loads(found[1][6:])["choices"][0]
                text, ends = text + choice["delta"]["content"], ends + (choice["finish_reason"] is not None)
            if lost and len(kept.ids) >= (cut or 0):
                break
        await outputs.aclose()
        kept.restart()
    return text, ends, tokens


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_cut_at_any_byte_gives_the_same_text(tokenizer: Any, text: str, by_token: bool) -> None:
    ids = [*tokenizer.encode(text), END]
    assert len(ids) > len(text) + 1, "no character of several tokens"
    assert await heard(tokenizer, ids, params(), None, by_token) == (text, 1, len(ids))
    for cut in range(1, len(ids)):
        assert await heard(tokenizer, ids, params(), cut, by_token) == (text, 1, len(ids)), cut


@pytest.mark.parametrize("at_once", [1, 7])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_stop_string_across_the_cut_stops_where_it_would(tokenizer: Any, keep: bool, at_once: int) -> None:
    text = "first 漢字 then 漢END more"
    ids = [*tokenizer.encode(text), END]
    asked = params(["漢END"], keep)
    want = await heard(tokenizer, ids, asked, None, False)
    counted = len(tokenizer.encode("first 漢字 then 漢END"))
    assert want == ("first 漢字 then " + ("漢END" if keep else ""), 1, counted)
    for cut in range(1, counted):
        assert await heard(tokenizer, ids, asked, cut, False, at_once) == want, cut
