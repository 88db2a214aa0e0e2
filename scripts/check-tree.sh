#!/usr/bin/env bash
# Things that no linter looks for.
set -uo pipefail
cd "$(dirname "$0")/.."
bad=0
complain() { printf 'check-tree: %s\n' "$1" >&2; bad=1; }
[ ! -e operator/__init__.py ] || complain "operator/__init__.py shadows the standard library's operator: remove it"
for f in README.md CHANGELOG.md LICENSE CONTRIBUTING.md SECURITY.md .ci/run; do [ -s "$f" ] || complain "$f is missing or empty"; done
if git rev-parse --git-dir >/dev/null 2>&1; then
  lines=$(git grep -nIE 'https?://[^ ]*(simple/|files\.|packages/)' -- 'requirements/*' '*.toml' '*.lock'); [ -z "$lines" ] || complain "a package index's address: $lines"
  lines=$(git grep -nE 'pytest\.(mark\.)?(skip|xfail)|unittest\.skip' -- tests e2e); [ -z "$lines" ] || complain "skipped tests; deselect by marker instead: $lines"
  lines=$(git grep -nE '\b(TODO|FIXME|XXX|NotImplementedError)\b' -- operator charts e2e scripts ':!scripts/check-tree.sh'); [ -z "$lines" ] || complain "left open: $lines"
  big=$(git ls-files -z | xargs -0 -I{} find {} -maxdepth 0 -size +8M 2>/dev/null); [ -z "$big" ] || complain "files over 8 MB: $big"
fi
exit $bad
