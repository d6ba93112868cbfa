//! SELinux options where SELinux is off: checked, and then without effect (SBX-33, OCI-20).

use longshore::proto::cri::SeLinuxOption;
use tonic::Code;

use super::code;
use crate::harness::Node;

fn level(level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { user: "u".into(), role: "r".into(), r#type: "t".into(), level: level.into() })
}

#[tokio::test]
async fn selinux_options_are_checked_and_have_no_effect_without_selinux() {
    let node = Node::start().await;
    for bad in ["gibberish", "s0:c1024.", "s0,c1,c2"] {
        let refused = node.pod("bad").security(|context| context.selinux_options = level(bad)).run().await;
        assert_ne!(code(refused), Code::Ok, "{bad}");
    }
    let pod = node.pod("good").security(|context| context.selinux_options = level("s0:c1,c2")).run().await;
    let pod = pod.expect("a pod");
    let refused = pod.container("bad").forever().security(|context| context.selinux_options = level("s0,c3"));
    assert_ne!(code(refused.run().await), Code::Ok);
    let folder = node.place().path("relabelled");
    std::fs::create_dir(&folder).expect("a folder");
    let container = pod.container("good").forever().mount(&folder, "/data").config(|config| {
        config.mounts.iter_mut().for_each(|mount| mount.selinux_relabel = true);
    });
    let container = container.security(|context| context.selinux_options = level("s0-s1:c1.c3")).run().await;
    assert_eq!(container.expect("a container").sh("echo runs").await, "runs");
    node.remove_all().await;
    node.finish().await;
}
