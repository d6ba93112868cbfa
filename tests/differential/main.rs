//! The same requests to longshore and to containerd's own plugin, side by side on one
//! containerd; then every field of what they made of them.
//!
//! ```text
//! seed ─▶ pods, containers ─┬─▶ longshore ─▶ records, specs, statuses, processes ─┐
//!                           └─▶ plugin    ─▶ records, specs, statuses, processes ─┴▶ compare ─▶ allowed?
//! ```
//! What differs must be in [`allowed`], whose entries are the rows of docs/differences.md.
//!
//! | variable | meaning |
//! |---|---|
//! | `LONGSHORE_TEST_SEED` | which requests; 1 |
//! | `LONGSHORE_TEST_CASES` | how many containers; 320, eight to a pod |
//! | `LONGSHORE_TEST_CONTAINERD` | whose plugin; the newest containerd at hand |

#[allow(dead_code, unused_imports)] // made for the end-to-end tests, which use all of it
#[path = "../e2e/harness/mod.rs"]
mod harness;

mod allowed;
mod containers;
mod document;
mod host;
mod images;
mod normal;
mod pairs;
mod pods;
mod random;
mod sides;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;

use harness::{Beside, Node, Server};
use pairs::{Pair, Report};
use random::Random;
use sides::Side;
use world::World;

/// Containers of one pod.
const CONTAINERS: usize = 8;
/// Pods at a time.
const PODS: usize = 3;

fn number(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number"))
}

/// CTR, OCI and SBX as the plugin has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longshore_makes_of_a_request_what_the_plugin_makes_of_it() {
    let seed = number("LONGSHORE_TEST_SEED", 1);
    let cases = usize::try_from(number("LONGSHORE_TEST_CASES", 320)).expect("a number");
    harness::prefer_newest_containerd();

    // The plugin's configuration names paths of the place that is made with the node.
    let images: Vec<String> =
        images::all().iter().map(|(name, _)| format!("registry.test/{name}:1")).collect();
    let mut world = None;
    // Every other seed has other options.
    let make = |place: &harness::Place| World::make(place, images.clone(), seed.is_multiple_of(2));
    let node = Node::with(Server::BuiltIn)
        .id_mapping_runc()
        .plugin_config(|place| world.insert(make(place)).plugin())
        .start()
        .await;
    let world = world.expect("made with the node");
    images::push(node.registry());
    let beside = Beside::with(&node, &world.longshore(harness::images::PAUSE)).await;
    let pair = pair(&node, &beside, &images).await;

    let pods = cases.div_ceil(CONTAINERS);
    let reports: Vec<Report> = futures_util::stream::iter(0..pods)
        .map(|number| {
            // A pod depends on the seed and its number alone.
            let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            let (pair, world) = (&pair, &world);
            async move { pair.pod(&mut random, world, number, CONTAINERS).await }
        })
        .buffer_unordered(PODS)
        .collect()
        .await;
    let report = reports.into_iter().fold(Report::default(), Report::and);
    println!("seed {seed}, containerd {}: {}", node.containerd_version(), report.summary());
    remove_leftovers();
    world.end();
    let failures = report.failures(seed);
    drop(pair);
    drop(beside);
    assert!(failures.is_empty(), "{failures}");
    node.finish().await;
}

async fn pair(node: &Node, beside: &Beside, images: &[String]) -> Pair {
    let (root, state) = beside.longshore().folders();
    let netns = beside.longshore().netns_dir();
    let mut ours = Side {
        cri: beside.cri().clone(),
        containerd: node.containerd().channel(),
        namespace: "longshore-beside",
        folders: folders(netns, root, state, beside.cri().logs()),
        logs: beside.cri().logs().to_owned(),
        images: BTreeMap::new(),
    };
    let (root, state) = node.containerd().plugin_folders();
    let mut theirs = Side {
        cri: node.cri().clone(),
        containerd: node.containerd().channel(),
        namespace: "k8s.io",
        folders: folders(state.join("netns"), root, state, node.cri().logs()),
        logs: node.cri().logs().to_owned(),
        images: BTreeMap::new(),
    };
    for side in [&mut ours, &mut theirs] {
        side.cri.pull(harness::images::PAUSE).await.expect("the pause image");
        for reference in images {
            let id = side.cri.pull(reference).await.unwrap_or_else(|error| panic!("{reference}: {error}"));
            side.images.insert(reference.clone(), id);
        }
    }
    Pair { ours, theirs, version: node.containerd_version().clone() }
}

/// Folders of a server, and what stands for them. That of its logs is in its place, where
/// runc's is, too.
fn folders(netns: PathBuf, root: PathBuf, state: PathBuf, logs: &Path) -> Vec<(PathBuf, &'static str)> {
    let runc = logs.with_file_name("runc");
    vec![
        (netns, "{netns}"),
        (root, "{root}"),
        (state, "{state}"),
        (logs.to_owned(), "{logs}"),
        (runc, "{runc}"),
    ]
}

/// Parents of cgroups that runc makes and leaves, if nobody else is in there.
fn remove_leftovers() {
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for namespace in ["k8s.io", "longshore-beside"] {
            let _ = std::fs::remove_dir(controller.path().join(namespace));
        }
    }
}
