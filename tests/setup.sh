#!/bin/sh
# Installs what the build and the tests need and this machine lacks, from the distribution.
# Does nothing where all is there; starts nothing, and stops nothing.
#
#   tests/setup.sh       for the machine's own tests
#   tests/setup.sh vm    for those in a guest, too
set -eu

# A program or file, and the package that has it.
WANTED='
/usr/bin/cc                                      gcc
/usr/include/stdlib.h                            libc6-dev
/usr/bin/protoc                                  protobuf-compiler
/usr/bin/setpriv                                 util-linux
/usr/bin/openssl                                 openssl
/usr/bin/busybox                                 busybox-static
/usr/bin/docker-registry                         docker-registry
containerd                                       containerd
runc                                             runc
crun                                             crun
ip                                               iproute2
iptables                                         iptables
/usr/lib/cni/bridge                              containernetworking-plugins
/usr/share/keyrings/debian-archive-keyring.gpg   debian-archive-keyring
patchelf                                         patchelf
mke2fs                                           e2fsprogs
mount                                            mount
'

if [ "${1:-}" = vm ]; then
    WANTED="$WANTED
qemu-system-x86_64    qemu-system-x86
mmdebstrap            mmdebstrap
strip                 binutils
"
fi

missing=$(echo "$WANTED" | while read -r what package; do
    [ -n "$what" ] || continue
    case $what in
        /*) [ -e "$what" ] || echo "$package" ;;
        # Administrators' programs are not in everybody's PATH.
        *) PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$what" >/dev/null || echo "$package" ;;
    esac
done)

# The tests put busybox into images without any library.
if [ -e /usr/bin/busybox ] && ldd /usr/bin/busybox >/dev/null 2>&1; then
    missing="$missing busybox-static"
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing, and only root can install it:" $missing >&2
    exit 1
fi
echo "installing:" $missing
export DEBIAN_FRONTEND=noninteractive
# A package must not start its service: the tests start what they need themselves.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list
apt-get install -y -qq --no-install-recommends $missing
