#!/bin/sh
# Unpacks the containerd of one of Debian's suites into a cache folder, if it is not there
# or a day old, and prints the folder that it is in. Nothing is installed.
#
#   tests/fetch.sh SUITE
#
# LONGSHORE_TEST_CACHE: the folder.
set -eu
suite=$1
folder=${LONGSHORE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore}/$suite
mkdir -p "$folder"
# One at a time: tests run beside each other.
exec 9>"$folder/lock"
flock 9

# apt with a list, a state and a cache of its own for one suite.
apt_of_suite() {
    apt-get -qq \
        -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State="$folder/state" -o Dir::State::status="$folder/state/status" \
        -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root "$@" >&2
}

# Once a day at most: sid moves.
is_fresh() {
    [ -x "$folder/root/usr/bin/containerd" ] && [ -n "$(find "$folder/root" -maxdepth 0 -mtime -1)" ]
}

fetch() {
    # The mirror that this machine uses, if it is a Debian.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 2>/dev/null | head -n 1)
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
    : >"$folder/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "${mirror:-http://deb.debian.org/debian} $suite main" >"$folder/sources.list"
    (cd "$folder" && rm -f ./*.deb && apt_of_suite update && apt_of_suite download containerd) || return
    rm -rf "$folder/root"
    dpkg-deb --extract "$folder"/containerd_*.deb "$folder/root"
    rm -f "$folder"/*.deb
    touch "$folder/root"
}

if ! is_fresh && ! fetch && ! [ -x "$folder/root/usr/bin/containerd" ]; then
    echo "containerd of $suite cannot be fetched" >&2
    exit 1
fi
echo "$folder/root/usr/bin"
