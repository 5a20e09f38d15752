#!/usr/bin/env bash
# What durability and replication cost, beside redis-server and etcd; see bench/README.md.
#
#   bench/durable.sh                                everything, about ten minutes
#   bench/durable.sh --only writes,mset             parts of it
#   bench/durable.sh --only writes --redis-benchmark
#   bench/durable.sh --help                         every option
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
    *" --help "* | *" -h "*) ;;
    *)
        cargo build --release --locked
        # Only where there is an etcd to compare with.
        if command -v etcd > /dev/null; then
            cargo build --release --locked --manifest-path bench/etcd/Cargo.toml --target-dir bench/etcd/target
        fi
        ;;
esac
exec python3 bench/durable.py --quorate "${CARGO_TARGET_DIR:-target}/release/quorate" "$@"
