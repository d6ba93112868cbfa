//! Containers: what does not start, and what may not do what it wants.

use longshore::proto::cri::security_profile::ProfileType;
use longshore::proto::cri::{Device, SecurityProfile};

use super::{assert_told, show, story_of, traced};
use crate::harness::images::BUSYBOX;
use crate::harness::{Node, Pod, Server, wait_for};

async fn node_with_pod() -> (Node, Pod) {
    let node = Node::with(Server::Longshore).start().await;
    node.ensure_image(BUSYBOX).await.expect("pulled");
    let pod = node.pod("web-0").run().await.expect("a pod");
    (node, pod)
}

#[tokio::test]
async fn a_container_exits_with_128() {
    let (node, pod) = node_with_pod().await;
    let container = pod.container("app").command(["/app/servr"]).create().await.expect("created");
    let error = container.start().await.expect_err("there is no such program");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["StartContainer default/web-0 app", "containerd Tasks.", "/app/servr"]);
    assert_told(&text, &["no such file or directory"]);
    let status = container.status().await.expect("a status");
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn a_device_is_missing() {
    let (node, pod) = node_with_pod().await;
    let device = Device {
        host_path: "/dev/accelerator0".into(),
        container_path: "/dev/accelerator0".into(),
        permissions: "rw".into(),
    };
    let container = pod.container("app").config(|config| config.devices = vec![device]);
    let error = container.create().await.expect_err("there is no such device");
    let text = story_of(&node, &error).await;
    assert_told(&text, &["CreateContainer default/web-0 app", "/dev/accelerator0", "gather"]);
    node.remove_all().await;
    node.finish().await;
}

/// The kernel tells the process alone: what is seen from here is which profile it has.
#[tokio::test]
async fn seccomp_denies_permission() {
    let (node, pod) = node_with_pod().await;
    let profile = node.place().path("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, text).expect("a profile");
    let container = pod.container("app").security(|context| {
        context.seccomp = Some(SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: profile.display().to_string(),
        });
    });
    let container = container.sh("mkdir /data; sleep 1000").run().await.expect("it runs");
    container.wait_log("Operation not permitted").await;
    let text = wait_for("the call", async || {
        let text = traced(&node, &["-v", "--container", "app", "--method", "CreateContainer"]);
        text.contains("request").then_some(text)
    })
    .await;
    show(&text);
    assert_told(&text, &["\"seccomp\":{\"profile_type\":\"Localhost\"", &profile.display().to_string()]);
    node.remove_all().await;
    node.finish().await;
}
