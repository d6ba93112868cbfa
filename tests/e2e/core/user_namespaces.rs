//! Pods with user namespaces, and mounts with mapped ids.
//!
//! The plugin serves them from containerd 2.1 on; before that these tests are about other
//! servers.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use longshore::proto::cri::{Capability, IdMapping, Int64Value, Mount, NamespaceMode};
use serde_json::json;
use tonic::Code;

use super::{code, is_plugin_before};
use crate::harness::images::{Image, Layer};
use crate::harness::{Container, Node, Pod, Server, id_mappings, image_mount};

/// The host's users and groups from here on are the pods'.
const UID: u32 = 1_000_000;
const GID: u32 = 2_000_000;

/// None where the server has no user namespaces.
async fn node() -> Option<Node> {
    let node = Node::with(Server::from_env()).id_mapping_runc().start().await;
    if is_plugin_before(&node, 2, 1) {
        eprintln!("skipped: the plugin of containerd {} has no user namespaces", node.containerd_version());
        node.finish().await;
        return None;
    }
    Some(node)
}

async fn pod(node: &Node, name: &str) -> Pod {
    node.pod(name).user_namespace(UID, GID).run().await.expect("a pod")
}

async fn pid(container: &Container) -> u64 {
    container.info().await["pid"].as_u64().expect("a pid")
}

/// A line of /proc/PID/status, as numbers.
async fn numbers(container: &Container, key: &str) -> Vec<u32> {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid(container).await)).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

fn owner(path: &Path) -> (u32, u32) {
    std::fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).expect("a file")
}

fn mapped(host: &Path, inside: &str) -> Mount {
    let (uid_mappings, gid_mappings) = id_mappings(UID, GID);
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.into(),
        uid_mappings,
        gid_mappings,
        ..Default::default()
    }
}

/// SBX-25, SBX-27, OCI-24: root inside is nobody outside, and the image's files are the
/// users' that it says.
#[tokio::test]
async fn users_of_a_pod_are_others_on_the_host() {
    let Some(node) = node().await else { return };
    let image = Image::busybox().layer(Layer::default().folder_of((1000, 1001), "home", 0o700).file_of(
        (1000, 1001),
        "home/mine",
        0o600,
        b"mine",
    ));
    let reference = node.registry().push("owners:1", &image);
    let id = node.pull(&reference).await.expect("pulled");
    let pod = pod(&node, "a").await;
    let root = pod.container("root").image(&id).forever().run().await.expect("a container");
    assert_eq!(root.sh("id -u; id -g").await, "0\n0");
    assert_eq!(numbers(&root, "Uid:").await, [UID; 4]);
    assert_eq!(numbers(&root, "Gid:").await, [GID; 4]);
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(root.sh("cat /proc/self/uid_map").await), ["0", "1000000", "65536"]);
    assert_eq!(words(root.sh("cat /proc/self/gid_map").await), ["0", "2000000", "65536"]);
    let stat = "stat -c %u:%g / /bin/busybox /etc /etc/hosts /etc/hostname /etc/resolv.conf /home/mine";
    let owners = root.sh(stat).await;
    assert_eq!(words(owners), ["0:0", "0:0", "0:0", "0:0", "0:0", "0:0", "1000:1001"]);
    // What root writes is root's, in an image's folder as in a new one.
    assert_eq!(root.sh("echo x > /etc/new && mkdir /made && stat -c %u:%g /etc/new /made").await, "0:0\n0:0");
    assert_eq!(root.sh("echo 10.0.0.1 name >> /etc/hosts && tail -n 1 /etc/hosts").await, "10.0.0.1 name");
    assert_eq!(root.sh("echo shared > /dev/shm/x && chmod 600 /dev/shm/x && cat /dev/shm/x").await, "shared");

    let user = |context: &mut longshore::proto::cri::LinuxContainerSecurityContext| {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.supplemental_groups = vec![3000];
    };
    let script = "echo to stdout > /dev/stdout; echo to stderr > /dev/stderr; exec sleep 1000";
    let guest = pod.container("guest").image(&id).sh(script).security(user).run().await.expect("a container");
    assert_eq!(numbers(&guest, "Uid:").await, [UID + 1000; 4]);
    let mut groups = numbers(&guest, "Groups:").await;
    groups.sort_unstable();
    assert_eq!(groups, [GID + 1001, GID + 2000, GID + 3000]);
    assert_eq!(guest.sh("cat /home/mine; id -u").await, "mine1000");
    assert!(guest.sh("cat /dev/shm/x 2>&1 || true").await.contains("denied"));
    guest.wait_log("to stdout").await;
    guest.wait_log("to stderr").await;
    let status = guest.status().await.expect("a status");
    let user = status.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid), (1000, 1001), "as the container has them");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-34: a volume shows the container's owners, and what is written is the host's own.
