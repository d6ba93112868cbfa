//! The node: networks, registries, disks, cgroups.

use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{assert_told, show, story_of, traced};
use crate::harness::images::BUSYBOX;
use crate::harness::{LIMIT, Node, Server, cni, patient, wait_for};

/// An address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

#[tokio::test]
async fn an_image_pull_fails_behind_a_proxy() {
    let proxy = nobody();
    let node = Node::with(Server::Longshore).env("HTTPS_PROXY", &format!("http://{proxy}")).start().await;
    let error = node.pull("registry.example/app:1").await.expect_err("there is no proxy");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["PullImage registry.example/app:1", "RegistryUnavailable", &proxy, "registry HEAD"]);
    assert_told(&text, &["host=registry.example", "path=/v2/app/manifests/1", "resolve"]);
    node.finish().await;
}

#[tokio::test]
async fn there_is_no_network_configuration() {
    let node = Node::with(Server::Longshore).no_cni().start().await;
    let error = node.pod("web-0").run().await.expect_err("no network");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["RunPodSandbox default/web-0", "cni plugin not initialized", "cni"]);
    assert_told(&text, &[&cni::conf_dir(node.place()).display().to_string(), "namespace remove network"]);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_starts_slowly() {
    let slow = "#!/bin/sh
[ \"$CNI_COMMAND\" = ADD ] && { echo 'waiting for the address of the node' >&2; sleep 1; }
exec /usr/lib/cni/bridge
";
    let mut list = cni::bridge();
    list["plugins"][0]["type"] = "slow".into();
    let node = Node::with(Server::Longshore).cni(list).plugin("slow", slow).start().await;
    node.pod("web-0").run().await.expect("a pod");
    let text = wait_for("the call", async || {
        let text = traced(&node, &["--slower-than", "1s"]);
        text.contains("RunPodSandbox default/web-0").then_some(text)
    })
    .await;
    show(&text);
    // The plugin is marked, with its share, and with what it said.
    let line = text.lines().find(|line| line.contains("cni ADD slow")).expect("the plugin's line");
    assert!(line.contains("<- "), "{line}");
    assert_told(&text, &["stderr: waiting for the address of the node"]);
    node.remove_all().await;
    node.finish().await;
}

/// Its network cannot be taken down: the plugin hangs.
#[tokio::test]
async fn a_pod_does_not_end() {
    let stuck = "#!/bin/sh
[ \"$CNI_COMMAND\" = DEL ] && while ! test -e {folder}/go; do sleep 0.02; done
exec /usr/lib/cni/bridge
";
    let mut list = cni::bridge();
    list["plugins"][0]["type"] = "stuck".into();
    let node = Node::with(Server::Longshore).cni(list).plugin("stuck", stuck).start().await;
    let pod = node.pod("web-0").run().await.expect("a pod");
    let (_, state) = node.longshore().folders();
    let ps = || {
        let mut ps = Command::new(env!("CARGO_BIN_EXE_longshore"));
        let output = ps.args(["ps", "--state"]).arg(&state).output().expect("longshore starts");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let (stopped, again, ()) = tokio::join!(pod.stop(), pod.stop(), async {
        let text = wait_for("both calls", async || {
            let text = ps();
            (text.contains("cni DEL stuck") && text.contains("wait for another call")).then_some(text)
        })
        .await;
        show(&text);
        assert_told(&text, &["StopPodSandbox  default/web-0", "NOTREADY"]);
        std::fs::write(node.place().path("go"), "").expect("a file");
    });
    stopped.and(again).expect("both end");
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn the_disk_is_full() {
    let node = Node::with(Server::Longshore).before(|place| {
        let root = place.path("l");
        std::fs::create_dir(&root).expect("a folder");
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), Some(c"size=64k")).expect("a disk");
    });
    let node = node.start().await;
    let filler = node.longshore().folders().0.join("filler");
    assert!(std::fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is full now");
    let error = node.pod("web-0").run().await.expect_err("no room");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["RunPodSandbox default/web-0", "No space left on device", "! file", "files"]);
    std::fs::remove_file(&filler).expect("removed");
    node.pod("web-0").run().await.expect("with room it runs");
    node.remove_all().await;
    // The server has its lock there still; nothing else.
    unmount(&node.longshore().folders().0, UnmountFlags::DETACH).expect("unmounted");
    node.finish().await;
}

/// The configuration says systemd, on a host without it.
#[tokio::test]
async fn the_cgroup_driver_is_wrong() {
    if Path::new("/run/systemd/system").exists() {
        return;
    }
    let node = Node::with(Server::Longshore).config("[runtime]\ncgroup_driver = \"systemd\"\n").start().await;
    let pod = node.pod("web-0").cgroup_parent("kubepods-besteffort.slice");
    let error = tokio::time::timeout(patient(LIMIT), pod.run()).await.expect("an answer");
    let error = error.expect_err("there is no systemd");
    let text = story_of(&node, &error).await;
    assert_told(
        &text,
        &["RunPodSandbox default/web-0", "containerd Tasks.Create", "systemd", "pause_create"],
    );
    node.finish().await;
}

#[tokio::test]
async fn a_user_that_the_image_does_not_know() {
    let node = Node::with(Server::Longshore).start().await;
    node.ensure_image(BUSYBOX).await.expect("pulled");
    let pod = node.pod("web-0").run().await.expect("a pod");
    let container = pod.container("app").security(|context| context.run_as_username = "app-user".into());
    let error = container.create().await.expect_err("nobody has that name");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["CreateContainer default/web-0 app", "app-user", "InvalidArgument"]);
    node.remove_all().await;
    node.finish().await;
}
