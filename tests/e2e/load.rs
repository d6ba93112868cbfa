//! Many pods at a time, and kills in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use longshore::proto::cri::ContainerState;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::{Cri, Node, Server};

const PODS: usize = 100;
const AT_A_TIME: usize = 10;
/// What the server may need at its peak.
const PEAK_KIB: u64 = 30 * 1024;

/// 100 pods, ten at a time, each through its whole life: none fails, nothing is left, and
/// the server stays small.
#[tokio::test]
async fn a_hundred_pods_ten_at_a_time() {
    let node = Node::with(Server::Longshore).start().await;
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("an image");
    let mut lives = JoinSet::new();
    for worker in 0..AT_A_TIME {
        let cri = node.cri().clone();
        lives.spawn(async move {
            for pod in 0..PODS / AT_A_TIME {
                let name = format!("pod-{worker}-{pod}");
                life(&cri, &name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            }
        });
    }
    while let Some(done) = lives.join_next().await {
        done.expect("no pod fails");
    }
    let peak = node.longshore().peak_rss_kib();
    println!("peak of the server: {peak} KiB");
    // Debug builds need more; what counts is what is shipped.
    if !cfg!(debug_assertions) {
        assert!(peak < PEAK_KIB, "{peak} KiB");
    }
    node.finish().await;
}

async fn life(cri: &Cri, name: &str) -> Result<(), Status> {
    let pod = cri.pod(name).run().await?;
    let container = pod.container("c").sh("echo hello; exec sleep 1000").run().await?;
    let status = container.status().await?;
    assert_eq!(status.state, ContainerState::ContainerRunning as i32);
    container.stop(0).await?;
    container.remove().await?;
    pod.stop().await?;
    pod.remove().await
}

/// SIGKILL at any moment of pods' lives: what runs goes on running, every exit is known,
/// nothing is left over.
#[tokio::test]
async fn kills_at_any_moment_lose_and_leave_nothing() {
    const KILLS: u64 = 12;
    let node = Node::with(Server::Longshore).start().await;
    let steady = node.pod("steady").run().await.expect("a pod");
    let runs = steady.container("runs").forever().run().await.expect("it runs");
    let before = runs.status().await.expect("a status");
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::new(AtomicUsize::new(0));
    let mut lives = JoinSet::new();
    for worker in 0..3 {
        let (cri, over, ended) = (node.cri().clone(), over.clone(), ended.clone());
        lives.spawn(async move {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                match short_life(&cri, &format!("pod-{worker}-{number}")).await {
                    Ok(()) => ended.fetch_add(1, Ordering::Relaxed),
                    // The server is gone, or not back yet.
                    Err(error) => {
                        let fine = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
                        assert!(fine.contains(&error.code()), "{error:?}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        0
                    }
                };
            }
        });
    }
    for kill in 0..KILLS {
        // Spread over all that a pod's life takes.
        tokio::time::sleep(Duration::from_millis(150 + kill * 37 % 400)).await;
        node.longshore().kill().await;
        node.longshore().start().await;
        let after = runs.status().await.expect("a status");
        assert_eq!(after, before, "after kill {kill}");
    }
    over.store(true, Ordering::Relaxed);
    while let Some(done) = lives.join_next().await {
        done.expect("only the server's absence fails a pod");
    }
    println!("{} pods lived whole lives between {KILLS} kills", ended.load(Ordering::Relaxed));
    // Every exit is known: no container is in a state that nobody saw.
    for container in node.containers().await.expect("containers") {
        let status =
            node.container_status(&container.id, false).await.expect("an answer").status.expect("a status");
        assert_ne!(status.reason, "Unknown", "{status:?}");
        assert_ne!(status.state, ContainerState::ContainerUnknown as i32, "{status:?}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// A pod with a container that ends by itself with a code of its own.
async fn short_life(cri: &Cri, name: &str) -> Result<(), Status> {
    let pod = cri.pod(name).run().await?;
    let container = pod.container("c").sh("echo hello; exit 9").run().await?;
    loop {
        let status = container.status().await?;
        if status.state == ContainerState::ContainerExited as i32 {
            assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    container.remove().await?;
    pod.stop().await?;
    pod.remove().await
}