#[tokio::test]
async fn a_mapped_volume_has_the_hosts_owners_and_another_is_out_of_reach() {
    let Some(node) = node().await else { return };
    let folder = |name: &str| {
        let folder = node.place().path(name);
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("secret"), "secret").expect("a file");
        std::fs::set_permissions(folder.join("secret"), PermissionsExt::from_mode(0o600)).expect("a mode");
        folder
    };
    let (volume, foreign) = (folder("volume"), folder("foreign"));
    std::fs::write(volume.join("guests"), "").expect("a file");
    chown(volume.join("guests"), Some(1000), Some(1001)).expect("an owner");
    let log = node.place().path("termination-log");
    std::fs::write(&log, "").expect("a file");

    let pod = pod(&node, "a").await;
    let container = pod.container("c").mount_as(mapped(&volume, "/volume")).mount(&foreign, "/foreign");
    let container = container.mount_as(mapped(&log, "/dev/termination-log")).forever();
    let container = container.run().await.expect("a container");
    let stat = "stat -c %u:%g /volume /volume/secret /volume/guests /foreign/secret";
    assert_eq!(container.sh(stat).await, "0:0\n0:0\n1000:1001\n65534:65534");
    assert_eq!(container.sh("cat /volume/secret").await, "secret");
    container
        .sh("echo made > /volume/made; chown 1000:1001 /volume/made; echo end > /dev/termination-log")
        .await;
    assert_eq!(owner(&volume.join("made")), (1000, 1001));
    assert_eq!((owner(&log), std::fs::read_to_string(&log).expect("text").as_str()), ((0, 0), "end\n"));
    for attempt in
        ["cat /foreign/secret", "touch /foreign/new", "chown 0 /foreign/secret", "rm -f /foreign/secret"]
    {
        let text = container.sh(&format!("{attempt} 2>&1 || echo refused")).await;
        assert!(text.ends_with("refused"), "{attempt}: {text}");
    }
    assert_eq!(std::fs::read_to_string(foreign.join("secret")).expect("there still"), "secret");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-27: one image, two pods.
#[tokio::test]
async fn two_pods_with_other_mappings_share_an_image() {
    let Some(node) = node().await else { return };
    let mut pods = Vec::new();
    for (name, offset) in [("a", 0), ("b", 65536)] {
        let pod = node.pod(name).user_namespace(UID + offset, GID + offset).run().await.expect("a pod");
        let container = pod.container("c").forever().run().await.expect("a container");
        assert_eq!(numbers(&container, "Uid:").await, [UID + offset; 4]);
        assert_eq!(container.sh("echo x > /etc/new && stat -c %u:%g /etc/new /etc/passwd").await, "0:0\n0:0");
        pods.push(container);
    }
    let plain = node.pod("plain").run().await.expect("a pod");
    let plain = plain.container("c").forever().run().await.expect("a container");
    assert_eq!(plain.sh("stat -c %u:%g /etc/passwd; [ -e /etc/new ] || echo alone").await, "0:0\nalone");
    assert_eq!(numbers(&plain, "Uid:").await, [0; 4]);
    node.remove_all().await;
    node.finish().await;
}

