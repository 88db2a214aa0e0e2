"""`reasonscale validate FILE...`: is the resource right, and what would be chosen for it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def validate(*files: Path) -> int:
    """Check resources and show what the system would choose for them.

    Exit code 2 when one is refused.

    Parameters
    ----------
    files
        YAML files with ReasoningModels; `-` reads what is piped in.
    """
    from reasonscale.api.load import load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource, notes

    out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    if not files:
        err.print("validate: name at least one file, such as examples/micro-reasoner.yaml")
        return 2
    bad = False
    for file in files:
        try:
            models = load_models(file)
        except InvalidResource as error:
            bad = True
            for problem in error.problems:
                err.print(f"{file}: {problem}", markup=False)
            continue
        for model in models:
            out.print(f"{file}: {model.metadata.name} is valid", markup=False)
            for line in resolve(model, Path(file).parent).as_lines():
                out.print("  " + line, markup=False)
            for note in notes(model):
                out.print("  note: " + note, markup=False)
    return 2 if bad else 0
