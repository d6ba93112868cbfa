#!/bin/sh
# Prints the folder of a runc that has id-mapped mounts, as pods with user namespaces need
# them: this machine's, if it has them; else that of Debian's sid, unpacked into a cache
# folder with the C library that it was linked against.
#
# LONGSHORE_TEST_RUNC_DIR: a folder that is looked at first; LONGSHORE_TEST_CACHE: the cache.
set -eu
cd "$(dirname "$0")"
. ./debian.sh

has_id_mapped_mounts() {
    "$1" features 2>/dev/null | tr -d ' \n\t' | grep -q '"idmap":{"enabled":true'
}

PATH=${LONGSHORE_TEST_RUNC_DIR:+$LONGSHORE_TEST_RUNC_DIR:}$PATH:/usr/local/sbin:/usr/sbin:/sbin
found=$(command -v runc || true)
if [ -n "$found" ] && has_id_mapped_mounts "$found"; then
    dirname "$found"
    exit
fi
# Tests ask for it at the same time.
mkdir -p "$cache"
exec 9>"$cache/runc.lock"
flock 9
unpack alone sid runc "runc libc6 libseccomp2" >&2
folder=$cache/runc-new
if [ ! -x "$folder/runc" ] || [ "$cache/sid/runc" -nt "$folder/runc" ]; then
    root=$cache/sid/runc
    for loader in "$root"/usr/lib/*/ld-linux*.so.* "$root"/usr/lib*/ld-linux*.so.*; do
        [ -e "$loader" ] && break
    done
    libraries=$(dirname "$(find "$root/usr/lib" -name libseccomp.so.2 | head -n 1)")
    mkdir -p "$folder"
    cp "$(find "$root/usr/sbin" "$root/usr/bin" -name runc 2>/dev/null | head -n 1)" "$folder/runc.new"
    patchelf --set-interpreter "$loader" --set-rpath "$libraries" "$folder/runc.new"
    mv "$folder/runc.new" "$folder/runc"
    # mv keeps the time of the package; what counts is when it was unpacked.
    touch "$folder/runc"
fi
if ! has_id_mapped_mounts "$folder/runc"; then
    echo "the runc of Debian's sid does not run here, or has no id-mapped mounts" >&2
    exit 1
fi
echo "$folder"
