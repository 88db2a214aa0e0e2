"""`reasonscale crds`: the CustomResourceDefinition, generated from the models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonscale.cli.checks import BadOption


def crds(*, out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None) -> int:
    """Print the CustomResourceDefinition, or write it into a folder.

    Parameters
    ----------
    out
        Folder to write to; printed when absent.
    """
    from reasonscale.api.crd import FILE_NAME, as_yaml

    if out is None:
        print(as_yaml(), end="")
        return 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE_NAME).write_text(as_yaml())
    except OSError as error:
        raise BadOption(f"--out was {out}; it can't be written to: {error.strerror}") from None
    print(f"written to {out / FILE_NAME}")
    return 0
