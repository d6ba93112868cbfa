//! What is being made or removed is never taken for left, however often is looked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::task::JoinSet;
use tonic::Status;

use super::{looks, repairs, wait_for_looks};
use crate::harness::{Cri, cni, wait_until};

/// How many looks a pod waits for in the middle of its making.
const LOOKS: u64 = 5;
const WORKERS: usize = 4;

/// A CNI plugin that waits in ADD and DEL until the test lets it go.
const GATE: &str = "#!/bin/sh\n[ -e {folder}/open ] || touch {folder}/reached-$CNI_COMMAND\n\
                    until [ -e {folder}/open ]; do sleep 0.05; done\ncat >/dev/null\n\
                    echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"{network}.99/24\"}]}'\n";

/// A pod that stands in CNI ADD, and one that stands in CNI DEL, for many rounds.
#[tokio::test]
async fn a_pod_that_is_made_and_removed_slowly_is_left_alone() {
    let mut list = cni::bridge();
    list["plugins"].as_array_mut().expect("a list").push(json!({ "type": "gate" }));
    let node = super::builder().cni(list).plugin("gate", GATE).start().await;
    let at = |name: &str| node.place().path(name);
    let making = {
        let pod = node.pod("a");
        tokio::spawn(async move { pod.run().await })
    };
    wait_until("ADD", async || at("reached-ADD").exists()).await;
    wait_for_looks(&node, LOOKS).await;
    std::fs::write(at("open"), "").expect("a file");
    let pod = making.await.expect("no panic").expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    std::fs::remove_file(at("open")).expect("removed");
    let removing = {
        let pod = pod.clone();
        tokio::spawn(async move { pod.remove().await })
    };
    wait_until("DEL", async || at("reached-DEL").exists()).await;
    wait_for_looks(&node, LOOKS).await;
    std::fs::write(at("open"), "").expect("a file");
    removing.await.expect("no panic").expect("removed");
    assert_eq!(repairs(&node).await, BTreeMap::new());
    assert!(!node.longshore().log().contains("repaired"));
    node.finish().await;
}

/// Pods and containers come and go all the time while the server looks.
#[tokio::test]
async fn pods_that_come_and_go_are_left_alone() {
    let node = super::node().await;
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("an image");
    let is_over = Arc::new(AtomicBool::new(false));
    let mut lives = JoinSet::new();
    for worker in 0..WORKERS {
        let (cri, is_over) = (node.cri().clone(), is_over.clone());
        lives.spawn(async move {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                let name = format!("pod-{worker}-{number}");
                life(&cri, &name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
                number += 1;
            }
        });
    }
    let end = looks(&node).await + 2 * LOOKS;
    wait_until("many looks", async || looks(&node).await >= end).await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = lives.join_next().await {
        done.expect("no pod fails");
    }
    assert_eq!(repairs(&node).await, BTreeMap::new());
    assert!(!node.longshore().log().contains("could not be repaired"));
    node.finish().await;
}

async fn life(cri: &Cri, name: &str) -> Result<(), Status> {
    let pod = cri.pod(name).run().await?;
    let long = pod.container("long").forever().run().await?;
    let short = pod.container("short").sh("exit 3").run().await?;
    short.stop(10).await?;
    long.exec(["true"]).await?;
    long.stop(0).await?;
    long.remove().await?;
    pod.stop().await?;
    pod.remove().await
}
