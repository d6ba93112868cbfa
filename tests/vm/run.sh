#!/bin/sh
# End-to-end tests on a node with cgroup v2 alone, systemd as PID 1 and AppArmor in force:
# in a guest, whatever this machine is.
#
#   tests/vm/run.sh           what suite.sh chooses, with each cgroup driver: two guests at
#                             once, since the emulator of one keeps one core busy
#   tests/vm/run.sh NAME…     only tests whose path holds a NAME, with LONGSHORE_TEST_CGROUP_DRIVER
#                             (systemd)
set -eu
cd "$(dirname "$0")/../.."
tests/setup.sh vm

work=$(mktemp -d)
share=$work/systemd
mkdir "$share"
guests=
clean() {
    # Each ends its own guest.
    for guest in $guests; do kill "$guest" 2>/dev/null || true; done
    for guest in $guests; do wait "$guest" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
cargo test --locked --test e2e --no-run --message-format json >"$work/messages"
executable() {
    sed -n "/\"name\":\"$1\"/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$work/messages" | tail -n 1
}
# Without what debuggers want they are a tenth as large.
strip --strip-debug -o "$share/e2e" "$(executable e2e)"
strip --strip-debug -o "$share/longshore" "$(executable longshore)"
# The tests look for the server where it was built.
executable longshore >"$share/built-at"
cp tests/vm/suite.sh "$share/run"
# The guest's own has no id-mapped mounts. This one takes its libraries along.
runc=$(tests/fetch-runc.sh)/runc
mkdir "$share/runc"
cp "$runc" "$share/runc/runc"
if loader=$(patchelf --print-interpreter "$runc" 2>/dev/null); then
    for library in $(ldd "$runc" | grep -o '/[^ ]*' | sort -u); do
        cp --dereference "$library" "$share/runc/"
    done
    patchelf --set-interpreter "/run/runc-new/$(basename "$loader")" --set-rpath /run/runc-new "$share/runc/runc"
fi
echo "$*" >"$share/names"
if [ $# -gt 0 ]; then
    echo "${LONGSHORE_TEST_CGROUP_DRIVER:-systemd}" >"$share/driver"
    tests/vm/in-guest.sh "$share"
    exit
fi
# Made before the two of them want it.
tests/vm/guest.sh "${LONGSHORE_VM:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore/vm}"
cp --recursive --link "$share" "$work/cgroupfs"
for driver in systemd cgroupfs; do
    echo "$driver" >"$work/$driver/driver"
    mkfifo "$work/$driver.lines"
    sed --unbuffered "s/^/$driver: /" <"$work/$driver.lines" &
    tests/vm/in-guest.sh "$work/$driver" >"$work/$driver.lines" 2>&1 &
    guests="$guests $!"
done
failed=0
for guest in $guests; do
    wait "$guest" || failed=1
done
guests=
wait
exit $failed
