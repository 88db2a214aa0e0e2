#!/usr/bin/env bash
# make e2e: gets what a node on this machine needs, where it may, and runs the tests; they say themselves what is missing.
set -uo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
if [ -z "${REASONSCALE_E2E_BIN:-}" ] && [ -f ../shared/k8s/unpack.sh ]; then
  REASONSCALE_E2E_BIN=$(mktemp -d)/bin
  trap 'rm -rf "$(dirname "$REASONSCALE_E2E_BIN")"' EXIT
  bash ../shared/k8s/unpack.sh "$REASONSCALE_E2E_BIN" >/dev/null && export REASONSCALE_E2E_BIN
fi
crds=../shared/k8s/kuberay-crds
if [ -z "${REASONSCALE_KUBERAY_CRDS:-}" ] && [ -d "$crds" ]; then REASONSCALE_KUBERAY_CRDS=$(realpath "$crds"); export REASONSCALE_KUBERAY_CRDS; fi
if [ -n "${REASONSCALE_E2E_BIN:-}" ] && [ "$(id -u)" = 0 ]; then e2e/packages.sh || true; fi
# Paths of one's own instead of the whole folder: e2e/run.sh e2e/test_c_modes.py
paths=(e2e); for argument in "$@"; do case $argument in e2e/*) paths=() ;; esac; done
.venv/bin/python -m pytest "${paths[@]}" -s --durations=0 "$@"
