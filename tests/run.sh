#!/bin/sh
# All tests, on this machine's containerd; nothing that runs here is touched.
#
#   tests/run.sh [NAME]   only tests whose path holds NAME
#
# LONGSHORE_TEST_THREADS: how many at a time (3). The variables that choose servers and
# versions stand in tests/e2e/harness/mod.rs.
set -eu
cd "$(dirname "$0")/.."
threads=${LONGSHORE_TEST_THREADS:-3}

tests/setup.sh
# Where tests look for them; here it may fail with a reason that is seen first.
tests/fetch-runc.sh >/dev/null
tests/fetch-containerd.sh sid >/dev/null
tests/fetch-chromium.sh >/dev/null
if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --locked --no-fail-fast --test-threads "$threads" "$@"
fi
# The longest last, so that the end of the output tells most.
others=$(for file in tests/*.rs tests/*/main.rs; do
    name=${file#tests/}
    name=${name%/main.rs}
    name=${name%.rs}
    [ "$name" = e2e ] || echo "--test $name"
done)
failed=
# shellcheck disable=SC2086 # a list
cargo test --locked --no-fail-fast --lib --bins $others -- --test-threads "$threads" "$@" || failed=1
cargo test --locked --test e2e -- --test-threads "$threads" "$@" || failed=1
[ -z "$failed" ]
