#!/bin/sh
# Runs the script FOLDER/run in the guest, with all of FOLDER beside it, as root: prints
# what it prints, and exits as it does. The guest is as new each time.
#
#   tests/vm/in-guest.sh FOLDER
#
# LONGSHORE_VM: the folder of the guest, which is made if there is none;
# LONGSHORE_VM_LIMIT: how many seconds it may take (7200).
set -eu
here=$(dirname "$(readlink -f "$0")")
. "$here/qemu.sh"
share=$1
guest=${LONGSHORE_VM:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore/vm}
limit=${LONGSHORE_VM_LIMIT:-7200}

"$here/../setup.sh" vm
"$here/guest.sh" "$guest"
work=$(mktemp -d)
clean() {
    if [ -e "$work/pid" ]; then
        kill "$(cat "$work/pid")" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

tar --create --file "$work/share" --directory "$share" .
if [ "$(stat --format %s "$work/share")" -gt "$(numfmt --from iec "$SHARE_SIZE")" ]; then
    echo "$share is larger than $SHARE_SIZE" >&2
    exit 1
fi
truncate --size "$SHARE_SIZE" "$work/share"
mkfifo "$work/input"
# Open for writing as well: the guest waits for the time, and no end of the input is told.
exec 3<>"$work/input"
date +%s >&3
(exec_qemu "$guest" "$guest/disk,snapshot=on" "$work/share" stdio,signal=off "$work/console" \
    -pidfile "$work/pid" -incoming "exec:cat '$guest/memory'" <&3 2>"$work/log") |
    timeout --foreground "$limit" awk '
        /^exit status [0-9]+$/ { status = $3; exit }
        { print; fflush() }
        END { exit status == "" ? 125 : status }' && status=0 || status=$?
case $status in
    124) echo "the guest takes longer than $limit seconds" >&2 ;;
    125) echo "the guest ended without an exit status; the end of its log:" >&2 ;;
esac
case $status in 124 | 125) tail -n 20 "$work/console" "$work/log" >&2 ;; esac
exit "$status"
