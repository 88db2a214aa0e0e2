#!/usr/bin/env bash
# Scans manifests for unsafe settings, with checkov in an environment of its own: its hundred packages pin versions that ours don't.
set -euo pipefail
cd "$(dirname "$0")/.."
helm=${HELM:-${REASONSCALE_E2E_BIN:+$REASONSCALE_E2E_BIN/helm}}
[ -n "$helm" ] || helm=$(command -v helm || true)
[ -x "$helm" ] || { echo "scan: there is no helm: put it on PATH, or its folder into REASONSCALE_E2E_BIN"; exit 0; }
want=$(sha256sum requirements/scan.txt | cut -c1-16)
if [ "$(cat .venv-scan/stamp 2>/dev/null)" != "$want" ]; then
  .venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-scan
  .venv/bin/uv pip sync --quiet --python .venv-scan/bin/python --require-hashes --link-mode=copy requirements/scan.txt
  echo "$want" > .venv-scan/stamp
fi
PYTHONPATH=operator .venv/bin/python scripts/scan.py .venv-scan/bin/checkov "$helm"
