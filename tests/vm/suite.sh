#!/bin/sh
# In the guest: the tests, with each cgroup driver.
built=$(cat built-at)
mkdir -p "$(dirname "$built")"
ln -s "$PWD/longshore" "$built"
# Emulated, a pod's life takes about as many times as long.
export LONGSHORE_TEST_PATIENCE=10
names=$(cat names)
failed=0
for LONGSHORE_TEST_CGROUP_DRIVER in systemd cgroupfs; do
    export LONGSHORE_TEST_CGROUP_DRIVER
    echo "=== cgroups by $LONGSHORE_TEST_CGROUP_DRIVER"
    # shellcheck disable=SC2086 # a list
    ./e2e --test-threads 2 --include-ignored ${names:-vm:: core::} || failed=1
done
exit $failed
