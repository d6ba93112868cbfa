//! Images: pulled, listed, unpacked, removed.
//!
//! containerd holds everything: records, content, snapshots. In memory there is a table
//! of what can be started here ([`store`]), kept true by looking at a record after every
//! change, ours or another client's ([`load`]). Pulls are our own: a registry client,
//! the content store and the snapshotters, so that they are the same on every version of
//! containerd, and each step can be seen in the trace (design D12). Where containerd is to
//! ask its image verifiers, it pulls by itself ([`transfer`]).
//!
//! ```text
//! pull ─▶ registry ─▶ content store ─▶ unpack ─▶ snapshots
//!   │        (reference, hosts)   (tree: index ▶ manifest ▶ config)
//!   └──▶ records: tag, digest, id ─▶ refresh ─▶ table ─▶ list, status, find
//! ```

mod apply;
mod content;
mod digest;
mod document;
mod extract;
mod fetch;
mod fs_info;
mod load;
mod look;
mod pause;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod remap;
mod remove;
mod status;
mod store;
mod transfer;
mod tree;
mod unpack;
mod users;
mod work;
mod writable;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::warn;

use crate::config::{Config, Puller, Unpacking};
use crate::containerd::{Containerd, Descriptor};
use crate::error::Result;
use crate::flow::{Keyed, Shared};
use crate::spec::ImageConfig;
use reference::Reference;

pub use fs_info::{FsUsage, Measured};
pub use look::{full_name, read_config};
pub use pause::PAUSE_REFERENCE;
pub use progress::{LayerProgress, LayerState, PullState};
pub use pull::Pull;
pub use remap::{is_unfinished_remapping, remapped_name};
pub use work::LEASE_PREFIX;

/// The most layers that are downloaded at the same time, by all pulls together; each
/// takes about half a megabyte of memory.
const DOWNLOADS_MAX: usize = 16;

/// How many layers are extracted at the same time, by all pulls together; each takes a thread.
fn extractions_max() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(2).min(DOWNLOADS_MAX)
}

/// Each `hosts.toml` below `folders`, and how many servers it names or what is wrong with it.
/// Messages hold no secrets. Blocks.
#[must_use]
pub fn read_hosts_files(folders: &[PathBuf]) -> Vec<(PathBuf, Result<usize>)> {
    registry::read_hosts_files(folders)
}

/// An image that this node can start.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The digest of its config, `sha256:…` (IMG-03).
    pub id: String,
    /// The names of its records in containerd, the id among them.
    pub references: Vec<String>,
    /// The name of its snapshot; empty for an image without layers.
    pub chain_id: String,
    /// Bytes of its blobs as they came from the registry.
    pub size: u64,
    /// What its makers say of it: the annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// How its containers start, where the pod does not say.
    pub config: ImageConfig,
    /// Whether the kubelet must not collect it.
    pub pinned: bool,
    /// Index or manifest, as in the record.
    target: Descriptor,
}

/// All images. Cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    containerd: Containerd,
    registry: registry::Registry,
    node: platform::Node,
    table: store::Table,
    leases: work::Leases,
    /// Names that are being looked at.
    names: Keyed,
    /// Snapshots that are being made, by snapshotter and chain id.
    snapshots: Keyed,
    /// Blobs that are being fetched.
    blobs: Keyed,
    /// Downloads of all pulls together.
    downloads: Semaphore,
    /// Extractions of all pulls together.
    extractions: Semaphore,
    pulls: Shared<String>,
    running: progress::Running,
    heard: transfer::Heard,
    accounts: users::AccountsCache,
    usage: fs_info::UsageCache,
    settings: Settings,
}

/// What of the configuration concerns images.
struct Settings {
    /// The default snapshotter.
    snapshotter: String,
    /// All snapshotters that handlers use, the default one first.
    snapshotters: Vec<String>,
    /// The names that are pinned.
    pinned: HashSet<String>,
    /// The configured pause image; none for the built-in one.
    pause: Option<Reference>,
    downloads_max: usize,
    /// How long a pull may stand still.
    progress_limit: Option<Duration>,
    puller: Puller,
    verifier_dir: PathBuf,
    unpacking: Unpacking,
    state: PathBuf,
}

impl Images {
    /// The images of `containerd`. Empty until [`Images::load`].
    #[must_use]
    pub fn new(containerd: Containerd, config: &Config) -> Images {
        Images(Arc::new(Inner {
            containerd,
            registry: registry::Registry::new(config),
            node: platform::Node::this(),
            table: store::Table::default(),
            leases: work::Leases::default(),
            names: Keyed::default(),
            snapshots: Keyed::default(),
            blobs: Keyed::default(),
            downloads: Semaphore::new(DOWNLOADS_MAX),
            extractions: Semaphore::new(extractions_max()),
            pulls: Shared::default(),
            running: progress::Running::default(),
            heard: transfer::Heard::default(),
            accounts: users::AccountsCache::default(),
            usage: fs_info::UsageCache::default(),
            settings: Settings::new(config),
        }))
    }

    /// The image that `text` means: an id, the beginning of one, or a reference, complete
    /// or not (IMG-06).
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        self.0.table.find(text)
    }

    /// The pulls that run, the oldest first.
    #[must_use]
    pub fn running_pulls(&self) -> Vec<PullState> {
        self.0.running.states()
    }

    /// All images, each once (IMG-12).
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.0.table.list()
    }
}

impl Image {
    /// The digest that its record names, of an index or a manifest: `sha256:…`.
    #[must_use]
    pub fn target_digest(&self) -> &str {
        &self.target.digest
    }

    fn new(target: Descriptor, tree: tree::Tree) -> Image {
        Image {
            chain_id: tree.chain_id().to_owned(),
            id: tree.config.digest,
            size: tree.size,
            annotations: tree.annotations,
            config: tree.parsed.config,
            target,
            ..Image::default()
        }
    }
}

impl Settings {
    fn new(config: &Config) -> Settings {
        let image = &config.file.image;
        let mut snapshotters = vec![image.snapshotter.clone()];
        for handler in &config.handlers {
            if !snapshotters.contains(&handler.snapshotter) {
                snapshotters.push(handler.snapshotter.clone());
            }
        }
        let parse = |text: &str| {
            let parsed = Reference::parse(text);
            parsed.inspect_err(|error| warn!(%error, "an image of the configuration has no valid name")).ok()
        };
        let pause = &config.file.sandbox.image;
        let pause = if pause.is_empty() { None } else { parse(pause) };
        let pinned =
            image.pinned.iter().filter_map(|text| parse(text)).map(|reference| reference.to_string());
        let own = pause.as_ref().map_or_else(|| PAUSE_REFERENCE.to_owned(), Reference::to_string);
        Settings {
            snapshotter: image.snapshotter.clone(),
            snapshotters,
            pinned: pinned.chain([own]).collect(),
            pause,
            downloads_max: image.max_concurrent_downloads,
            progress_limit: config.pull_progress_limit(),
            puller: config.puller,
            verifier_dir: image.verifier_dir.clone(),
            unpacking: config.unpacking,
            state: config.file.state.clone(),
        }
    }
}
