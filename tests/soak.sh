#!/bin/sh
# Random kubelet-like work with random faults (tests/e2e/soak), and the figures of it.
#
# LONGSHORE_SOAK_SECONDS (3600), LONGSHORE_SOAK_PODS (99), LONGSHORE_SOAK_SEED (chance; it is
# printed first), LONGSHORE_SOAK_ROUND (a round of the seed that comes again and again);
# LONGSHORE_SOAK_LOGS: a folder for the logs.
# LONGSHORE_TEST_CONTAINERD chooses another containerd than this machine's.
set -eu
cd "$(dirname "$0")/.."

tests/setup.sh
LONGSHORE_SOAK_SECONDS=${LONGSHORE_SOAK_SECONDS:-3600}
LONGSHORE_SOAK_PODS=${LONGSHORE_SOAK_PODS:-99}
export LONGSHORE_SOAK_SECONDS LONGSHORE_SOAK_PODS
exec cargo test --locked --test e2e -- --nocapture soak::random_work
