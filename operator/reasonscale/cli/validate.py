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
    from reasonscale.api.load import base_of, load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource, notes
    from reasonscale.profiles.library import chosen_beside

    out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    if not files:
        err.print("validate: name at least one file, such as examples/micro-reasoner.yaml")
        return 2
    bad = False
    for file in files:
        try:
            folder = base_of(file)
            found = [(model, resolve(model, folder)) for model in load_models(file)]
            profiles = [chosen_beside(resolved, folder, cluster=True) for _, resolved in found]
        except InvalidResource as error:
            bad = True
            for problem in error.problems:
                err.print(f"{file}: {problem}", markup=False)
            continue
        for (model, resolved), profile in zip(found, profiles, strict=True):
            out.print(f"{file}: {model.metadata.name} is valid", markup=False)
            for line in resolved.as_lines():
                out.print("  " + line, markup=False)
            for note in [*notes(model), *([profile.note] if profile and profile.note else [])]:
                out.print("  note: " + note, markup=False)
    return 2 if bad else 0
