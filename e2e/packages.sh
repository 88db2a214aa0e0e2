#!/usr/bin/env bash
# The Debian packages that a node on this machine needs. As root, else it says what to install.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
need() { scripts/apt.sh "$@" || status=1; }
need containerd containerd
need runc runc
need /usr/lib/cni/bridge containernetworking-plugins
need iptables iptables
need conntrack conntrack
need socat socat
need debootstrap debootstrap
need prometheus prometheus
need openssl openssl
need ip iproute2
exit $status
