#!/usr/bin/env bash
# The tests on a real engine, each file that starts a Ray of its own in a process of its own: a process has one Ray.
set -uo pipefail
cd "$(dirname "$0")/.."
own_ray=(tests/engine/test_loop_real.py tests/engine/test_lifecycle_real.py tests/engine/test_victims_real.py tests/engine/test_node_loss_real.py tests/engine/test_zero_real.py tests/engine/test_overload_real.py tests/engine/test_bytes_real.py tests/engine/test_lanes_real.py tests/engine/test_up_fails_in_words.py tests/engine/test_what_restarts_what_real.py)
run() { .venv/bin/python -m pytest "$@"; }
again=$(mktemp); trap 'rm -f "$again"' EXIT
# On a machine that others share, an engine can be starved for minutes. What failed runs once more, alone, and says so.
twice() {
  local code=0
  run "$@" || code=$?
  [ "$code" = 0 ] && return 0
  # 1: tests failed, and pytest has noted which. Else it was killed or did not get that far, and noted nothing.
  if [ "$code" != 1 ]; then printf '\ntest-engine: pytest ended with %s, not by a failed test; nothing runs again\n' "$code"; return 1; fi
  printf '\ntest-engine: the tests above failed; running those once more, alone\n'
  : > "$again"
  run --last-failed --last-failed-no-failures none --junitxml="$again" "$@" || return 1
  if ! grep -q ' tests="[1-9]' "$again"; then printf 'test-engine: no test ran again; the failure stands\n'; return 1; fi
}
ignore=(); for f in "${own_ray[@]}"; do ignore+=(--ignore "$f"); done
status=0
twice tests/engine "${ignore[@]}" || status=1
for f in "${own_ray[@]}"; do if [ -f "$f" ]; then twice "$f" || status=1; fi; done
exit $status
