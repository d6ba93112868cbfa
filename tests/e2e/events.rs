//! Events where longshore promises more than containerd's plugin (area EVT).

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::proto::cri::ContainerEventType::{
    self, ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};
use longshore::proto::cri::runtime_service_client::RuntimeServiceClient;
use longshore::proto::cri::{ContainerEventResponse, ContainerState, GetEventsRequest, PodSandboxState};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::harness::{Cri, Events, LIMIT, Node, Server, patient, seen, status_in, wait_until};

/// How many containers live in the soak; 1000 take minutes.
const SOAK: &str = "LONGSHORE_TEST_EVENT_CONTAINERS";
const SOAK_CONTAINERS: usize = 12;
/// Lives at the same time.
const AT_A_TIME: usize = 6;
/// From so many on the one that is stuck has lost some: what the server keeps for him is less
/// than their events.
const SURELY_LOST: usize = 1000;
/// The least that HTTP/2 has.
const WINDOW_BYTES: u32 = 65_535;

async fn node() -> Node {
    Node::with(Server::Longshore).start().await
}

/// A client with a connection of its own.
fn another(node: &Node) -> Cri {
    Cri::new(node.cri().socket(), node.place())
}

/// A subscriber whose connection takes little in by itself, as gRPC allows it: what he does
/// not read is soon the server's to keep.
async fn with_a_small_window(node: &Node) -> tonic::Streaming<ContainerEventResponse> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", node.cri().socket().display()));
    let endpoint = endpoint.expect("an address").initial_stream_window_size(WINDOW_BYTES);
    let channel = endpoint.initial_connection_window_size(WINDOW_BYTES).connect().await.expect("connected");
    let mut client = RuntimeServiceClient::new(channel);
    client.get_container_events(GetEventsRequest {}).await.expect("a stream").into_inner()
}

/// EVT-05: the plugin tells nothing of it.
#[tokio::test]
async fn a_failed_start_is_an_end() {
    let node = node().await;
    let mut events = Events::of(node.cri()).subscribed().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("a").command(["/no/such/program"]).create().await.expect("created");
    container.start().await.expect_err("it cannot start");
    container.remove().await.expect("removed");
    let told = events.up_to(&container.id, Deleted).await;
    let own: Vec<_> = told.iter().filter(|event| event.container_id == container.id).collect();
    let kinds: Vec<_> = own.iter().map(|event| event.container_event_type()).collect();
    assert_eq!(kinds, [Created, Stopped, Deleted]);
    let shown = status_in(own[1], &container.id).expect("the container");
    assert_eq!((shown.state(), shown.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
    assert!(!shown.message.is_empty());
    node.remove_all().await;
    node.finish().await;
}

/// EVT-04.
#[tokio::test]
async fn an_end_for_memory_is_told_with_its_reason() {
    let node = node().await;
    let mut events = Events::of(node.cri()).subscribed().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("eater").command(["tail", "/dev/zero"]);
    let container = container.resources(|resources| resources.memory_limit_in_bytes = 32 << 20).run().await;
    let container = container.expect("a container");
    let told = events.up_to(&container.id, Stopped).await;
    let shown = status_in(told.last().expect("an event"), &container.id).expect("the container");
    assert_eq!((shown.exit_code, shown.reason.as_str()), (137, "OOMKilled"));
    node.remove_all().await;
    node.finish().await;
}

/// The process of a container is killed from outside, and is gone.
async fn kill_process(pid: u64) {
    let pid = i32::try_from(pid).expect("a pid");
    let process = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
    wait_until("the end of the process", async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    })
    .await;
}

async fn pid_of(container: &crate::harness::Container) -> u64 {
    container.info().await["pid"].as_u64().expect("a pid")
}

/// REC-05, REC-18: what ends while the server or containerd is down is told when it is found,
/// what was told before is not told again.
#[tokio::test]
async fn ends_that_nobody_saw_are_told_when_they_are_found() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let steady = pod.container("steady").forever().run().await.expect("it runs");
    let one = pod.container("one").forever().run().await.expect("it runs");
    let two = pod.container("two").forever().run().await.expect("it runs");
    let (one_pid, two_pid) = (pid_of(&one).await, pid_of(&two).await);
    let pause = pod.info().await["pid"].as_u64().expect("a pid");

    node.longshore().kill().await;
    kill_process(one_pid).await;
    node.longshore().start().await;
    let mut events = Events::of(node.cri()).subscribed().await;
    let event = events.next().await;
    assert_eq!(seen(&event), (one.id.clone(), Stopped));
    assert_eq!(status_in(&event, &one.id).map(|shown| shown.exit_code), Some(137));
    assert_eq!(event.containers_statuses.len(), 3, "{event:?}");
    let shown = event.pod_sandbox_status.as_ref().expect("the pod");
    assert_eq!((shown.id.as_str(), shown.state()), (pod.id.as_str(), PodSandboxState::SandboxReady));

    node.containerd().kill().await;
    kill_process(two_pid).await;
    node.containerd().start().await;
    let event = events.next().await;
    assert_eq!(seen(&event), (two.id.clone(), Stopped));
    assert_eq!(
        status_in(&event, &steady.id).map(|shown| shown.state()),
        Some(ContainerState::ContainerRunning)
    );

    node.longshore().kill().await;
    kill_process(pause).await;
    node.longshore().start().await;
    let mut events = Events::of(node.cri()).subscribed().await;
    // The server may have been killed before it could note that it had told of the other end.
    let event = events.up_to(&pod.id, Stopped).await.pop().expect("an event");
    let shown = event.pod_sandbox_status.as_ref().expect("the pod");
    assert_eq!(shown.state(), PodSandboxState::SandboxNotready);
    pod.remove().await.expect("removed");
    let kinds = events.up_to(&pod.id, Deleted).await;
    let kinds: Vec<_> = kinds.iter().map(seen).filter(|(id, _)| *id == pod.id).collect();
    assert_eq!(kinds, [(pod.id.clone(), Deleted)]);
    node.finish().await;
}

