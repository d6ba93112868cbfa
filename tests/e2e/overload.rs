//! More than a kubelet ever asks for: thousands of calls at once, clients that do not read,
//! clients that go away, bursts of what takes long. The server stays alive and small, and
//! StopContainer and Status never wait behind others' work.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use longshore::proto::cri::runtime_service_client::RuntimeServiceClient;
use longshore::proto::cri::{
    ContainerState, GetEventsRequest, ListContainersRequest, ListPodSandboxRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StatusRequest, StreamContainersRequest, VersionRequest,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::harness::{Cri, Node, Server, cni, patient, procfs, wait_until};

/// What the server may have at its peak beyond what it had, built for debugging.
const GROWTH_KIB_MAX: u64 = 600 * 1024;
/// Longer than all that is held up here together.
const LIMIT: Duration = Duration::from_secs(240);

async fn node() -> Node {
    Node::with(Server::Longshore).config("[log]\nlevel = \"info\"\n").start().await
}

/// A client with a connection of its own.
fn another(cri: &Cri) -> RuntimeServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", cri.socket().display())).expect("an address");
    RuntimeServiceClient::new(endpoint.timeout(patient(LIMIT)).connect_lazy())
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(patient(LIMIT), work).await;
    ended.unwrap_or_else(|_| panic!("{what} has not ended"))
}

fn assert_small(node: &Node, before: u64) {
    let peak = node.longshore().peak_rss_kib();
    println!("{before} KiB before, {peak} KiB at the peak");
    assert!(peak < before + GROWTH_KIB_MAX, "{before} KiB, then {peak} KiB");
    assert!(node.longshore().is_alive());
    assert!(!node.longshore().log().contains("panicked"));
}

/// 10,000 calls, 50 connections: every one is answered.
#[tokio::test]
async fn ten_thousand_calls_at_once_are_all_answered() {
    const CONNECTIONS: usize = 50;
    const CALLS: usize = 200;
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let before = node.longshore().peak_rss_kib();
    let mut all = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = another(node.cri());
        for number in 0..CALLS {
            let (mut client, id) = (client.clone(), container.id.clone());
            all.spawn(async move {
                match number % 6 {
                    0 => client.version(VersionRequest::default()).await.map(drop),
                    1 => client.status(StatusRequest { verbose: number % 4 == 1 }).await.map(drop),
                    2 => client.list_pod_sandbox(ListPodSandboxRequest::default()).await.map(drop),
                    3 => client.list_containers(ListContainersRequest::default()).await.map(drop),
                    4 => {
                        let request =
                            longshore::proto::cri::ContainerStatusRequest { container_id: id, verbose: true };
                        client.container_status(request).await.map(drop)
                    }
                    // What cannot be.
                    _ => match client.run_pod_sandbox(RunPodSandboxRequest::default()).await {
                        Err(error) if error.code() == Code::InvalidArgument => Ok(()),
                        other => panic!("{other:?}"),
                    },
                }
            });
        }
    }
    let answered: Vec<Result<(), Status>> = within("ten thousand calls", all.join_all()).await;
    assert_eq!(answered.len(), CONNECTIONS * CALLS);
    for answer in answered {
        answer.expect("every call is answered");
    }
    assert_small(&node, before);
    assert_eq!(container.sh("echo inside").await, "inside");
    node.remove_all().await;
    node.finish().await;
}

