//! Events of pods and containers (area EVT).

use longshore::proto::cri::ContainerEventType::{
    self, ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};
use longshore::proto::cri::{ContainerState, PodSandboxState};

use super::{is_plugin_before, now_ns};
use crate::harness::{Events, Node, seen, status_in};

/// EVT-02 … EVT-05: of one pod and one container, and what each event shows.
#[tokio::test]
async fn a_life_is_told_in_order_and_with_the_whole_pod() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let mut events = Events::of(node.cri());
    let begun = now_ns();
    let pod = node.pod("a").labels([("tier", "front")]).run().await.expect("a pod");
    let other = pod.container("other").forever().create().await.expect("a container");
    let container = pod.container("a").sh("exit 7").run().await.expect("it runs");
    container.wait_exited().await;
    container.remove().await.expect("removed");
    other.remove().await.expect("removed");
    let status = pod.status().await.expect("a status");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");

    let told = events.up_to(&pod.id, Deleted).await;
    let (id, other_id) = (container.id.as_str(), other.id.as_str());
    let want: Vec<(&str, ContainerEventType)> = vec![
        (&pod.id, Created),
        (&pod.id, Started),
        (other_id, Created),
        (id, Created),
        (id, Started),
        (id, Stopped),
        (id, Deleted),
        (other_id, Deleted),
        (&pod.id, Stopped),
        (&pod.id, Deleted),
    ];
    let got: Vec<_> = told.iter().map(seen).collect();
    assert_eq!(got, want.into_iter().map(|(id, kind)| (id.to_owned(), kind)).collect::<Vec<_>>());

    let mut last = begun;
    for event in &told {
        let shown = event.pod_sandbox_status.as_ref().unwrap_or_else(|| panic!("no pod: {event:?}"));
        assert_eq!((&shown.id, &shown.metadata), (&pod.id, &status.metadata));
        assert_eq!(shown.labels, status.labels);
        // The plugin's does not know it at first.
        assert!(shown.created_at == status.created_at || node.is_built_in(), "{event:?}");
        assert!((last..=now_ns()).contains(&event.created_at), "{event:?}");
        last = event.created_at;
        let (whose, kind) = seen(event);
        let ready = whose != pod.id || [Created, Started].contains(&kind);
        let state = if ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
        assert_eq!(shown.state(), state, "{event:?}");
        if ready {
            assert_eq!(shown.network, status.network);
        }
        if whose == id {
            let shown =
                status_in(event, id).map(|shown| (shown.state(), shown.exit_code, shown.reason.as_str()));
            let want = match kind {
                Created => Some((ContainerState::ContainerCreated, 0, "")),
                Stopped => Some((ContainerState::ContainerExited, 7, "Error")),
                // It may have ended already.
                Started => {
                    assert!(shown.is_some());
                    continue;
                }
                Deleted => None,
            };
            assert_eq!(shown, want, "{event:?}");
            // The other one, too, as it is.
            let other = status_in(event, other_id).expect("all of the pod's containers");
            assert_eq!(other.state(), ContainerState::ContainerCreated);
            assert_eq!(other.metadata.as_ref().map(|metadata| metadata.name.as_str()), Some("other"));
        }
    }
    node.finish().await;
}

/// EVT-04: what is told can be seen.
#[tokio::test]
async fn who_is_told_finds_it_so() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let mut events = Events::of(node.cri());
    let pod = node.pod("a").run().await.expect("a pod");
    events.up_to(&pod.id, Started).await;
    let container = pod.container("a").forever().create().await.expect("created");
    events.up_to(&container.id, Created).await;
    let listed = async |id: &str| {
        let containers = node.containers().await.expect("a list");
        containers.into_iter().find(|container| container.id == id).map(|container| container.state())
    };
    assert_eq!(listed(&container.id).await, Some(ContainerState::ContainerCreated));
    container.start().await.expect("started");
    events.up_to(&container.id, Started).await;
    assert_eq!(listed(&container.id).await, Some(ContainerState::ContainerRunning));
    // Stopped by another client, which need not have its answer when it is told.
    let stop = tokio::spawn({
        let container = container.through(node.cri());
        async move { container.stop(0).await }
    });
    events.up_to(&container.id, Stopped).await;
    assert_eq!(listed(&container.id).await, Some(ContainerState::ContainerExited));
    stop.await.expect("no panic").expect("stopped");
    container.remove().await.expect("removed");
    events.up_to(&container.id, Deleted).await;
    assert_eq!(listed(&container.id).await, None);
    // Its name is free.
    let again = pod.container("a").forever().create().await.expect("created again");
    events.up_to(&again.id, Created).await;
    node.remove_all().await;
    node.finish().await;
}

/// EVT-06.
#[tokio::test]
async fn events_wait_for_the_first_who_asks() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("a").sh("exit 0").run().await.expect("it runs");
    container.wait_exited().await;
    let mut events = Events::of(node.cri());
    let told: Vec<_> = events.up_to(&container.id, Stopped).await.iter().map(seen).collect();
    let (pod_id, id) = (pod.id.clone(), container.id.clone());
    let want = [
        (pod_id.clone(), Created),
        (pod_id, Started),
        (id.clone(), Created),
        (id.clone(), Started),
        (id, Stopped),
    ];
    assert_eq!(told, want);
    node.remove_all().await;
    node.finish().await;
}
