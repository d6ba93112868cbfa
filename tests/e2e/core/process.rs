//! What runs in a container: arguments, environment, folder, user.

use longshore::proto::cri::Int64Value;
use serde_json::json;

use super::is_plugin_before;
use crate::harness::{Node, images};

/// OCI-01.
#[tokio::test]
async fn command_and_args_go_over_entrypoint_and_cmd() {
    let node = Node::start().await;
    let image = images::Image::busybox()
        .with("Entrypoint", json!(["/bin/echo", "entrypoint"]))
        .with("Cmd", json!(["cmd"]));
    let image = node.registry().push("args:1", &image);
    node.pull(&image).await.expect("pulled");
    let pod = node.pod("args").run().await.expect("a pod");
    let none: [&str; 0] = [];
    for (attempt, command, args, expected) in [
        (0, &none[..], &none[..], "entrypoint cmd"),
        (1, &none[..], &["args"][..], "entrypoint args"),
        (2, &["/bin/echo", "command"][..], &none[..], "command"),
        (3, &["/bin/echo", "command"][..], &["args"][..], "command args"),
    ] {
        let container = pod.container("c").attempt(attempt).image(&image);
        let container = container.command(command.to_vec()).args(args.to_vec()).run().await;
        let container = container.expect("a container");
        container.wait_exited().await;
        assert_eq!(container.log_entries().await[0].text(), expected);
    }
    node.remove_all().await;
    node.finish().await;
}

/// OCI-02, OCI-03.
#[tokio::test]
async fn the_environment_is_the_images_then_the_containers() {
    let node = Node::start().await;
    let image =
        images::Image::busybox().with("Env", json!(["A=image", "B=image"])).with("WorkingDir", json!("/tmp"));
    let image = node.registry().push("env:1", &image);
    node.pull(&image).await.expect("pulled");
    let pod = node.pod("env").run().await.expect("a pod");
    let container = pod.container("c").image(&image).forever();
    let container = container.env("B", "pod").env("C", "a=b\nc").env("EMPTY", "");
    let container = container.run().await.expect("a container");
    assert_eq!(container.sh("echo \"$A $B $C[$EMPTY]\"").await, "image pod a=b\nc[]");
    let path = container.sh("echo $PATH").await;
    assert_eq!(path, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert_eq!(container.sh("pwd").await, "/tmp");
    let elsewhere = pod.container("d").image(&image).forever();
    let elsewhere = elsewhere.config(|config| config.working_dir = "/made/here".into()).run().await;
    assert_eq!(elsewhere.expect("a container").sh("pwd").await, "/made/here");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-04, OCI-05, OCI-07.
#[tokio::test]
async fn the_user_is_that_of_the_security_context_or_of_the_image() {
    let node = Node::start().await;
    let image = images::Image::busybox().with("User", json!("guest"));
    let image = node.registry().push("user:1", &image);
    node.pull(&image).await.expect("pulled");
    let pod = node.pod("user").run().await.expect("a pod");
    let of_image = pod.container("image").image(&image).forever().run().await.expect("a container");
    assert_eq!(of_image.sh("id -u; id -g").await, "1000\n1001");
    if !is_plugin_before(&node, 1, 7) {
        assert_eq!(of_image.sh("id -G").await, "1001 2000");
    }
    let by_id = pod.container("id").image(&image).forever().security(|security| {
        security.run_as_user = Some(Int64Value { value: 4000 });
        security.run_as_group = Some(Int64Value { value: 4001 });
        security.supplemental_groups = vec![4002];
    });
    let by_id = by_id.run().await.expect("a container");
    assert_eq!(by_id.sh("id -u; id -g").await, "4000\n4001");
    assert!(by_id.sh("id -G").await.split(' ').any(|group| group == "4002"));
    let by_name = pod.container("name").forever();
    let by_name = by_name.security(|security| security.run_as_username = "guest".into()).run().await;
    assert_eq!(by_name.expect("a container").sh("id -u").await, "1000");
    let group = pod.container("group").forever();
    let group = group.security(|security| security.run_as_group = Some(Int64Value { value: 1 }));
    group.create().await.expect_err("a group without a user");
    let nobody = pod.container("nobody").forever();
    let nobody = nobody.security(|security| security.run_as_username = "no-such-user".into());
    nobody.create().await.expect_err("a user that is not in the image");
    node.remove_all().await;
    node.finish().await;
}