/// Clients that ask for streams and never read them.
#[tokio::test]
async fn who_does_not_read_costs_little_and_stops_nobody() {
    const STREAMS: usize = 300;
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    for number in 0..4 {
        let container = pod.container(&format!("c{number}"));
        let container =
            container.config(|config| drop(config.annotations.insert("large".into(), "x".repeat(700 << 10))));
        container.create().await.expect("a container");
    }
    let before = node.longshore().peak_rss_kib();
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..STREAMS {
        let mut client = another(node.cri());
        match client.stream_containers(StreamContainersRequest::default()).await {
            Ok(stream) => held.push((client, stream)),
            Err(error) => {
                assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
                refused += 1;
            }
        }
    }
    let mut events = Vec::new();
    for _ in 0..50 {
        let mut client = another(node.cri());
        events.push(client.get_container_events(GetEventsRequest {}).await.expect("a stream"));
    }
    println!("{} streams held, {refused} refused", held.len());
    let container = pod.container("stops").forever().run().await.expect("a container");
    within("StopContainer", container.stop(10)).await.expect("stopped");
    assert_eq!(container.status().await.expect("a status").exit_code, 0);
    assert_small(&node, before);
    drop((held, events));
    // Who goes away makes room.
    within("a place", async {
        let mut client = another(node.cri());
        while client.stream_containers(StreamContainersRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    node.remove_all().await;
    node.finish().await;
}

/// Calls whose clients go away at once, thousands of them: nothing of them stays.
#[tokio::test]
async fn calls_that_are_given_up_leave_nothing() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let before = node.longshore().peak_rss_kib();
    let client = another(node.cri());
    for round in 0..20 {
        let calls = (0..100).map(|number| {
            let (mut client, container) = (client.clone(), container.clone());
            async move {
                let limit = Duration::from_micros(500 * (round + 1));
                let _ = match number % 10 {
                    0 if round % 5 == 0 => {
                        tokio::time::timeout(limit * 20, container.exec(["sleep", "1000"])).await.map(drop)
                    }
                    _ => tokio::time::timeout(limit, client.status(StatusRequest { verbose: true }))
                        .await
                        .map(drop),
                };
            }
        });
        join_all(calls).await;
    }
    // All processes of given-up execs end.
    within("the end of given-up execs", async {
        while processes_of(&node, &container.id) > 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_small(&node, before);
    node.remove_all().await;
    node.finish().await;
}

/// How many processes there are in a container's cgroup.
fn processes_of(node: &Node, id: &str) -> usize {
    let roots = node.place().cgroup_folders();
    let folders = roots.iter().flat_map(|root| procfs::folders_below(root));
    let own = folders.filter(|folder| folder.ends_with(id));
    own.map(|folder| std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines().count())
        .max()
        .unwrap_or(0)
}

/// A registry that takes connections and never answers; it tells of each.
async fn stalling() -> (String, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address").to_string();
    let (arrived, arrivals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
            let _ = arrived.send(());
        }
    });
    (address, arrivals)
}

/// 50 pulls that get no answer and 200 execs that do not end: what must be quick is not held
/// up by them.
#[tokio::test]
async fn stop_and_status_do_not_wait_behind_pulls_and_execs() {
    const PULLS: usize = 50;
    const EXECS: usize = 200;
    let (address, mut arrivals) = stalling().await;
    let builder = Node::with(Server::Longshore).before(|place| {
        let hosts = place.path("certs/stalls.test");
        std::fs::create_dir_all(&hosts).expect("a folder");
        let url = format!("http://{address}");
        let text = format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(hosts.join("hosts.toml"), text).expect("a file");
    });
    let node = builder.config("[log]\nlevel = \"info\"\n").start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let busy = pod.container("busy").forever().run().await.expect("a container");
    let stops = pod.container("stops").forever().run().await.expect("a container");
    let other = node.pod("b").run().await.expect("a pod");
    let before = node.longshore().peak_rss_kib();

    let mut pulls = JoinSet::new();
    for number in 0..PULLS {
        let cri = node.cri().clone();
        pulls.spawn(async move { cri.pull(&format!("stalls.test/image-{number}:1")).await.map(drop) });
    }
    within("a connection to the registry", arrivals.recv()).await.expect("a pull has begun");
    let mut execs = JoinSet::new();
    for _ in 0..EXECS {
        let (mut client, id) = (another(node.cri()), busy.id.clone());
        execs.spawn(async move {
            let cmd = vec!["sleep".to_owned(), "100000".to_owned()];
            let request = longshore::proto::cri::ExecSyncRequest { container_id: id, cmd, timeout: 0 };
            client.exec_sync(request).await.map(drop)
        });
    }
    // While the execs begin, and when they have.
    let begun = Instant::now();
    let mut looks = 0;
    while processes_of(&node, &busy.id) < EXECS / 4 {
        assert!(begun.elapsed() < patient(LIMIT), "execs begin");
        within("Status", node.status(looks % 2 == 0)).await.expect("a status");
        looks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((pulls.len(), execs.len()), (PULLS, EXECS));
    within("StopContainer", stops.stop(10)).await.expect("stopped");
    let status = within("ContainerStatus", stops.status()).await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 0));
    within("Status", node.status(true)).await.expect("a status");
    within("ListContainers", node.containers()).await.expect("containers");
    within("RemoveContainer", stops.remove()).await.expect("removed");
    within("StopPodSandbox", other.stop()).await.expect("stopped");
    within("RemovePodSandbox", other.remove()).await.expect("removed");
    assert!(pulls.try_join_next().is_none(), "all pulls are held up still");
    assert!(execs.try_join_next().is_none(), "all execs run still");
    println!("{} processes; {looks} answers of Status while they began", processes_of(&node, &busy.id));
    assert_small(&node, before);

    // Everything of them goes.
    pulls.shutdown().await;
    within("StopContainer", busy.stop(0)).await.expect("stopped");
    within("the end of all execs", execs.join_all()).await;
    node.remove_all().await;
    node.finish().await;
}

/// SVC-34: giants on the one connection that the kubelet has. Those that wait for their turn hold
/// up nobody else on it.
#[tokio::test]
async fn giants_leave_room_on_their_connection() {
    const GIANTS: usize = 12;
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {folder}/reached\n\
                  until [ -e {folder}/gone-on ]; do sleep 0.05; done\ncat >/dev/null\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"{network}.99/24\"}]}'\n";
    let mut list = cni::bridge();
    list["plugins"].as_array_mut().expect("a list").push(serde_json::json!({ "type": "gate" }));
    let node = Node::with(Server::Longshore).cni(list).plugin("gate", script).start().await;
    let host = node.pod("host").host_network().run().await.expect("a pod");
    let container = host.container("c").forever().run().await.expect("it runs");
    let mut giants = JoinSet::new();
    for number in 0..GIANTS {
        let giant = node.pod(&format!("giant-{number}"));
        let giant = giant.annotations([("large", "x".repeat(2 << 20))]);
        giants.spawn(async move { giant.run().await.expect("a pod").remove().await });
    }
    let reached = node.place().path("reached");
    wait_until("the first giants", async || reached.exists()).await;
    // All of what may come of the others has come after that.
    for _ in 0..20 {
        within("Status", node.status(true)).await.expect("a status");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    within("StopContainer", container.stop(0)).await.expect("stopped");
    std::fs::write(node.place().path("gone-on"), "").expect("a file");
    for removed in giants.join_all().await {
        removed.expect("removed");
    }
    node.remove_all().await;
    node.finish().await;
}

/// Requests of 15 MiB, many at once: each is answered, a few at a time, and others do not wait
/// for them.
#[tokio::test]
async fn giants_are_taken_a_few_at_a_time() {
    const GIANTS: usize = 8;
    const BYTES: usize = 15 << 20;
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let before = node.longshore().peak_rss_kib();
    let mut giants = JoinSet::new();
    for number in 0..GIANTS {
        let mut client = another(node.cri());
        let giant = node.pod(&format!("giant-{number}"));
        let request = giant.annotations([("large", "x".repeat(BYTES))]).request();
        giants.spawn(async move {
            let made = client.run_pod_sandbox(request).await.expect("a pod").into_inner();
            // What is there has its room, in containerd, too.
            let request = RemovePodSandboxRequest { pod_sandbox_id: made.pod_sandbox_id };
            client.remove_pod_sandbox(request).await.expect("removed");
        });
    }
    let mut looks = 0;
    while !giants.is_empty() {
        within("Status", node.status(true)).await.expect("a status");
        within("PodSandboxStatus", pod.status()).await.expect("a status");
        looks += 1;
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(20), giants.join_next()).await {
            ended.expect("no panic");
        }
    }
    println!("{looks} looks meanwhile");
    assert_small(&node, before);
    node.remove_all().await;
    node.finish().await;
}
