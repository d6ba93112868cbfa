#!/bin/sh
# The end-to-end tests on several containerds: this machine's, and those of Debian's
# trixie (1.7) and sid (2.x), which are unpacked into a cache folder, not installed.
#
#   tests/matrix.sh          everything that talks to a containerd
#   tests/matrix.sh core     only what every CRI server must show
#
# LONGSHORE_TEST_CACHE: the folder; LONGSHORE_TEST_SUITES: "machine trixie sid";
# LONGSHORE_TEST_THREADS: how many tests at a time (3).
set -eu
cd "$(dirname "$0")/.."
part=${1:-}
threads=${LONGSHORE_TEST_THREADS:-3}

tests/setup.sh
# Once, so that the versions differ in nothing else.
cargo test --locked --no-run --test e2e --test image

failed=
for suite in ${LONGSHORE_TEST_SUITES:-machine trixie sid}; do
    unset LONGSHORE_TEST_CONTAINERD
    binary=containerd
    if [ "$suite" != machine ]; then
        LONGSHORE_TEST_CONTAINERD=$(tests/fetch-containerd.sh "$suite") || { failed="$failed $suite"; continue; }
        export LONGSHORE_TEST_CONTAINERD
        binary=$LONGSHORE_TEST_CONTAINERD/containerd
    fi
    echo "=== $suite: $("$binary" --version)"
    case $part in
        '') cargo test --locked --no-fail-fast --test image --test e2e -- --test-threads "$threads" ;;
        *) cargo test --locked --test e2e -- --test-threads "$threads" "$part::" ;;
    esac || failed="$failed $suite"
done
[ -z "$failed" ] || { echo "failed on:$failed" >&2; exit 1; }
