//! From the target of an image's name to what this node runs of it.
//!
//! The target is a manifest, or an index from which the manifest of the best platform
//! is taken (IMG-16). A manifest without a platform in its index is judged by its
//! config. The same walk serves a pull, which fetches what the store lacks and keeps it
//! under the pull's lease, and everything later, which only reads the store.

use std::collections::{BTreeMap, HashMap, VecDeque};

use http::Uri;

use super::content;
use super::digest::chain_ids;
use super::document::{
    self, CONFIG_BYTES_MAX, Config, Document, Entry, MANIFEST_BYTES_MAX, Manifest, is_config, is_layer,
};
use super::platform::Node;
use super::reference::Reference;
use super::registry::{self, Repository};
use super::work::Work;
use crate::containerd::{Containerd, Descriptor};
use crate::error::{Error, Kind, Result, invalid, precondition};

/// The most documents that one walk reads.
const DOCUMENTS_MAX: usize = 16;
/// The most platforms that an error names.
const PLATFORMS_NAMED_MAX: usize = 20;

/// An image of this node's platform.
#[derive(Debug)]
pub(super) struct Tree {
    /// The manifest.
    pub(super) manifest: Descriptor,
    /// Its config, whose digest is the image id.
    pub(super) config: Descriptor,
    /// Its layers, lowest first.
    pub(super) layers: Vec<Descriptor>,
    /// Where layers lie besides the registry, by digest.
    pub(super) elsewhere: HashMap<String, Vec<Uri>>,
    /// What the manifest's makers say of it.
    pub(super) annotations: BTreeMap<String, String>,
    /// The names of the layers' snapshots.
    pub(super) chain_ids: Vec<String>,
    /// The digests of the layers as plain tar.
    pub(super) diff_ids: Vec<String>,
    /// The config as read.
    pub(super) parsed: Config,
    /// Bytes of all its blobs (IMG-08).
    pub(super) size: u64,
}

/// Where the documents come from.
pub(super) enum Source<'a> {
    /// containerd's content store alone.
    Store,
    /// The store, and for what it lacks a registry.
    Registry { repository: &'a Repository, reference: &'a Reference, work: &'a Work },
}

/// Walks from `target` to the image that `node` runs.
///
/// # Errors
/// NotFound when a document is missing; FailedPrecondition without a matching platform;
/// InvalidArgument for what is not an image.
pub(super) async fn walk(
    containerd: &Containerd,
    source: &Source<'_>,
    node: &Node,
    target: &Descriptor,
) -> Result<Tree> {
    let mut size = 0;
    let mut rejected = Vec::new();
    // Documents to be looked at; the flag says whether the config decides.
    let mut queue = VecDeque::from([(target.clone(), false)]);
    for _ in 0..DOCUMENTS_MAX {
        let Some((descriptor, by_config)) = queue.pop_front() else { break };
        let (descriptor, document) = source.document(containerd, descriptor).await?;
        size += bytes(&descriptor);
        match document {
            Document::Index(entries) => {
                let (best, others) = choose(node, entries);
                rejected.extend(others);
                for entry in best.into_iter().rev() {
                    queue.push_front((entry.descriptor, entry.platform.is_none()));
                }
            }
            Document::Manifest(manifest) => {
                let config = source.config(containerd, &manifest.config).await?;
                if by_config && node.rank(&config.platform()).is_none() {
                    rejected.push(config.platform().to_string());
                    continue;
                }
                return tree(descriptor, manifest, config, size);
            }
        }
    }
    rejected.truncate(PLATFORMS_NAMED_MAX);
    Err(precondition(format!(
        "no matching platform: this node runs {}, the image has {}",
        node.own(),
        if rejected.is_empty() { "none".to_owned() } else { rejected.join(", ") },
    )))
}

/// The entry of the best platform, or those whose platform is not told; and the
/// platforms of all others.
fn choose(node: &Node, entries: Vec<Entry>) -> (Vec<Entry>, Vec<String>) {
    let (mut best, mut untold, mut others) = (None::<(usize, Entry)>, Vec::new(), Vec::new());
    for entry in entries {
        let Some(platform) = &entry.platform else {
            untold.push(entry);
            continue;
        };
        match node.rank(platform) {
            Some(rank) if best.as_ref().is_none_or(|(other, _)| rank < *other) => best = Some((rank, entry)),
            Some(_) => {}
            None => others.push(platform.to_string()),
        }
    }
    untold.truncate(DOCUMENTS_MAX);
    (best.map_or(untold, |(_, entry)| vec![entry]), others)
}

