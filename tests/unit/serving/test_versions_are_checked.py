"""An image with another Ray or vLLM is refused by name before anything of theirs is touched."""

from __future__ import annotations

import pytest

from reasonscale.controller.causes import cause_of
from reasonscale.render.context import RAY_VERSION
from reasonscale.serving import runtime
from reasonscale.serving.app import build


@pytest.mark.parametrize(
    ("ray", "vllm", "said"),
    [
        ("2.60.0", "0.26.0", None),
        ("2.60.1", "0.32.0+cpu", None),
        ("2.6.0", "0.32.0", "Ray 2.6.0, supported is 2.60"),
        ("2.61.0", "0.32.0", "Ray 2.61.0, supported is 2.60"),
        ("2.60.0", "0.25.1", "vLLM 0.25.1, supported is 0.26 to 0.32"),
        ("2.60.0", "0.33.0", "vLLM 0.33.0, supported is 0.26 to 0.32"),
        ("2.60.0", None, "vLLM is missing, supported is 0.26 to 0.32"),
        (None, "nightly", "Ray is missing, supported is 2.60; vLLM nightly, supported is 0.26 to 0.32"),
    ],
)
def test_what_was_found_and_what_is_supported_is_named(ray: str | None, vllm: str | None, said: str | None) -> None:
    found = runtime.problem_of(ray, vllm)
    assert found == (f"the image has {said}: name another in spec.engine.image" if said else None)


def test_what_is_rendered_is_what_is_supported() -> None:
    assert RAY_VERSION.startswith(f"{runtime.RAY}.")


def test_the_application_is_not_built_and_the_condition_has_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"ray": "2.48.0", "vllm": "0.10.0"}
    monkeypatch.setattr(runtime.metadata, "version", lambda name: versions[name])
    with pytest.raises(runtime.IncompatibleRuntime) as refused:
        build({"models": []})
    traceback = f"Traceback (most recent call last):\n  File x\nreasonscale.serving.runtime.IncompatibleRuntime: {refused.value}\n"
    told = {
        "status": {
            "pendingServiceStatus": {"applicationStatuses": {"m": {"status": "DEPLOY_FAILED", "message": traceback}}}
        }
    }
    cause = cause_of(told, [], 900.0, 0.0)
    assert cause is not None
    assert cause.reason == "IncompatibleRuntime"
    assert cause.message == (
        "the image has Ray 2.48.0, supported is 2.60; vLLM 0.10.0, supported is 0.26 to 0.32: name another in spec.engine.image"
    )
