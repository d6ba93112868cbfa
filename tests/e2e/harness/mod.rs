//! A node of a test's own: containerd, CNI, a registry, and a CRI server under test.
//!
//! ```text
//! Node ── derefs to ──▶ Cri ─▶ PodBuilder ─▶ Pod ─▶ ContainerBuilder ─▶ Container
//!  ├─ Place       folder, bridge, subnet, cgroup: nobody else's (Slot)
//!  ├─ Containerd  a process of its own, and clients of its API
//!  ├─ Longshore   the server as a process; absent where the plugin is under test
//!  └─ Registry    one a test process
//! ```
//! [`Node::finish`] stops everything and looks for what was left behind; dropping a node
//! only cleans up. What differs between machines comes from the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `LONGSHORE_TEST_SERVER` | `longshore` or `built-in`: the server of [`Node::start`] |
//! | `LONGSHORE_TEST_CONTAINERD` | containerd's binary, or the folder it is in |
//! | `LONGSHORE_TEST_RUNC_DIR` | a folder that goes before the PATH |
//! | `LONGSHORE_TEST_NEW_RUNC_DIR` | where the tests run alone: the folder of a runc with id-mapped mounts |
//! | `LONGSHORE_TEST_CNI` | the folder of CNI plugins; `/usr/lib/cni` |
//! | `LONGSHORE_TEST_LOG` | the log level of longshore; debug |
//! | `LONGSHORE_TEST_CGROUP_DRIVER` | `cgroupfs` or `systemd`, of servers and cgroup parents; cgroupfs |
//! | `LONGSHORE_TEST_PATIENCE` | how many times as long as usual everything may take; 1 |
//! | `LONGSHORE_TEST_CHAOS` | how many points of each call are tried: a number (1) or `all` |
//! | `LONGSHORE_TEST_SEED` | what chance begins with |
//! | `LONGSHORE_TEST_EVENT_CONTAINERS` | how many containers live for the subscribers of events; 12 |

mod behind;
mod beside;
mod builder;
mod chance;
pub(crate) mod cni;
pub(crate) mod collector;
mod container;
mod containerd;
mod cri;
mod events;
mod fetched;
pub(crate) mod images;
mod leaks;
mod longshore;
mod machine;
mod node;
mod place;
mod pod;
mod process;
pub(crate) mod procfs;
mod proxy;
mod registry;
mod runc;
mod slot;
pub(crate) mod spdy;

use std::time::{Duration, Instant};

pub(crate) use beside::Beside;
pub(crate) use builder::{Builder, Server};
pub(crate) use chance::Chance;
pub(crate) use container::{Container, ContainerBuilder, LogEntry, image_mount};
pub(crate) use containerd::{Containerd, Version, fetched_containerd, prefer_newest_containerd};
pub(crate) use cri::Cri;
pub(crate) use events::{Events, Seen, seen, status_in};
pub(crate) use fetched::fetched;
pub(crate) use leaks::stored;
pub(crate) use longshore::Longshore;
pub(crate) use machine::{CgroupDriver, has_crun, patient};
pub(crate) use node::Node;
pub(crate) use place::Place;
pub(crate) use pod::{Pod, PodBuilder, id_mappings};
pub(crate) use process::{Process, command, tail};
pub(crate) use proxy::Proxy;
pub(crate) use registry::Registry;

/// Longer than anything here takes on a busy machine, shorter than the patience of who waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How often something that is waited for is looked at.
const PAUSE: Duration = Duration::from_millis(15);

/// Waits until `probe` gives something; `what` is named when it does not come in time.
pub(crate) async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + patient(LIMIT);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `probe` is true.
pub(crate) async fn wait_until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    wait_for(what, async || probe().await.then_some(())).await;
}
