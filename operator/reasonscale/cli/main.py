"""The command `reasonscale`."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
import traceback
from importlib import import_module
from typing import Final

from reasonscale.cli.checks import BadOption

# Of the commands that read resources: `-` is what comes in, as for kubectl.
STDIN: Final = "/dev/stdin"
READ_RESOURCES: Final = ("validate", "render", "plan", "up")

# Each command's function, imported when it is called: `validate` must not wait for an engine's imports.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("reasonscale.cli.up:up", "Serve models on this machine and scale them by their chain of thought."),
    "top": ("reasonscale.cli.top:top", "Watch what `up` serves: queued thought, KV cache, replicas, decisions."),
    "chat": ("reasonscale.cli.chat:chat", "Ask a model; its thinking is dimmed."),
    "validate": ("reasonscale.cli.validate:validate", "Check resources and show what would be chosen for them."),
    "load": ("reasonscale.cli.load:load", "Send load to an OpenAI endpoint, from a trace or a named workload."),
    "record": ("reasonscale.cli.record:record", "Make a trace, without content, from an access log."),
    "demo": ("reasonscale.cli.demo:demo", "The whole loop on the bundled model, in about ten minutes."),
    "profile": ("reasonscale.cli.profile:profile", "Fit a GPU's profile, and hold the engine model to measurements."),
    "simulate": (
        "reasonscale.cli.simulate:simulate",
        "Run a trace through a model of the fleet: which GPUs, which latency, by policy.",
    ),
    "plan": ("reasonscale.cli.plan:plan", "How many GPUs a resource needs, what a replica gives, and a trace on it."),
    "render": ("reasonscale.cli.render:render", "Print what resources become in a cluster, as manifests."),
    "operator": (
        "reasonscale.cli.operator:operator",
        "Watch ReasoningModels in a cluster, apply what they need, scale them.",
    ),
    "crds": ("reasonscale.cli.crds:crds", "Print the CustomResourceDefinition, or write it to a folder."),
    "version": ("reasonscale.cli.main:version", "Print the version."),
}


def version() -> int:
    """Print the version."""
    from reasonscale import __version__

    print(f"reasonscale {__version__}")
    return 0


def _help() -> str:
    from reasonscale import __version__

    width = max(map(len, COMMANDS))
    lines = [
        f"reasonscale {__version__}: serve reasoning models, scaled by the chain of thought still to come",
        "",
        "Commands:",
    ]
    lines += [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "`reasonscale COMMAND --help` tells more."])


def _run(name: str, arguments: list[str]) -> int:
    import cyclopts

    module, _, function = COMMANDS[name][0].partition(":")
    app = cyclopts.App(
        name=f"reasonscale {name}", help_flags=["--help", "-h"], version_flags=[], result_action="return_value"
    )
    app.default(getattr(import_module(module), function))
    if name in READ_RESOURCES:
        arguments = [STDIN if a == "-" else a for a in arguments]
    try:
        result = app(arguments, exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        return 2
    return result if isinstance(result, int) else 0


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code: 0 fine, 1 it failed, 2 wrong input, 130 interrupted."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        return version()
    name = argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"reasonscale: {name!r} is no command; {hint}", file=sys.stderr)
        return 2
    try:
        return _run(name, argv[1:])
    except BadOption as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="reasonscale-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(
            f"reasonscale: {type(error).__name__}: {error} (a fault of ours; the details are in {file.name})",
            file=sys.stderr,
        )
        return 1


def main() -> None:
    """Run as the console script."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
