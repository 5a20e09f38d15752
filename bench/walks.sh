#!/usr/bin/env bash
# How many instructions an operation takes on each node, and what a key takes in memory; see
# bench/README.md.
#
#   bench/walks.sh                                  everything, about sixteen minutes
#   bench/walks.sh --walk get --walk set            parts of it
#   bench/walks.sh --binary /some/other/quorate     another build
#   bench/walks.sh --help                           every option
set -euo pipefail
cd "$(dirname "$0")/.."

# On a memory file system a sync takes no time, so it puts no chance into the order of events.
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then
    export TMPDIR=/dev/shm
fi
exec python3 bench/walks.py "$@"
