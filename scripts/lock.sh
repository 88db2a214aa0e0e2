#!/usr/bin/env bash
# Renews the hash-locked requirements files. They name no index.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: needs uv (pip install uv)" >&2; exit 1; }
common=(--generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet "$@")
uv pip compile pyproject.toml "${common[@]}" -o requirements/core.txt
uv pip compile pyproject.toml --extra dev "${common[@]}" \
  --override requirements/cpu-overrides.txt --excludes requirements/cpu-excludes.txt -o requirements/dev.txt
uv pip compile requirements/scan.in "${common[@]}" -o requirements/scan.txt
# What the engines' images hold: for CPU a part of the list above, in the same versions.
uv pip compile pyproject.toml --extra local "${common[@]}" -c requirements/dev.txt \
  --override requirements/cpu-overrides.txt --excludes requirements/cpu-excludes.txt -o requirements/engine-cpu.txt
uv pip compile pyproject.toml --extra gpu "${common[@]}" -o requirements/engine-gpu.txt
if grep -nE 'https?://' requirements/*.txt; then echo "lock: an address got into a lock file" >&2; exit 1; fi
echo "locked: $(grep -c == requirements/core.txt) packages for the operator, $(grep -c == requirements/dev.txt) for this machine"
