"""The script of the engine tests runs again what failed, and takes nothing for passed that did not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "test-engine.sh"
# As the real one: a folder of which nothing can run is no failure. `gone`: the second run deselects everything.
CONFTEST = """
import os
def pytest_collection_modifyitems(config, items):
    if os.path.exists("ran") and os.path.exists("gone"):
        items[:] = []
    open("ran", "a").write("x")
def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 5:
        session.exitstatus = 0
"""


def script(folder: Path, test: str) -> tuple[int, int, str]:
    """Run the script on one test's body; return its exit code, how often pytest ran, and the output."""
    for part in ("scripts", "tests/engine", ".venv/bin"):
        (folder / part).mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts" / "test-engine.sh")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "tests" / "engine" / "conftest.py").write_text(CONFTEST)
    (folder / "tests" / "engine" / "test_it.py").write_text(
        f"import os\nfrom pathlib import Path\ndef test_it():\n    {test}\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(["bash", str(folder / "scripts" / "test-engine.sh")], capture_output=True, text=True, env=env)
    return done.returncode, len((folder / "ran").read_text()), done.stdout


def test_what_passes_runs_once(tmp_path: Path) -> None:
    assert script(tmp_path, "pass")[:2] == (0, 1)


def test_what_fails_once_and_then_passes_has_passed(tmp_path: Path) -> None:
    assert script(tmp_path, "assert Path('ran').read_text() == 'xx'")[:2] == (0, 2)


def test_what_fails_twice_has_failed(tmp_path: Path) -> None:
    assert script(tmp_path, "assert False")[:2] == (1, 2)


@pytest.mark.parametrize("number", [9, 15])
def test_a_killed_run_has_failed_and_is_not_run_again(tmp_path: Path, number: int) -> None:
    code, runs, said = script(tmp_path, f"os.kill(os.getpid(), {number})")
    assert (code, runs) == (1, 1)
    assert "nothing runs again" in said


def test_a_second_run_of_no_test_is_a_failure(tmp_path: Path) -> None:
    code, runs, said = script(tmp_path, "Path('gone').touch(); assert False")
    assert (code, runs) == (1, 2)
    assert "no test ran again" in said