/// SVC-36: subscribers do not hold up the end of the server.
#[tokio::test]
async fn the_end_of_the_server_ends_the_stream() {
    let node = node().await;
    let mut events = Events::of(node.cri()).subscribed().await;
    node.longshore().terminate().await;
    let end = events.next_or_end().await.expect("an answer").expect_err("no event");
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "the server is stopping"));
    node.finish().await;
}

/// EVT-01, EVT-05, EVT-07: many containers live at the same time, and of three subscribers one
/// reads nothing. The others see every event once, each container's in order.
#[tokio::test]
async fn a_subscriber_that_is_stuck_holds_up_nobody() {
    let count: usize = std::env::var(SOAK).map_or(SOAK_CONTAINERS, |count| count.parse().expect("a number"));
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let (first, second) = (another(&node), another(&node));
    let mut first = Events::of(&first).subscribed().await;
    let mut second = Events::of(&second).subscribed().await;
    let mut stuck = with_a_small_window(&node).await;
    // Those that were kept while nobody was there went to the first.
    first.up_to(&pod.id, Started).await;

    let mut lives = JoinSet::new();
    for worker in 0..AT_A_TIME {
        let pod = node.pod(&format!("worker-{worker}")).run().await.expect("a pod");
        lives.spawn(async move {
            let mut ids = Vec::new();
            for number in (worker..count).step_by(AT_A_TIME) {
                ids.push(life(&pod, number).await.unwrap_or_else(|error| panic!("{number}: {error:?}")));
            }
            ids
        });
    }
    let mut ids = Vec::new();
    while let Some(life) = lives.join_next().await {
        ids.extend(life.expect("no container fails"));
    }
    assert_eq!(ids.len(), count);
    pod.remove().await.expect("removed");

    let all = [Created, Started, Stopped, Deleted];
    for events in [&mut first, &mut second] {
        let mut told: BTreeMap<String, Vec<ContainerEventType>> = BTreeMap::new();
        let mut last = 0;
        for event in events.up_to(&pod.id, Deleted).await {
            assert!(event.created_at >= last, "{event:?}");
            last = event.created_at;
            let (id, kind) = seen(&event);
            told.entry(id).or_default().push(kind);
        }
        for id in &ids {
            assert_eq!(told.get(id).map(Vec::as_slice), Some(&all[..]), "{id}");
        }
    }
    if count >= SURELY_LOST {
        let end: Status = loop {
            let message = tokio::time::timeout(patient(LIMIT), stuck.message()).await;
            match message.expect("the events that he has, and then the end") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(error) => break error,
            }
        };
        assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
        assert!(end.message().contains("events were lost"), "{end:?}");
        println!("{count} containers; the stuck subscriber was told: {}", end.message());
    }
    node.remove_all().await;
    node.finish().await;
}

async fn life(pod: &crate::harness::Pod, number: usize) -> Result<String, Status> {
    let container = pod.container(&format!("c{number}")).command(["true"]).run().await?;
    while container.status().await?.state() != ContainerState::ContainerExited {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    container.remove().await?;
    Ok(container.id)
}
