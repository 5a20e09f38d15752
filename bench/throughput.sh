#!/usr/bin/env bash
# Throughput over time: a row a second in bench/results/throughput.csv, and a picture beside it.
#
#   bench/throughput.sh                                  a local cluster of three nodes, 10 s
#   bench/throughput.sh --duration 60s --pipeline 16     any option of `quorate --role bench`
#   bench/throughput.sh --target 10.0.0.7:7001           a server that runs already
#
# BASE=7000 chooses the local cluster's ports, as in `quorate --role local --port BASE`.
set -euo pipefail
cd "$(dirname "$0")/.."

base=${BASE:-7000}
ready_within=30 # seconds
results=bench/results
quorate=${CARGO_TARGET_DIR:-target}/release/quorate

# The status of GET /health, or nothing if nobody listens. Bash's own sockets, so that a clone
# needs no curl.
health() {
    local status=
    if { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null; then
        printf 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        read -r -t 2 _ status _ <&3 || true
        exec 3>&-
    fi
    printf '%s' "$status"
}

server=
stop_server() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_server() {
    "$quorate" --role local --port "$base" >"$results/server.log" 2>&1 &
    server=$!
    local node
    for node in 1 2 3; do
        until [ "$(health $((base + 200 + node)))" = 200 ]; do
            if ! kill -0 "$server" 2>/dev/null; then
                echo "the cluster did not start; $results/server.log ends:" >&2
                tail -n 5 "$results/server.log" >&2
                exit 1
            fi
            if [ "$SECONDS" -ge "$ready_by" ]; then
                echo "node $node is not ready after $ready_within s; see $results/server.log" >&2
                exit 1
            fi
            sleep 0.05 # between two questions; readiness is the answer, not the wait
        done
    done
}

mkdir -p "$results"
cargo build --release --locked

asks=(--prefill --mix get:45,set:45,multiput:10)
local_cluster=yes
for option in "$@"; do
    case $option in
        --target | --target=* | --host | --host=* | --port | --port=*) local_cluster=no ;;
        # Given twice, an option would be an error.
        --mix | --mix=*) asks=(--prefill) ;;
        -h | --help) exec "$quorate" --role bench --help ;;
    esac
done
if [ $local_cluster = yes ]; then
    ready_by=$((SECONDS + ready_within))
    start_server
    for node in 1 2 3; do
        asks+=(--target "127.0.0.1:$((base + node))")
    done
fi

"$quorate" --role bench "${asks[@]}" \
    --csv "$results/throughput.csv" --svg "$results/throughput.svg" "$@"
echo "seconds in $results/throughput.csv, drawn in $results/throughput.svg"
