#!/bin/sh
# In the guest: the tests, with the cgroup driver that the file `driver` names.
built=$(cat built-at)
mkdir -p "$(dirname "$built")"
ln -s "$PWD/longshore" "$built"
ln -s "$PWD/runc" /run/runc-new
export LONGSHORE_TEST_NEW_RUNC_DIR=/run/runc-new
# Emulated, a pod's life takes about as many times as long.
export LONGSHORE_TEST_PATIENCE=4
LONGSHORE_TEST_CGROUP_DRIVER=$(cat driver)
export LONGSHORE_TEST_CGROUP_DRIVER
names=$(cat names)
failed=0
tests() {
    ./e2e --include-ignored "$@" || failed=1
}

if [ -n "$names" ]; then
    # shellcheck disable=SC2086 # a list
    tests --test-threads 1 --nocapture $names
    exit $failed
fi
# These load and unload the node's profile, and set its clock, one after the other. The cgroup
# driver is nothing to them.
if [ "$LONGSHORE_TEST_CGROUP_DRIVER" = systemd ]; then
    tests --test-threads 1 vm::apparmor:: vm::clock::
fi
tests --test-threads 2 --skip vm::apparmor:: --skip vm::clock:: vm:: core::
exit $failed
