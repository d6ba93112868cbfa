#!/bin/sh
# Makes the guest, unless it is there: Debian trixie, from packages alone, booted once and
# saved as it is then.
#
#   tests/vm/guest.sh FOLDER
#
# FOLDER gets: kernel, initrd, disk, and memory, all of the guest as saved; and made-of,
# by which an older guest is recognised.
set -eu
folder=$1
here=$(dirname "$(readlink -f "$0")")
. "$here/qemu.sh"
# What a node has, and what tests/e2e starts; AppArmor is in force where its package is.
packages=systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,apparmor,containerd,runc,\
containernetworking-plugins,iproute2,iptables,busybox-static,docker-registry
# Seconds that the boot may take; it takes a minute or two.
boot_limit=900

if [ "$(uname -m)" != x86_64 ]; then
    echo "the guest is for x86_64 machines only" >&2
    exit 1
fi
made_of=$(cat "$here/guest.sh" "$here/qemu.sh" "$here/agent.sh" "$here/agent.service" | sha256sum)
mkdir -p "$folder"
# One makes it, others wait.
exec 9>"$folder/lock"
flock 9
if [ -e "$folder/memory" ] && [ "$(cat "$folder/made-of")" = "$made_of" ]; then
    exit 0
fi
rm -f "$folder/made-of" "$folder/memory"
work=$(mktemp -d "$folder/work.XXXXXX")
machine=
clean() {
    [ -z "$machine" ] || kill "$machine" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

echo "making a guest of Debian trixie in $folder (some minutes)"
# The mirror that this machine uses, if it is a Debian.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 2>/dev/null | head -n 1)
if ! mmdebstrap --quiet --mode=root --variant=essential --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="upload $here/agent.sh /usr/local/sbin/agent" \
    --customize-hook="upload $here/agent.service /etc/systemd/system/agent.service" \
    --customize-hook='chmod 755 "$1/usr/local/sbin/agent"' \
    --customize-hook='systemctl --root="$1" enable agent' \
    --customize-hook='systemctl --root="$1" disable containerd docker-registry' \
    --customize-hook='echo guest >"$1/etc/hostname"' \
    trixie "$work/root" "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
cp "$work"/root/boot/vmlinuz-* "$folder/kernel"
cp "$work"/root/boot/initrd.img-* "$folder/initrd"
mke2fs -q -t ext4 -E lazy_itable_init=1 -d "$work/root" "$folder/disk" 4G
truncate --size "$SHARE_SIZE" "$work/share"

echo "booting it"
mkfifo "$work/monitor"
: >"$work/port"
(exec_qemu "$boot_limit" "$folder" "$folder/disk" "$work/share" "file,path=$work/port" "$work/console" \
    -monitor stdio <"$work/monitor" >"$work/log" 2>&1) &
machine=$!
exec 3>"$work/monitor"
until grep -q '^ready' "$work/port"; do
    if ! kill -0 "$machine" 2>/dev/null; then
        tail -n 30 "$work/console" "$work/log" >&2
        echo "the guest does not start, or takes longer than $boot_limit seconds" >&2
        exit 1
    fi
    sleep 1
done
# One after the other: the monitor takes the second when the first is done.
printf 'migrate "exec:cat >%s"\nquit\n' "$work/memory" >&3
exec 3>&-
wait "$machine"
machine=
mv "$work/memory" "$folder/memory"
echo "$made_of" >"$folder/made-of"
