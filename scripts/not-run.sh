#!/usr/bin/env bash
# Says what the logs of a run tell was not run: scripts/not-run.sh LOG... What takes too long for CI is left out: `make soak` is for it.
grep -hE '^(deselected [0-9]+ tests marked|scan: there is no helm)' "$@" | grep -v 'marked `soak`' | sort | uniq
exit 0
