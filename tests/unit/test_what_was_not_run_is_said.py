"""CI's last lines name what a machine could not run; they are read from what the parts themselves print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = ("REASONSCALE_E2E_BIN", "REASONSCALE_KUBERAY_CRDS", "KUBECONFIG")


def summary(*logs: Path) -> list[str]:
    done = subprocess.run([ROOT / "scripts" / "not-run.sh", *logs], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_pytest_deselects_for_want_of_something_is_named_and_soak_tests_are_not(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in WITHOUT}
    command = [sys.executable, "-m", "pytest", "e2e", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=True)
    (tmp_path / "e2e").write_text(done.stdout)
    [line] = summary(tmp_path / "e2e")
    assert line.startswith("deselected ")
    assert " tests marked `cluster`: " in line
    (tmp_path / "test").write_text("deselected 7 tests marked `soak`: soak tests run under `make soak`\n12 passed\n")
    (tmp_path / "scan").write_text("scan: there is no helm: put it on PATH\n")
    assert summary(tmp_path / "test", tmp_path / "scan") == ["scan: there is no helm: put it on PATH"]


def test_a_run_of_everything_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "test").write_text("1000 passed in 80.00s\n")
    assert summary(tmp_path / "test") == []