/// SBX-26, SBX-31: root of the pod administrates its network, and no other.
#[tokio::test]
async fn the_pods_network_belongs_to_its_user_namespace() {
    let Some(node) = node().await else { return };
    let pod = pod(&node, "a").await;
    let with_admin = |context: &mut longshore::proto::cri::LinuxContainerSecurityContext| {
        context.capabilities =
            Some(Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
    };
    let admin = pod.container("admin").security(with_admin).forever().run().await.expect("a container");
    let other = pod.container("other").forever().run().await.expect("a container");
    let add = "ip addr add 10.99.99.99/32 dev lo && ip addr show dev lo";
    assert!(admin.sh(add).await.contains("10.99.99.99/32"));
    assert!(other.sh("ip addr show dev lo").await.contains("10.99.99.99/32"), "one network");
    assert!(other.sh("ip addr add 10.99.99.98/32 dev lo 2>&1 || echo refused").await.ends_with("refused"));
    for container in [&admin, &other] {
        assert_eq!(
            container.sh("readlink /proc/self/ns/user").await,
            admin.sh("readlink /proc/self/ns/user").await
        );
        assert_eq!(
            container.sh("readlink /proc/self/ns/net").await,
            admin.sh("readlink /proc/self/ns/net").await
        );
    }
    assert!(pod.ip().await.starts_with(&node.place().network()));
    // Somebody who is not root takes a port below 1024.
    let guest = |context: &mut longshore::proto::cri::LinuxContainerSecurityContext| {
        context.run_as_user = Some(Int64Value { value: 1000 });
    };
    let script = "echo here | nc -l -p 80 & exec sleep 1000";
    let guest = pod.container("guest").sh(script).security(guest).run().await.expect("a container");
    let text = guest.sh("until nc -w 1 127.0.0.1 80 </dev/null; do usleep 20000; done").await;
    assert_eq!(text, "here");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-28.
#[tokio::test]
async fn with_the_hosts_network_sys_is_the_hosts_and_read_only() {
    let Some(node) = node().await else { return };
    if is_plugin_before(&node, 2, 2) {
        node.finish().await;
        return;
    }
    let status = node.status(false).await.expect("a status");
    assert!(status.features.expect("features").user_namespaces_host_network);
    let pod = node.pod("a").user_namespace(UID, GID).host_network().run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(numbers(&container, "Uid:").await, [UID; 4]);
    let net = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert_eq!(container.sh("readlink /proc/self/ns/net").await, net.display().to_string());
    let mut interfaces = crate::harness::procfs::names(Path::new("/sys/class/net"));
    interfaces.retain(|name| name == "lo" || *name == node.place().bridge());
    for interface in interfaces {
        container.sh(&format!("ls /sys/class/net/{interface}/mtu")).await;
    }
    let options = container.sh("grep ' /sys ' /proc/self/mountinfo | head -n 1 | cut -d' ' -f6").await;
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|found| found == option), "{options}");
    }
    let refused = container.sh("ip link set lo mtu 1000 2>&1 || echo refused").await;
    assert!(refused.ends_with("refused"), "{refused}");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-34, OCI-37.
#[tokio::test]
async fn an_image_volume_with_mappings_shows_the_containers_owners() {
    let Some(node) = node().await else { return };
    if is_plugin_before(&node, 2, 3) {
        node.finish().await;
        return;
    }
    let lower = Layer::default().folder("sub", 0o755).file("sub/roots", 0o600, b"roots");
    let upper = Layer::default().file_of((1000, 1001), "sub/guests", 0o644, b"guests");
    let reference = node.registry().push("mapped-volume:1", &Image::empty().layer(lower).layer(upper));
    let id = node.pull(&reference).await.expect("pulled");
    let single = Image::empty().layer(Layer::default().file("roots", 0o600, b"single"));
    let single = node.pull(&node.registry().push("mapped-single:1", &single)).await.expect("pulled");
    let pod = pod(&node, "a").await;
    let (uid_mappings, gid_mappings) = id_mappings(UID, GID);
    let mount = |image: &str, inside: &str| Mount {
        uid_mappings: uid_mappings.clone(),
        gid_mappings: gid_mappings.clone(),
        ..image_mount(image, inside)
    };
    for name in ["first", "second"] {
        let container =
            pod.container(name).mount_as(mount(&id, "/volume")).mount_as(mount(&single, "/single"));
        let container = container.forever().run().await.expect("a container");
        let stat = "stat -c %u:%g /volume/sub /volume/sub/roots /volume/sub/guests /single/roots";
        assert_eq!(container.sh(stat).await, "0:0\n0:0\n1000:1001\n0:0");
        assert_eq!(container.sh("cat /volume/sub/roots /single/roots").await, "rootssingle");
        assert!(container.sh("touch /volume/sub/new 2>&1 || echo refused").await.ends_with("refused"));
    }
    node.remove_all().await;
    node.finish().await;
}

