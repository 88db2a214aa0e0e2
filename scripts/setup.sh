#!/usr/bin/env bash
# Makes .venv from the hash-locked list, once per list. Prints what it does and what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
unset PYTHONDONTWRITEBYTECODE  # every engine would compile its imports again: 139 s to start instead of 59

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "this is $(uname -s) on $(uname -m); the CPU build of vLLM exists for Linux on x86_64 alone. For a cluster, see docs/kubernetes.md."
python=""
for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || die "needs Python 3.11, 3.12 or 3.13 (found: $(python3 --version 2>&1 || echo none)). Set PYTHON=/path/to/python."
command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || die "needs a C compiler (cc), which vLLM calls when an engine starts. On Debian: apt-get install gcc libc6-dev."

want=$({ cat requirements/dev.txt pyproject.toml scripts/setup.sh; "$python" --version; pwd; } | sha256sum | cut -c1-16)
if [ "$(cat .venv/stamp 2>/dev/null)" = "$want" ]; then exit 0; fi

free_gb=$(df -Pk . | awk 'NR==2 {print int($4/1048576)}')
[ "$free_gb" -ge 8 ] || die "needs 8 GB of free disk here for Ray, PyTorch and vLLM; $free_gb GB are free."
started=$(date +%s)
say "Python environment in .venv with $($python --version): Ray, PyTorch and vLLM for CPU, about 3 GB to fetch, 1 to 5 minutes"
rm -rf .venv
"$python" -m venv .venv || die "python -m venv failed; on Debian: apt-get install python3-venv"
# An index answers late at times: three tries each, with a pause.
tries() { for n in 1 2 3; do "$@" && return 0; [ "$n" = 3 ] || { say "try $n failed, again in $((n * 10)) s"; sleep $((n * 10)); }; done; die "gave up after three tries: $*"; }
# One program to its end: a reader that leaves a pipe early kills its writer, and the set-up with it.
awk '/^[a-z]/ {in_uv = /^uv==/} in_uv' requirements/dev.txt > .venv/uv.txt
tries .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
say "installing $(grep -c == requirements/dev.txt) locked packages"
UV_HTTP_TIMEOUT=180 tries .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes --link-mode=copy requirements/dev.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
say "compiling bytecode"
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
echo "$want" > .venv/stamp
say "ready after $(( $(date +%s) - started )) s"
