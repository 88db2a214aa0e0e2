"""The commands of the README's quick start on Kubernetes: what the tests run is what a reader is told to run."""

from __future__ import annotations

import re

from e2e.cluster.target import ROOT


def commands(part: str) -> list[str]:
    """Return the commands of a marked block of the README, each with its continued lines."""
    found = re.search(rf"<!-- e2e:{part} -->\n```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, f"README.md has no block marked e2e:{part}"
    lines = found[1].replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").partition("   #")[0].strip() for line in lines if line.startswith("$ ")]
