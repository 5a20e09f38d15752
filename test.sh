#!/usr/bin/env bash
# All tests: unit and property tests, the commit protocol with each of its rules broken on purpose,
# a cluster of real processes, the same dying at each step of a commit, and redis-py against it.
#
#   ./test.sh              everything
#   ./test.sh rust         without Python: unit, simulated and cluster tests
#   ./test.sh clients      redis-py only
#
# Nodes are killed, paused and cut off for some seconds a test; for five minutes each, and 20 kills of
# a leader timed, by
#
#   QUORATE_FAULT_SECONDS=300 QUORATE_FAULT_SEED=7 \
#       cargo test --test history --test cluster -- nemesis:: failover:: --nocapture --test-threads 1
#
# Needs cargo, redis-server 7.0 to be compared with and, for the clients, Python 3 with venv. Nothing
# is installed outside target/. Without redis-server the comparison is skipped, and says so; whatever
# else is missing fails.
set -euo pipefail
cd "$(dirname "$0")"

what=${1:-all}
case $what in
    all | rust | clients) ;;
    *)
        echo "usage: ./test.sh [all|rust|clients]" >&2
        exit 2
        ;;
esac

target=${CARGO_TARGET_DIR:-target}
step() { printf '\n== %s\n' "$*"; }

if [[ $what != clients ]]; then
    step "unit tests"
    cargo test --locked --lib --bins
    step "documentation examples"
    cargo test --locked --doc
    step "tidy, and the other tests that start no process"
    cargo test --locked --test tidy --test fuzz_corpus
    step "a cluster of processes"
    cargo test --locked --test cluster
    # With points in the binary, so this crate is built a second time; whatever is tested before and
    # after is tested without them.
    step "nodes that die at each step of a commit, of the log and of a snapshot"
    cargo test --locked --features failpoints --test cluster -- failpoints::
    step "recorded histories under faults, judged by linearizability checkers"
    cargo test --locked --test history
    step "20,000 commands side by side with redis-server"
    command -v redis-server >/dev/null || echo "SKIPPED: redis-server is not installed" >&2
    cargo test --locked --test differential
fi

if [[ $what != rust ]]; then
    step "redis-py"
    cargo build --locked
    python=${PYTHON:-python3}
    venv=$target/venv
    wanted=$(cat tests/clients/requirements.txt; "$python" --version)
    if [[ ! -x $venv/bin/python || $(cat "$venv/wanted" 2>/dev/null || true) != "$wanted" ]]; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --requirement tests/clients/requirements.txt
        printf '%s\n' "$wanted" >"$venv/wanted"
    fi
    binary=${QUORATE_BINARY:-$(cd "$target" && pwd)/debug/quorate}
    QUORATE_BINARY=$binary PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest -q tests/clients
fi

step "all tests passed"
