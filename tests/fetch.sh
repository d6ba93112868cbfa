#!/bin/sh
# Unpacks the containerd of one of Debian's suites into a cache folder, if it is not there
# or a day old, and prints the folder that it is in. Nothing is installed.
#
#   tests/fetch.sh SUITE
#
# LONGSHORE_TEST_CACHE: the folder.
set -eu
suite=$1
cd "$(dirname "$0")"
. ./debian.sh
unpack "$suite" root containerd >&2
echo "$cache/$suite/root/usr/bin"
