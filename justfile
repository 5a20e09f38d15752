# The README's commands by name.

# Three nodes in one process on loopback
run *args:
    cargo run --release -- {{args}}

# All tests
test *args:
    ./test.sh {{args}}

# What to run between two edits: all that is quick, and needs no process and no other build
quick:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    # The simulated clusters are 23 of 421 unit tests and take three quarters of their time.
    cargo test --locked --lib -- --skip simulation
    # As a test of cargo's it would have the crate built again, which it only reads.
    CARGO_MANIFEST_DIR="$PWD" rustc --edition 2024 --test -o target/tidy tests/tidy.rs
    target/tidy --quiet

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

# Functions of the store and the codecs, each by itself
micro *args:
    cargo bench --locked --bench micro -- {{args}}

# Beside redis-server, in turn
peers *args:
    bench/peers.sh {{args}}
