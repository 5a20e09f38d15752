#!/usr/bin/env bash
# Quorate beside redis-server, in turn, as ratios with their spread; see bench/README.md.
#
#   bench/peers.sh                            everything, about a quarter of an hour
#   bench/peers.sh --only redis --rounds 3    a part of it, sooner
#   bench/peers.sh --calibrate                redis-server beside itself: how far to trust a ratio
#   bench/peers.sh --help                     every option
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
    *" --help "* | *" -h "*) ;;
    *) cargo build --release --locked ;;
esac
exec python3 bench/peers.py --quorate "${CARGO_TARGET_DIR:-target}/release/quorate" "$@"
