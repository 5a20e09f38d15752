# The README's commands by name.

# Three nodes in one process on loopback
run *args:
    cargo run --release -- {{args}}

# All tests
test *args:
    ./test.sh {{args}}

# What has to pass before a change is merged
ci:
    .ci/run

# Formats and lints
lint:
    cargo fmt
    cargo clippy --all-targets -- -D warnings

# Throughput over time, as CSV
bench *args:
    bench/throughput.sh {{args}}

# Beside redis-server, in turn
peers *args:
    bench/peers.sh {{args}}
