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
# In the background, so that a signal is heeded at once.
(exec_qemu "$limit" "$guest" "$guest/disk,snapshot=on" "$work/share" stdio,signal=off "$work/console" \
    -pidfile "$work/pid" -incoming "exec:cat '$guest/memory'" <&3 2>"$work/log") |
    while IFS= read -r line; do
        case $line in
            "exit status "*) echo "${line#exit status }" >"$work/status" ;;
            *) printf '%s\n' "$line" ;;
        esac
    done &
wait $!
if [ ! -e "$work/status" ]; then
    tail -n 20 "$work/console" "$work/log" >&2
    echo "the guest has ended without an exit status, or it took longer than $limit seconds" >&2
    exit 1
fi
exit "$(cat "$work/status")"
