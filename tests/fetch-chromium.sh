#!/bin/sh
# Prints the program of a Chromium: this machine's, if it has one; else that of Debian's
# trixie, unpacked into a cache folder with all that it needs. A snap, as Ubuntu has it, sees
# nothing of what tests have in their folders, and is none.
#
# LONGSHORE_TEST_CACHE: the cache.
set -eu
cd "$(dirname "$0")"
. ./debian.sh

found=$(command -v chromium || true)
case $(readlink -f "$found") in
    '' | */snap | /snap/*) ;;
    *)
        echo "$found"
        exit
        ;;
esac
# Tests ask for it at the same time.
mkdir -p "$cache"
exec 9>"$cache/chromium.lock"
flock 9
days=30
unpack with_dependencies trixie chromium chromium >&2
root=$cache/trixie/chromium
program=$root/chromium
if [ ! -x "$program" ]; then
    for loader in "$root"/usr/lib/*-linux-gnu/ld-linux*.so.*; do
        [ -e "$loader" ] && break
    done
    libraries=$(dirname "$loader")
    patchelf --set-interpreter "$loader" "$root/usr/lib/chromium/chromium"
    # It does not work without fonts, which a machine need not have.
    cat >"$root/fonts.conf" <<END
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>$root/usr/share/fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
END
    cat >"$program.new" <<END
#!/bin/sh
export FONTCONFIG_FILE='$root/fonts.conf'
LD_LIBRARY_PATH='$libraries:$libraries/pulseaudio' exec '$root/usr/lib/chromium/chromium' "\$@"
END
    chmod 755 "$program.new"
    mv "$program.new" "$program"
fi
echo "$program"
