"""The import path of the Serve application. It looks at the versions before anything of Ray's and vLLM's insides is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasonscale.serving.runtime import check

if TYPE_CHECKING:
    from ray import serve


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application; IncompatibleRuntime where the image has a Ray or a vLLM that this code was not made for."""
    check()
    from reasonscale.serving.application import build as made

    return made(args)
