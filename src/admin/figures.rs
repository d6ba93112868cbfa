//! How things stand, for whoever reads the metrics.

use std::time::Duration;

use crate::containerd::Link;
use crate::pod::Pods;
use crate::proto::cri::ContainerState;
use crate::sys::usage;
use crate::telemetry::{LogTotals, Snapshot};

/// How long the keeper may take to tell of itself; without it the rest is shown.
const KEEPER_LIMIT: Duration = Duration::from_secs(1);

/// Looks at everything.
pub async fn figures(pods: &Pods) -> Snapshot {
    let parts = &pods.containers;
    let totals = tokio::time::timeout(KEEPER_LIMIT, parts.keeper.totals()).await;
    let totals = totals.ok().and_then(Result::ok);
    let mut processes = vec![("server", usage::of(std::process::id()))];
    processes.extend(totals.map(|totals| ("keeper", usage::of(totals.pid))));
    Snapshot {
        pods: pods_by_state(pods),
        containers: containers_by_state(pods),
        images: parts.images.list().len(),
        is_connected: matches!(parts.containerd.link(), Link::Up(_)),
        subscribers: parts.events.subscribers(),
        logs: totals.map(|totals| LogTotals {
            written_bytes: totals.written_bytes,
            lost_entries: totals.lost_entries,
            lost_bytes: totals.lost_bytes,
            write_errors: totals.write_errors,
        }),
        processes: processes.into_iter().filter_map(|(name, usage)| Some((name, usage?))).collect(),
    }
}

fn pods_by_state(pods: &Pods) -> Vec<(&'static str, usize)> {
    let all = pods.containers.store.pods();
    let ready = all.iter().filter(|pod| pod.status().ready).count();
    vec![("ready", ready), ("notready", all.len() - ready)]
}

fn containers_by_state(pods: &Pods) -> Vec<(&'static str, usize)> {
    let states: Vec<_> = pods.containers.store.containers().iter().map(|one| one.state()).collect();
    let count = |state| states.iter().filter(|one| **one == state).count();
    vec![
        ("created", count(ContainerState::ContainerCreated)),
        ("running", count(ContainerState::ContainerRunning)),
        ("exited", count(ContainerState::ContainerExited)),
        ("unknown", count(ContainerState::ContainerUnknown)),
    ]
}
