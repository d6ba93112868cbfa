#!/bin/sh
# In the guest: the tests, with each cgroup driver.
built=$(cat built-at)
mkdir -p "$(dirname "$built")"
ln -s "$PWD/longshore" "$built"
ln -s "$PWD/runc" /run/runc-new
export LONGSHORE_TEST_NEW_RUNC_DIR=/run/runc-new
# Emulated, a pod's life takes about as many times as long.
export LONGSHORE_TEST_PATIENCE=4
names=$(cat names)
failed=0
tests() {
    ./e2e --include-ignored "$@" || failed=1
}

export LONGSHORE_TEST_CGROUP_DRIVER=systemd
if [ -n "$names" ]; then
    # shellcheck disable=SC2086 # a list
    tests --test-threads 1 --nocapture $names
    exit $failed
fi
echo "=== AppArmor, one after the other"
tests --test-threads 1 vm::apparmor::
for LONGSHORE_TEST_CGROUP_DRIVER in systemd cgroupfs; do
    echo "=== cgroups by $LONGSHORE_TEST_CGROUP_DRIVER"
    tests --test-threads 2 --skip vm::apparmor:: vm:: core::
done
exit $failed
