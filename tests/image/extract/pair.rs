//! The two ways to unpack, in two namespaces of one containerd.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use longshore::config::{Puller, Unpacking};
use longshore::containerd::Containerd;
use longshore::image::{Images, Pull};
use longshore::proto::cri;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::listing::listing;
use crate::fixture::{self, Blob, digest};
use crate::node::{LIMIT, Node};
use crate::registry::Registry;

pub(crate) const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// How often longshore unpacked a layer itself, by digest.
static UNPACKED: LazyLock<Mutex<HashMap<String, usize>>> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::registry().with(Unpacked);
    tracing::subscriber::set_global_default(subscriber).expect("no other test has one");
    Mutex::default()
});

/// Counts the events that say so.
struct Unpacked;

#[derive(Default)]
struct Fields {
    layer: String,
    by: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "layer" => value.clone_into(&mut self.layer),
            "by" => value.clone_into(&mut self.by),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Unpacked {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("longshore::image") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.by == "longshore" {
            *UNPACKED.lock().expect("no panic").entry(fields.layer).or_default() += 1;
        }
    }
}

pub(crate) struct Pair {
    pub(crate) node: Node,
    registry: Registry,
    theirs: Images,
    peer: Containerd,
    start: i64,
    count: usize,
}

/// The folders of an image's layers, or why there are none.
pub(crate) type Outcome = Result<Vec<Vec<String>>, String>;

/// What became of an image.
pub(crate) struct Outcomes {
    pub(crate) ours: Outcome,
    pub(crate) theirs: Outcome,
    /// How many layers longshore unpacked itself.
    pub(crate) unpacked: usize,
}

impl Pair {
    /// None, after saying why, where there can be none.
    pub(crate) async fn start() -> Option<Pair> {
        LazyLock::force(&UNPACKED);
        let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return None };
        let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let peer = node.client_of("peer");
        let mut config = node.config.clone();
        config.unpacking = Unpacking::Containerd;
        // Nobody connects the peer's client, which then knows nothing of containerd's own puller.
        config.puller = Puller::Client;
        let theirs = Images::new(peer.clone(), &config);
        Some(Pair { theirs, peer, start: i64::try_from(start).expect("small"), count: 0, node, registry })
    }

    /// Unpacks an image of these plain layers in both ways.
    pub(crate) async fn unpack(&mut self, layers: &[Vec<u8>], snapshotter: &str) -> Outcomes {
        let blobs = layers.iter().map(|data| {
            // Something behind the end, so that no other image has the same layer.
            let mut data = data.clone();
            if data.ends_with(&[0; 1024]) {
                self.count += 1;
                data.extend_from_slice(format!("{} {snapshotter}", self.count).as_bytes());
            }
            let diff_id = digest(&data);
            (Blob { media_type: PLAIN.into(), data, urls: Vec::new() }, diff_id)
        });
        let blobs: Vec<_> = blobs.collect();
        self.unpack_blobs(blobs, snapshotter).await
    }

    /// The same with blobs and their diff ids.
    pub(crate) async fn unpack_blobs(&mut self, blobs: Vec<(Blob, String)>, snapshotter: &str) -> Outcomes {
        self.count += 1;
        let tag = self.count.to_string();
        let image = fixture::image(blobs);
        self.registry.push("a", &tag, &image);
        let name = self.registry.name(&format!("a:{tag}"));
        let count = || {
            let known = UNPACKED.lock().expect("no panic");
            image.layers.iter().filter_map(|layer| known.get(&layer.digest())).sum::<usize>()
        };
        let before = count();
        let theirs = self.pull(&self.theirs, &self.peer, &name, snapshotter).await;
        let ours = self.pull(&self.node.images, &self.node.containerd, &name, snapshotter).await;
        Outcomes { ours, theirs, unpacked: count() - before }
    }

    async fn pull(&self, images: &Images, client: &Containerd, name: &str, snapshotter: &str) -> Outcome {
        let image = cri::ImageSpec { image: name.into(), ..Default::default() };
        let pull = Pull { image, auth: None, snapshotter: snapshotter.into() };
        let pulled = tokio::time::timeout(LIMIT, images.pull(&self.node.flow, pull)).await;
        let id = pulled.expect("a pull ends").map_err(|error| error.to_string())?;
        let chain_id = images.find(&id).expect("listed").chain_id.clone();
        let mounts = client.view_snapshot(snapshotter, "view", &chain_id, None).await.expect("a view");
        let [mount] = &mounts[..] else { panic!("{mounts:?}") };
        let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        let folders = lower.unwrap_or(&mount.source).split(':').map(PathBuf::from);
        let lists = folders.map(|folder| listing(&folder, self.start)).collect();
        client.remove_snapshot(snapshotter, "view").await.expect("removed");
        Ok(lists)
    }
}

impl Outcomes {
    /// Panics unless both came to the same.
    pub(crate) fn must_be_equal(&self, case: &str) {
        match (&self.ours, &self.theirs) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {}
            (Err(_), Err(_)) => {}
            (Ok(ours), Ok(theirs)) => {
                let mut text = String::new();
                for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                    for (sign, these, others) in [('+', ours, theirs), ('-', theirs, ours)] {
                        for line in these.iter().filter(|line| !others.contains(line)) {
                            text += &format!("{sign} {index} {line}\n");
                        }
                    }
                }
                panic!("{case}: longshore (+) and containerd (-) differ:\n{text}");
            }
            (ours, theirs) => panic!("{case}: longshore {ours:#?}\ncontainerd {theirs:#?}"),
        }
    }
}

/// The folders in which the snapshots of a node are.
pub(crate) fn snapshots_of(node: &Path, snapshotter: &str) -> PathBuf {
    node.join(format!("root/io.containerd.snapshotter.v1.{snapshotter}/snapshots"))
}
