"""`reasonscale profile`: measure and fit a hardware profile, and hold the engine model to measured replays."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from reasonscale.cli.checks import output

if TYPE_CHECKING:
    from reasonscale.profiles.profile import Profile


def profile(
    action: Literal["measure", "fit", "validate"], file: Path, /, *, out: Path | None = None, profile: str | None = None,
    json: Path | None = None, dummy: bool = False, cpu: bool = False,
) -> int:  # fmt: skip
    """Measure this machine's GPU, fit a profile from measured step times, or compare the engine model with measured replays.

    Parameters
    ----------
    action
        `measure` runs an engine and times its steps; `fit` makes a profile of the file's sweep and prefill; `validate`
        replays every load@R in the file.
    file
        measure: the resource whose engine is to run. Else measurements, as docs/simulator.md describes them.
    out
        measure, fit: where to write the profile.
    profile
        validate: a shipped profile's name or a file; one fitted from the file's own sweep and prefill when absent.
    json
        measure: write the measurements to this file too; validate: the errors.
    dummy
        measure: random weights of the model's shape, which cost as much time; only its config.json has to be there.
    cpu
        measure: this machine's CPU instead of a GPU.
    """
    from reasonscale.profiles.profile import BadProfile

    output("--out", out, file)
    output("--json", json, file)
    console, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if action == "measure":
            from reasonscale.cli.measure import measure

            return measure(file, out, json, dummy, cpu, console, err)
        if action == "fit":
            return _fit(file, out, console)
        return _validate(file, profile, json, console)
    except BadProfile as error:
        err.print(f"profile: {error}", markup=False)
        return 2
    except OSError as error:
        err.print(f"profile: can't write {error.filename}: {error.strerror}", markup=False)
        return 1


def _fit(file: Path, out: Path | None, console: Console) -> int:
    from reasonscale.profiles.fit import fit
    from reasonscale.profiles.profile import BadProfile, dump, read_json

    if out is None:
        raise BadProfile("--out is missing; it must name the profile to write, such as my-gpu.json")
    made = fit(read_json(file), name=out.stem, where=str(file))
    out.write_text(dump(made), encoding="utf-8")
    console.print(said(out, made))
    return 0


def said(out: Path, made: Profile) -> str:
    """Return a profile in a line."""
    from reasonscale.profiles.prior import plane_of

    step = plane_of(made)
    return (
        f"{out}: {made.kv_tokens:,} tokens of KV cache; a step takes about {step.a * 1e3:.1f} ms + {step.b * 1e3:.3f} ms a"
        f" request + {step.c * 1e9:.1f} ns a token in the cache, {step.d * 1e6:.0f} us a prompt token"
    )


def _validate(file: Path, name: str | None, report: Path | None, console: Console) -> int:
    from reasonscale.profiles.fit import fit
    from reasonscale.profiles.library import load
    from reasonscale.profiles.profile import BadProfile, read_json
    from reasonscale.simulator.validation import compare, loads

    data = read_json(file)
    used = load(name) if name is not None else fit(data, name=file.stem, where=str(file))
    found = loads(data)
    if not found:
        raise BadProfile(
            f"{file}: holds no replay (`profile measure` plays none); validate needs one or more, named load@RATE (docs/simulator.md)"
        )
    errors = {key: asdict(compare(data[key], used, f"{file}: {key}")[0]) for key in found}
    console.print(f"{'load':<12}{'requests':>9}{'E2E':>8}{'p95':>8}{'TTFT':>8}{'p95':>8}{'TPOT':>8}{'p95':>8}")
    for key, row in errors.items():
        shares = "".join(f"{row[f'{m}_{q}_err']:>+8.1%}" for m in ("e2e", "ttft", "tpot") for q in ("mean", "p95"))
        console.print(f"{key:<12}{row['finished']:>9}{shares}", markup=False)
    if report is not None:
        report.write_text(json_text.dumps(errors, indent=1) + "\n", encoding="utf-8")
    return 0
