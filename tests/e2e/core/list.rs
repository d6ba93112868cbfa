//! Lists and their filters.

use std::collections::BTreeMap;

use longshore::proto::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue,
};

use super::UNKNOWN;
use crate::harness::Node;

fn selector(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// SBX-55.
#[tokio::test]
async fn pods_are_filtered_by_id_state_and_labels() {
    let node = Node::start().await;
    let ready = node.pod("ready").labels([("app", "web"), ("tier", "front")]).run().await.expect("a pod");
    let stopped = node.pod("stopped").labels([("app", "web"), ("tier", "back")]).run().await.expect("a pod");
    stopped.stop().await.expect("stopped");
    let found = async |filter: PodSandboxFilter| {
        let list = node.list_pods(Some(filter)).await.expect("a list");
        let mut names: Vec<String> =
            list.into_iter().map(|pod| pod.metadata.expect("metadata").name).collect();
        names.sort();
        names
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state as i32 });
    let (all, none) = (vec!["ready", "stopped"], Vec::<&str>::new());
    let filter = PodSandboxFilter::default;

    assert_eq!(found(filter()).await, all);
    assert_eq!(found(PodSandboxFilter { id: ready.id.clone(), ..filter() }).await, ["ready"]);
    assert_eq!(found(PodSandboxFilter { id: ready.id[..12].into(), ..filter() }).await, ["ready"]);
    assert_eq!(found(PodSandboxFilter { id: UNKNOWN.into(), ..filter() }).await, none);
    let is_ready = state(PodSandboxState::SandboxReady);
    assert_eq!(found(PodSandboxFilter { state: is_ready, ..filter() }).await, ["ready"]);
    let is_not_ready = state(PodSandboxState::SandboxNotready);
    assert_eq!(found(PodSandboxFilter { state: is_not_ready, ..filter() }).await, ["stopped"]);
    for (labels, expected) in [
        (selector(&[("app", "web")]), all),
        (selector(&[("app", "web"), ("tier", "back")]), vec!["stopped"]),
        (selector(&[("tier", "middle")]), none.clone()),
        (selector(&[("app", "")]), none.clone()),
    ] {
        assert_eq!(found(PodSandboxFilter { label_selector: labels, ..filter() }).await, expected);
    }
    // All of them at once have to be true.
    let both = PodSandboxFilter { id: ready.id.clone(), state: is_not_ready, ..filter() };
    assert_eq!(found(both).await, none);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-30.
#[tokio::test]
async fn containers_are_filtered_by_id_pod_state_and_labels() {
    let node = Node::start().await;
    let pod = node.pod("one").run().await.expect("a pod");
    let other = node.pod("two").run().await.expect("a pod");
    let created = pod.container("created").labels([("app", "web")]).create().await.expect("a container");
    pod.container("running").forever().labels([("app", "web")]).run().await.expect("a container");
    let exited = other.container("exited").command(["true"]).run().await.expect("a container");
    exited.wait_exited().await;
    let found = async |filter: ContainerFilter| {
        let list = node.list_containers(Some(filter)).await.expect("a list");
        let mut names: Vec<String> =
            list.into_iter().map(|container| container.metadata.expect("metadata").name).collect();
        names.sort();
        names
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state as i32 });
    let none = Vec::<&str>::new();
    let filter = ContainerFilter::default;

    assert_eq!(found(filter()).await, ["created", "exited", "running"]);
    assert_eq!(found(ContainerFilter { id: created.id.clone(), ..filter() }).await, ["created"]);
    assert_eq!(found(ContainerFilter { id: created.id[..12].into(), ..filter() }).await, ["created"]);
    assert_eq!(found(ContainerFilter { id: UNKNOWN.into(), ..filter() }).await, none);
    let in_pod = ContainerFilter { pod_sandbox_id: pod.id.clone(), ..filter() };
    assert_eq!(found(in_pod).await, ["created", "running"]);
    let in_other = ContainerFilter { pod_sandbox_id: other.id[..12].into(), ..filter() };
    assert_eq!(found(in_other).await, ["exited"]);
    let in_none = ContainerFilter { pod_sandbox_id: UNKNOWN.into(), ..filter() };
    assert_eq!(found(in_none).await, none);
    for (name, value) in [
        ("created", ContainerState::ContainerCreated),
        ("running", ContainerState::ContainerRunning),
        ("exited", ContainerState::ContainerExited),
    ] {
        assert_eq!(found(ContainerFilter { state: state(value), ..filter() }).await, [name]);
    }
    let labelled = ContainerFilter { label_selector: selector(&[("app", "web")]), ..filter() };
    assert_eq!(found(labelled.clone()).await, ["created", "running"]);
    let both = ContainerFilter { state: state(ContainerState::ContainerRunning), ..labelled };
    assert_eq!(found(both).await, ["running"]);
    node.remove_all().await;
    node.finish().await;
}
