#!/usr/bin/env bash
# Installs Debian packages where it may: scripts/apt.sh COMMAND PACKAGE... does nothing where COMMAND is there.
set -uo pipefail
command=$1; shift
if command -v "$command" >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then echo "apt: '$command' is missing and this is no Debian: install it by your own means ($*)" >&2; exit 1; fi
if [ "$(id -u)" != 0 ]; then echo "apt: '$command' is missing; as root: apt-get install $*" >&2; exit 1; fi
export DEBIAN_FRONTEND=noninteractive
for n in 1 2 3; do
  if { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >/tmp/reasonscale-apt.log 2>&1; then exit 0; fi
  sleep $((n * 5))
done
echo "apt: could not install $*; the last lines:" >&2; tail -n 5 /tmp/reasonscale-apt.log >&2; exit 1
