#!/bin/sh
# Unpacks the containerd of one of Debian's suites into a cache folder, if it is not there
# or a day old, and prints the folder that it is in. Nothing is installed.
#
#   tests/fetch-containerd.sh SUITE
#
# LONGSHORE_TEST_CACHE: the folder.
set -eu
cd "$(dirname "$0")"
. ./debian.sh
# Tests ask for it at the same time.
mkdir -p "$cache"
exec 9>"$cache/containerd.lock"
flock 9
unpack alone "$1" root containerd >&2
echo "$cache/$1/root/usr/bin"
