#!/bin/sh
# End-to-end tests on a node with cgroup v2 alone, systemd as PID 1 and AppArmor in force:
# in a guest, whatever this machine is.
#
#   tests/vm/run.sh           what suite.sh chooses
#   tests/vm/run.sh NAME…     only tests whose path holds a NAME
set -eu
cd "$(dirname "$0")/../.."
tests/setup.sh vm

share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
trap 'exit 130' INT TERM
cargo test --locked --test e2e --no-run --message-format json >"$share/messages"
executable() {
    sed -n "/\"name\":\"$1\"/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$share/messages" | tail -n 1
}
# Without what debuggers want they are a tenth as large.
strip --strip-debug -o "$share/e2e" "$(executable e2e)"
strip --strip-debug -o "$share/longshore" "$(executable longshore)"
# The tests look for the server where it was built.
executable longshore >"$share/built-at"
rm "$share/messages"
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
tests/vm/in-guest.sh "$share"
