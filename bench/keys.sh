#!/usr/bin/env bash
# How long other clients wait while one asks KEYS * of a million keys; see bench/README.md.
#
#   bench/keys.sh                             one node in memory, where all share a thread
#   bench/keys.sh --nodes 3                   a local cluster
#   bench/keys.sh --target 127.0.0.1:6379     a server that runs already, such as redis-server
#   bench/keys.sh --help                      every option
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
    *" --help "* | *" -h "* | *" --target "*) ;;
    *) cargo build --release --locked ;;
esac
exec python3 bench/keys.py --quorate "${CARGO_TARGET_DIR:-target}/release/quorate" "$@"
