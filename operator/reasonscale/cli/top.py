"""`reasonscale top`: what `up` serves, live."""

from __future__ import annotations

import time

from rich.console import Console

from reasonscale.cli.checks import endpoint


def top(*, url: str = "http://127.0.0.1:8787", once: bool = False) -> int:
    """Watch the models that `reasonscale up` serves: queued thought, KV cache, replicas, the last decision in words.

    Parameters
    ----------
    url
        The status address that `up` prints.
    once
        Print once and stop; also when this is no terminal.
    """
    import httpx
    from rich.live import Live

    url = endpoint("--url", url)
    from reasonscale.local.status import plain, view

    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

    def read() -> list[dict[str, object]]:
        response = httpx.get(f"{url}/status", timeout=5, trust_env=False)
        response.raise_for_status()
        models: list[dict[str, object]] = response.json()
        return models

    try:
        models = read()
        if once or not out.is_terminal:
            for m in models:
                out.print(plain(m))
                out.print(f"  {m['message']}")
            return 0
        with Live(console=out, refresh_per_second=2) as screen:
            while True:
                screen.update(view(read(), f"reasonscale  {url}", []))
                time.sleep(1)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        err.print(f"top: nothing answers at {url} ({type(error).__name__}); start it with: reasonscale up FILE")
        return 1
