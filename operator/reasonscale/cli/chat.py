"""`reasonscale chat`: a question, the chain dimmed, then the answer."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console

from reasonscale.api.scaling_spec import EFFORT_NAMES
from reasonscale.cli.checks import endpoint, number, one_of


def chat(
    prompt: str | None = None, *, url: str = "http://127.0.0.1:8000", model: str | None = None, effort: str | None = None,
    budget: int | None = None,
) -> int:  # fmt: skip
    """Ask a model. Without a prompt, on a terminal, ask again and again.

    Parameters
    ----------
    prompt
        The question.
    url
        The endpoint, such as http://127.0.0.1:8000.
    model
        The model's name; the endpoint's only one when absent.
    effort
        none, minimal, low, medium, high, xhigh or max.
    budget
        Thinking tokens instead.
    """
    import httpx
    import openai

    url = endpoint("--url", url)
    if effort is not None:
        one_of("--effort", effort, EFFORT_NAMES)
    if budget is not None:
        number("--budget", budget, 0)
    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    # No proxy of the environment: the endpoint is the one that was named.
    http = httpx.Client(trust_env=False, follow_redirects=True, timeout=httpx.Timeout(1800, connect=30))
    extra: dict[str, Any] = {} if budget is None else {"thinking_token_budget": budget}
    if effort is not None:
        extra["reasoning_effort"] = effort
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        if model is None:
            names = [m.id for m in client.models.list()]
            if len(names) != 1:
                err.print(f"chat: say which model with --model: {', '.join(names)}")
                return 2
            model = names[0]
        if prompt is not None:
            return _ask(client, model, prompt, extra, out)
        if not sys.stdin.isatty():
            return _ask(client, model, sys.stdin.read().strip(), extra, out)
        out.print(f"{model} at {url}; an empty line ends")
        while line := input("> ").strip():
            _ask(client, model, line, extra, out)
        return 0
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError)):
            out.print()
            err.print(f"chat: the answer broke off: {str(error.__cause__) or type(error.__cause__).__name__}")
            return 1
        err.print(f"chat: nothing answers at {url}; start it with: reasonscale up FILE")
        return 1
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        err.print(f"chat: {error.status_code}: {body.get('message', error.message)}")
        return 1
    except (openai.OpenAIError, httpx.HTTPError, ValueError) as error:  # in the middle of a stream
        out.print()
        err.print(f"chat: the answer broke off: {str(error) or type(error).__name__}")
        return 1
    except EOFError:
        return 0


def _ask(client: Any, model: str, prompt: str, extra: dict[str, Any], out: Console) -> int:
    started, first, first_answer = time.monotonic(), None, None
    usage: Any = None
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            thought = getattr(choice.delta, "reasoning", None) or getattr(choice.delta, "reasoning_content", None)
            passed = time.monotonic() - started
            if thought:
                first = passed if first is None else first
                out.print(thought, style="dim", end="")
            if choice.delta.content:
                first = passed if first is None else first
                first_answer = passed if first_answer is None else first_answer
                out.print(choice.delta.content, style="bold", end="")
    out.print()
    if usage is not None:
        details = usage.completion_tokens_details
        thinking = details.reasoning_tokens if details is not None and details.reasoning_tokens else 0
        spent = time.monotonic() - started
        times = f"first token {first or 0:.2f} s, first of the answer {first_answer or 0:.2f} s, in all {spent:.2f} s"
        out.print(f"{thinking} tokens of thought, {usage.completion_tokens - thinking} of answer; {times}", style="dim")
    return 0
