#!/bin/sh
# In the guest: the tests, with systemd making the cgroups, and those of cgroups with the
# OCI runtime making them, too.
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
echo "=== cgroups by systemd"
tests --test-threads 2 --skip vm::apparmor:: vm:: core::
export LONGSHORE_TEST_CGROUP_DRIVER=cgroupfs
echo "=== cgroups by the OCI runtime: what has to do with them"
tests --test-threads 2 --skip vm::apparmor:: vm:: core::resources:: core::stats:: core::sandbox core::exit:: core::stop::
exit $failed
