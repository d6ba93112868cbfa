#!/bin/sh
# The end-to-end tests on several containerds: this machine's, and those of Debian's
# trixie (1.7) and sid (2.x), which are unpacked into a cache folder, not installed.
#
#   tests/matrix.sh          everything that talks to a containerd
#   tests/matrix.sh core     only what every CRI server must show
#
# LONGSHORE_TEST_CACHE: the folder; LONGSHORE_TEST_SUITES: "machine trixie sid";
# LONGSHORE_TEST_THREADS: how many tests at a time (3).
set -eu
cd "$(dirname "$0")/.."
part=${1:-}
cache=${LONGSHORE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore}
threads=${LONGSHORE_TEST_THREADS:-3}

# apt with a list, a state and a cache of its own for one suite.
apt_of() {
    folder=$cache/$1
    shift
    apt-get -qq \
        -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State="$folder/state" -o Dir::State::status="$folder/state/status" \
        -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root "$@"
}

# Unpacks the containerd of a suite, once a day at most: sid moves.
fetch() {
    suite=$1
    folder=$cache/$suite
    if [ -x "$folder/root/usr/bin/containerd" ] && [ -n "$(find "$folder/root" -maxdepth 0 -mtime -1)" ]; then
        return
    fi
    # The mirror that this machine uses, if it is a Debian.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 2>/dev/null | head -n 1)
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
    : >"$folder/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "${mirror:-http://deb.debian.org/debian} $suite main" >"$folder/sources.list"
    if ! (cd "$folder" && rm -f ./*.deb && apt_of "$suite" update && apt_of "$suite" download containerd); then
        [ -x "$folder/root/usr/bin/containerd" ] && return
        echo "containerd of $suite cannot be fetched" >&2
        return 1
    fi
    rm -rf "$folder/root"
    dpkg-deb --extract "$folder"/containerd_*.deb "$folder/root"
    rm -f "$folder"/*.deb
    touch "$folder/root"
}

tests/setup.sh
# Once, so that the versions differ in nothing else.
cargo test --locked --no-run --test e2e --test image

failed=
for suite in ${LONGSHORE_TEST_SUITES:-machine trixie sid}; do
    unset LONGSHORE_TEST_CONTAINERD
    binary=containerd
    if [ "$suite" != machine ]; then
        fetch "$suite" || { failed="$failed $suite"; continue; }
        export LONGSHORE_TEST_CONTAINERD="$cache/$suite/root/usr/bin"
        binary=$LONGSHORE_TEST_CONTAINERD/containerd
    fi
    echo "=== $suite: $("$binary" --version)"
    case $part in
        '') cargo test --locked --no-fail-fast --test image --test e2e -- --test-threads "$threads" ;;
        *) cargo test --locked --test e2e -- --test-threads "$threads" "$part::" ;;
    esac || failed="$failed $suite"
done
[ -z "$failed" ] || { echo "failed on:$failed" >&2; exit 1; }
