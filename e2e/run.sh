#!/usr/bin/env bash
# make e2e: gets what a node on this machine needs, where it may, and runs the tests; they say themselves what is missing.
set -uo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
. scripts/kube-env.sh
if [ -n "${REASONSCALE_E2E_BIN:-}" ] && [ "$(id -u)" = 0 ]; then e2e/packages.sh || true; fi
# Paths of one's own instead of the whole folder: e2e/run.sh e2e/test_c_modes.py
paths=(e2e); for argument in "$@"; do case $argument in e2e/*) paths=() ;; esac; done
.venv/bin/python -m pytest "${paths[@]}" -s --durations=0 "$@"
