#!/usr/bin/env bash
# The tests on a real engine, each file that starts a Ray of its own in a process of its own: a process has one Ray.
set -uo pipefail
cd "$(dirname "$0")/.."
own_ray=(tests/engine/test_loop_real.py tests/engine/test_up_fails_in_words.py)
run() { .venv/bin/python -m pytest "$@"; }
# On a machine that others share, an engine can be starved for minutes. What failed runs once more, alone, and says so.
twice() {
  run "$@" && return 0
  printf '\ntest-engine: the tests above failed; running those once more, alone\n'
  run --last-failed --last-failed-no-failures none "$@"
}
ignore=(); for f in "${own_ray[@]}"; do ignore+=(--ignore "$f"); done
status=0
twice tests/engine "${ignore[@]}" || status=1
for f in "${own_ray[@]}"; do if [ -f "$f" ]; then twice "$f" || status=1; fi; done
exit $status