/// CTR-08: volumes that the image declares have its owners, also where they are new.
#[tokio::test]
async fn volumes_of_the_image_have_its_owners() {
    let Some(node) = node().await else { return };
    let layer = Layer::default().folder_of((1000, 1001), "data", 0o750).file_of(
        (1000, 1001),
        "data/mine",
        0o640,
        b"mine",
    );
    let image = Image::busybox().layer(layer).with("Volumes", json!({ "/data": {}, "/fresh": {} }));
    let id = node.pull(&node.registry().push("volumes-of:1", &image)).await.expect("pulled");
    let pod = pod(&node, "a").await;
    let container = pod.container("c").image(&id).forever().run().await.expect("a container");
    assert_eq!(container.sh("stat -c %u:%g /data /data/mine").await, "1000:1001\n1000:1001");
    assert_eq!(container.sh("cat /data/mine; touch /data/new; stat -c %u /data/new").await, "mine0");
    if !node.is_built_in() {
        assert_eq!(container.sh("touch /fresh/new; stat -c %u:%g /fresh /fresh/new").await, "0:0\n0:0");
    }
    node.remove_all().await;
    node.finish().await;
}

/// OCI-16, OCI-26, OCI-40.
#[tokio::test]
async fn devices_and_privileged_containers_work_in_a_user_namespace() {
    let Some(node) = node().await else { return };
    let pod = node.pod("a").user_namespace(UID, GID).security(|context| context.privileged = true);
    let pod = pod.run().await.expect("a pod");
    let usual = pod.container("usual").forever().run().await.expect("a container");
    assert_eq!(
        usual.sh("echo x > /dev/null; head -c 4 /dev/zero | wc -c; [ -c /dev/random ] && echo y").await,
        "4\ny"
    );
    assert_eq!(usual.sh("grep -c ' /dev/mqueue ' /proc/self/mountinfo").await, "1");
    let privileged = pod.container("privileged").security(|context| context.privileged = true).forever();
    let privileged = privileged.run().await.expect("a container");
    // All capabilities, and they are worth nothing outside.
    assert_eq!(privileged.sh("mkdir /m && mount -t tmpfs none /m && echo mounted").await, "mounted");
    assert!(privileged.sh("mknod /m/null c 1 3 2>&1 || echo refused").await.ends_with("refused"));
    assert_eq!(numbers(&privileged, "Uid:").await, [UID; 4]);
    node.remove_all().await;
    node.finish().await;
}

/// SBX-25, OCI-24, ERR-13.
#[tokio::test]
async fn what_a_user_namespace_cannot_be_is_refused() {
    let Some(node) = node().await else { return };
    let map = |container_id: u32, length: u32| IdMapping { host_id: UID, container_id, length };
    let wrong = [
        (NamespaceMode::Node, vec![map(0, 65536)]),
        (NamespaceMode::Container, vec![]),
        (NamespaceMode::Target, vec![]),
        (NamespaceMode::Pod, vec![]),
        (NamespaceMode::Pod, vec![map(0, 0)]),
        (NamespaceMode::Pod, vec![map(0, 10), map(10, 10)]),
        (NamespaceMode::Pod, vec![map(1, 65536)]),
    ];
    for (mode, mappings) in wrong {
        let pod = node.pod("wrong").user_namespace(UID, GID).security(|context| {
            let options = context.namespace_options.as_mut().expect("options");
            let user = options.userns_options.as_mut().expect("options");
            (user.mode, user.uids, user.gids) = (mode as i32, mappings.clone(), mappings.clone());
        });
        let code = code(pod.run().await);
        assert!(code != Code::Ok, "{mode:?} {mappings:?}");
        assert!(node.is_built_in() || code == Code::InvalidArgument, "{mode:?} {mappings:?}: {code:?}");
    }
    assert!(node.is_built_in() || node.leftovers().await.is_empty());

    let pod = pod(&node, "a").await;
    let other = pod.container("other").security(|context| {
        let options = context.namespace_options.as_mut().expect("options");
        options.userns_options.as_mut().expect("options").uids[0].host_id += 65536;
    });
    let none = pod.container("none").security(|context| {
        context.namespace_options.as_mut().expect("options").userns_options = None;
    });
    for container in [other, none] {
        let code = code(container.create().await);
        assert!(code != Code::Ok && (node.is_built_in() || code == Code::InvalidArgument), "{code:?}");
    }
    if !node.is_built_in() {
        let far = pod.container("far").security(|context| {
            context.run_as_user = Some(Int64Value { value: 65536 });
        });
        let error = far.create().await.expect_err("no such user");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains("user 65536 is not mapped"), "{error:?}");
    }
    node.remove_all().await;
    node.finish().await;
}
