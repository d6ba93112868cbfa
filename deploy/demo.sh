#!/bin/sh
# From nothing to a running pod: installs what is missing, builds, uses the containerd that
# runs or starts one in a folder of its own, starts longshore beside it in a namespace of
# its own, runs a pod of two containers (demo.rs), and takes everything away again.
set -eu
cd "$(dirname "$0")/.."

NAMESPACE=longshore-demo
BRIDGE=lsdemo0
SUBNET=10.244.253.0/24
IMAGE=demo.local/busybox:1

tests/setup.sh
cargo build --release --locked --bin longshore --example demo

work=$(mktemp -d /tmp/longshore-demo.XXXXXX)
server=
containerd=
address=/run/containerd/containerd.sock

# Ends a process that this script started, and waits for its end.
end() {
    [ -n "$1" ] && kill "$1" 2>/dev/null && wait "$1" 2>/dev/null
    return 0
}

clean_up() {
    status=$?
    trap - EXIT INT TERM
    set +e
    end "$server"
    client images rm --sync "$IMAGE" >/dev/null 2>&1
    for name in $(client images ls -q 2>/dev/null); do client images rm --sync "$name" >/dev/null 2>&1; done
    # The image's own snapshots go with it; the namespace is removed once it is empty.
    for try in 1 2 3 4 5 6 7 8 9 10; do
        ctr --address "$address" namespaces rm "$NAMESPACE" >/dev/null 2>&1 && break
        sleep 0.3
    done
    end "$containerd"
    ip link del "$BRIDGE" 2>/dev/null
    # Nothing should be mounted any more; what is must not be deleted through.
    for mount in $(awk -v work="$work/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | sort -r); do
        umount -l "$mount"
    done
    [ "$status" = 0 ] || { echo "--- the last lines of longshore"; tail -n 20 "$work/longshore.log"; }
    rm -rf "$work"
    exit "$status"
}

client() { ctr --address "$address" --namespace "$NAMESPACE" "$@"; }

# Waits until a command succeeds.
await() {
    what=$1
    shift
    for try in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "$what does not answer" >&2
    exit 1
}

start_containerd() {
    address=$work/containerd.sock
    cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd-root"
state = "$work/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "$address"
END
    containerd --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
    containerd=$!
}

# Makes an image of one layer, the machine's static busybox, as an OCI archive.
make_image() {
    layout=$work/image
    blobs=$layout/blobs/sha256
    mkdir -p "$blobs" "$work/rootfs/bin" "$work/rootfs/etc" "$work/rootfs/tmp"
    cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
    for applet in sh echo cat sleep wget httpd id hostname; do ln -s busybox "$work/rootfs/bin/$applet"; done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$work/rootfs/etc/passwd"
    tar --owner=0 --group=0 --numeric-owner -C "$work/rootfs" -cf "$work/layer.tar" .
    layer=$(add_blob "$work/layer.tar")
    architecture=$(dpkg --print-architecture)
    cat >"$work/config.json" <<END
{"architecture":"$architecture","os":"linux","config":{"Env":["PATH=/bin"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
END
    config=$(add_blob "$work/config.json")
    cat >"$work/manifest.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
 "config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size_of "$config")},
 "layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$(size_of "$layer")}]}
END
    manifest=$(add_blob "$work/manifest.json")
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    cat >"$layout/index.json" <<END
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest",
 "size":$(size_of "$manifest"),"annotations":{"io.containerd.image.name":"$IMAGE"}}]}
END
    tar -C "$layout" -cf "$work/image.tar" .
}

add_blob() {
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    cp "$1" "$blobs/$digest"
    echo "$digest"
}

size_of() { stat -c %s "$blobs/$1"; }

configure() {
    mkdir -p "$work/cni"
    cat >"$work/cni/10-demo.conflist" <<END
{"cniVersion":"1.0.0","name":"demo","plugins":[{"type":"bridge","bridge":"$BRIDGE","isGateway":true,
 "ipam":{"type":"host-local","dataDir":"$work/leases","ranges":[[{"subnet":"$SUBNET"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
END
    cat >"$work/longshore.toml" <<END
version = 1
[cni]
cache_dir = "$work/cni-cache"
netns_dir = "$work/netns"
END
}

trap clean_up EXIT
trap 'exit 130' INT TERM

if ctr --address "$address" --connect-timeout 2s version >/dev/null 2>&1; then
    echo "using the containerd at $address, namespace $NAMESPACE"
else
    start_containerd
    await containerd ctr --address "$address" version
    echo "started a containerd in $work"
fi
make_image
client images import --no-unpack "$work/image.tar" >/dev/null 2>&1 || client images import "$work/image.tar" >/dev/null
configure
target/release/longshore serve --config "$work/longshore.toml" --listen "$work/cri.sock" \
    --containerd "$address" --namespace "$NAMESPACE" --root "$work/root" --state "$work/state" \
    --cni-conf-dir "$work/cni" --cni-bin-dir /opt/cni/bin --cni-bin-dir /usr/lib/cni >"$work/longshore.log" 2>&1 &
server=$!
await longshore test -S "$work/cri.sock"
target/release/examples/demo "$work/cri.sock" "$IMAGE" "$work/logs"
echo
echo "done; nothing is left of it"
