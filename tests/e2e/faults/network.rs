//! CNI plugins that hang, fail at the end, or print what they should not; a network namespace
//! that somebody took away (area CNI).

use rustix::mount::{UnmountFlags, unmount};
use tonic::Code;

use super::list_with;
use crate::harness::{Node, Server};

async fn node(script: &str, config: &str) -> Node {
    let builder = Node::with(Server::Longshore).cni(list_with("odd")).plugin("odd", script);
    builder.config(config).start().await
}

fn mend(node: &Node) {
    std::fs::write(node.place().path("better"), "").expect("a file");
}

/// What `odd` does once it is mended.
const GOOD: &str = "cat >/dev/null; [ $CNI_COMMAND = ADD ] && \
                    echo '{\"cniVersion\":\"0.4.0\",\"ips\":[{\"version\":\"4\",\"address\":\"{network}.99/24\"}]}'\n\
                    exit 0\n";

/// CNI-24: it is killed, with all that it started; the error names it and its limit.
#[tokio::test]
async fn a_plugin_that_hangs_is_killed_and_named() {
    let script =
        format!("#!/bin/sh\n[ -e {{folder}}/better ] || [ $CNI_COMMAND = DEL ] || sleep 1000\n{GOOD}");
    let node = node(&script, "[cni]\ntimeout_s = 1\n").await;
    let error = node.pod("a").run().await.expect_err("it hangs");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(error.message().contains("odd") && error.message().contains("1 s"), "{error:?}");
    assert!(node.pods().await.expect("pods").is_empty());
    node.assert_nothing_left("of a plugin that hangs").await;
    mend(&node);
    let pod = node.pod("a").run().await.expect("a pod");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SBX-40, SBX-42: the pod stays until DEL works, with its address.
#[tokio::test]
async fn a_plugin_that_fails_at_the_end_keeps_the_pod() {
    let script = format!(
        "#!/bin/sh\n[ -e {{folder}}/better ] || [ $CNI_COMMAND = ADD ] || {{ cat >/dev/null; \
         echo '{{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"the knot is stuck\"}}'; exit 1; }}\n{GOOD}"
    );
    let node = node(&script, "").await;
    let pod = node.pod("a").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    for _ in 0..2 {
        let error = pod.stop().await.expect_err("DEL fails");
        for part in ["the knot is stuck", "odd", &pod.id] {
            assert!(error.message().contains(part), "{error:?}");
        }
    }
    pod.remove().await.expect_err("DEL fails");
    let pods = node.pods().await.expect("pods");
    assert_eq!((pods.len(), pods[0].state), (1, 1), "NOTREADY");
    assert!(node.leftovers().await.iter().any(|left| left.starts_with("namespace pin")), "for the next DEL");
    mend(&node);
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SBX-42: a pod that was cut off behind ADD, and whose DEL fails at first: nothing that DEL needs
/// goes before it.
#[tokio::test]
async fn what_was_attached_when_its_pod_was_cut_off_is_detached() {
    let script = format!(
        "#!/bin/sh\n[ -e {{folder}}/better ] || [ $CNI_COMMAND = ADD ] || {{ cat >/dev/null; \
         echo '{{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"the knot is stuck\"}}'; exit 1; }}\n{GOOD}"
    );
    let node = node(&script, "").await;
    let points = node.place().path("points");
    for order in ["fail", "kill"] {
        std::fs::write(&points, format!("{order} 1 1 before Containers.Update")).expect("a file");
        node.pod("a").run().await.expect_err("it is cut off");
        std::fs::remove_file(&points).expect("it was there");
        if order == "kill" {
            node.longshore().kill().await;
            node.longshore().start().await;
        }
        let pods = node.pods().await.expect("pods");
        assert_eq!(pods.len(), 1, "{order}: {pods:?}");
        let error = node.stop_pod(&pods[0].id).await.expect_err("DEL fails");
        assert!(error.message().contains("the knot is stuck"), "{order}: {error:?}");
        let left = node.leftovers().await;
        assert!(left.iter().any(|left| left.starts_with("namespace pin")), "{order}: {left:?}");
        mend(&node);
        node.stop_pod(&pods[0].id).await.expect("stopped");
        node.remove_pod(&pods[0].id).await.expect("removed");
        node.assert_nothing_left(&format!("after {order}")).await;
        std::fs::remove_file(node.place().path("better")).expect("it was there");
    }
    node.finish().await;
}

/// CNI-12: what is no JSON is quoted, as far as it is short.
#[tokio::test]
async fn a_plugin_that_prints_garbage_is_named() {
    let script = format!(
        "#!/bin/sh\n[ -e {{folder}}/better ] || [ $CNI_COMMAND = DEL ] || {{ cat >/dev/null; \
         echo 'Segmentation fault (core dumped)'; exit $(cat {{folder}}/code); }}\n{GOOD}"
    );
    let node = node(&script, "").await;
    for code in ["0", "139"] {
        std::fs::write(node.place().path("code"), code).expect("a file");
        let error = node.pod("a").run().await.expect_err("garbage");
        for part in ["odd", "Segmentation fault"] {
            assert!(error.message().contains(part), "exit {code}: {error:?}");
        }
        node.assert_nothing_left("of garbage").await;
    }
    mend(&node);
    node.pod("a").run().await.expect("a pod").remove().await.expect("removed");
    node.finish().await;
}

/// A plugin that tells a long story on its stderr is neither blocked by it nor believed.
#[tokio::test]
async fn a_plugin_that_fills_its_stderr_works() {
    let script = format!("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' 'x' >&2\n{GOOD}");
    let node = node(&script, "").await;
    let before = node.rss_kib();
    let pod = node.pod("a").run().await.expect("a pod");
    assert!(node.rss_kib() < before + 15_000, "{before} {}", node.rss_kib());
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Somebody unmounts the pin of a pod that runs: the pod goes on, and its address is given
/// back at the end (SBX-41).
#[tokio::test]
async fn a_namespace_that_somebody_unmounted_does_not_hold_its_pod() {
    let node = Node::with(Server::Longshore).start().await;
    for takes_file in [false, true] {
        let pod = node.pod("a").run().await.expect("a pod");
        let container = pod.container("c").forever().run().await.expect("it runs");
        let pins = std::fs::read_dir(node.longshore().netns_dir()).expect("a folder");
        let pins: Vec<_> = pins.flatten().map(|pin| pin.path()).collect();
        assert_eq!(pins.len(), 1, "{pins:?}");
        unmount(&pins[0], UnmountFlags::DETACH).expect("unmounted");
        if takes_file {
            std::fs::remove_file(&pins[0]).expect("removed");
        }
        assert_eq!(container.sh("echo inside").await, "inside");
        // The network is pause's as long as that runs.
        pod.container("d").sh("ip addr show eth0").run().await.expect("it runs").wait_exited().await;
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
        node.assert_nothing_left("without a pin").await;
    }
    node.finish().await;
}