fn tree(manifest: Descriptor, parts: Manifest, config: Config, above: u64) -> Result<Tree> {
    let what = || format!("the image of manifest {}", manifest.digest);
    if let Some(other) = parts.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(invalid(format!("{}: a layer is of type {:?}", what(), other.media_type)));
    }
    let diff_ids = config.rootfs.diff_ids.clone();
    if diff_ids.len() != parts.layers.len() {
        return Err(invalid(format!(
            "{}: its config knows {} layers, its manifest {}",
            what(),
            diff_ids.len(),
            parts.layers.len()
        )));
    }
    let size =
        parts.layers.iter().chain([&parts.config]).fold(above, |sum, part| sum.saturating_add(bytes(part)));
    Ok(Tree {
        manifest,
        config: parts.config,
        layers: parts.layers,
        elsewhere: parts.elsewhere,
        annotations: parts.annotations,
        chain_ids: chain_ids(&diff_ids),
        diff_ids,
        parsed: config,
        size,
    })
}

fn bytes(descriptor: &Descriptor) -> u64 {
    u64::try_from(descriptor.size).unwrap_or(0)
}

impl Tree {
    /// The name of the whole image's snapshot; empty for an image without layers.
    pub(super) fn chain_id(&self) -> &str {
        self.chain_ids.last().map(String::as_str).unwrap_or_default()
    }
}

impl Source<'_> {
    /// Reads an index or manifest; its media type is what it turns out to be.
    async fn document(
        &self,
        containerd: &Containerd,
        mut descriptor: Descriptor,
    ) -> Result<(Descriptor, Document)> {
        let data = self.read(containerd, registry::Kind::Manifest, &descriptor, MANIFEST_BYTES_MAX).await?;
        let (shape, document) = document::parse(&descriptor, &data)?;
        descriptor.media_type = document::media_type(&descriptor.media_type, shape, &data);
        self.keep(containerd, &descriptor, data, Some(&document)).await?;
        Ok((descriptor, document))
    }

    async fn config(&self, containerd: &Containerd, descriptor: &Descriptor) -> Result<Config> {
        if !is_config(&descriptor.media_type) {
            return Err(invalid(format!(
                "it is not a container image: its config is of type {:?}",
                descriptor.media_type
            )));
        }
        let data = self.read(containerd, registry::Kind::Blob, descriptor, CONFIG_BYTES_MAX).await?;
        let config = document::parse_config(&descriptor.digest, &data)?;
        self.keep(containerd, descriptor, data, None).await?;
        Ok(config)
    }

    async fn read(
        &self,
        containerd: &Containerd,
        kind: registry::Kind,
        descriptor: &Descriptor,
        bytes_max: usize,
    ) -> Result<Vec<u8>> {
        if descriptor.size > i64::try_from(bytes_max).unwrap_or(i64::MAX) {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("{} has {} bytes, more than {bytes_max}", descriptor.digest, descriptor.size),
            ));
        }
        match (content::read(containerd, &descriptor.digest, bytes_max).await, self) {
            (Err(error), Source::Registry { repository, .. }) if error.is_not_found() => {
                repository.small(kind, descriptor, bytes_max).await
            }
            (result, _) => result,
        }
    }

    /// Keeps what a pull needs: in the store, under its lease, with its labels.
    async fn keep(
        &self,
        containerd: &Containerd,
        descriptor: &Descriptor,
        data: Vec<u8>,
        document: Option<&Document>,
    ) -> Result<()> {
        let Source::Registry { reference, work, .. } = self else { return Ok(()) };
        let labels = document.map(content::child_labels).unwrap_or_default();
        content::put(containerd, work, descriptor, data, labels, Some(reference)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::platform::Platform;

    fn entry(digest: &str, platform: Option<(&str, &str)>) -> Entry {
        Entry {
            descriptor: Descriptor { digest: digest.into(), ..Default::default() },
            platform: platform.map(|(architecture, variant)| Platform {
                os: "linux".into(),
                architecture: architecture.into(),
                variant: variant.into(),
                os_features: Vec::new(),
            }),
        }
    }

    #[test]
    fn the_best_platform_is_chosen_and_the_others_are_told() {
        let node = Node::this();
        let own = node.own().architecture.clone();
        let names = |chosen: &[Entry]| -> Vec<String> {
            chosen.iter().map(|entry| entry.descriptor.digest.clone()).collect()
        };
        let (chosen, others) = choose(
            &node,
            vec![
                entry("untold", None),
                entry("s390x", Some(("s390x", ""))),
                entry("own", Some((&own, ""))),
                entry("own again", Some((&own, ""))),
            ],
        );
        assert_eq!((names(&chosen), others), (vec!["own".to_owned()], vec!["linux/s390x".to_owned()]));
        let (chosen, _) =
            choose(&node, vec![entry("a", None), entry("mips", Some(("mips", ""))), entry("b", None)]);
        assert_eq!(names(&chosen), ["a", "b"]);
    }
}
