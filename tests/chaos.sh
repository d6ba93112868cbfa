#!/bin/sh
# Every step of every call that changes something is cut off in each way (tests/e2e/chaos),
# on Debian's containerd 1.7 and 2.x; prints a line for each call, and the whole as a table.
#
# LONGSHORE_TEST_SUITES: "trixie sid"; LONGSHORE_TEST_THREADS: how many calls at a time (3).
set -eu
cd "$(dirname "$0")/.."
threads=${LONGSHORE_TEST_THREADS:-3}

tests/setup.sh
cargo test --locked --no-run --test e2e
export LONGSHORE_TEST_CHAOS=${LONGSHORE_TEST_CHAOS:-all}
table=$(mktemp)
trap 'rm -f "$table"' EXIT
failed=
for suite in ${LONGSHORE_TEST_SUITES:-trixie sid}; do
    LONGSHORE_TEST_CONTAINERD=$(tests/fetch-containerd.sh "$suite")
    export LONGSHORE_TEST_CONTAINERD
    "$LONGSHORE_TEST_CONTAINERD/containerd" --version | tee -a "$table"
    # A pipe has the status of its end: the table says what failed.
    cargo test --locked --test e2e -- --test-threads "$threads" --nocapture chaos:: 2>&1 |
        awk '{ print | all; fflush(all) } match($0, /chaos [A-Z].*/) { print substr($0, RSTART) }' \
            all='cat >&2' >>"$table"
done
echo "=== points tried"
cat "$table"
grep -q '; ok$' "$table" || failed=1
if grep -q 'FAILED$' "$table"; then failed=1; fi
lines=$(grep -c '^chaos ' "$table" || true)
[ "$lines" -eq "$((11 * $(set -- ${LONGSHORE_TEST_SUITES:-trixie sid}; echo $#)))" ] || failed=1
[ -z "$failed" ]
