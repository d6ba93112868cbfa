//! How an image's parts lie in containerd's content store.
//!
//! The labels are those that containerd's own client sets, so that its collector keeps
//! an image of ours exactly as one of its own: an index holds its manifests, a manifest
//! its config and layers (`containerd.io/gc.ref.content.*`), the config its snapshots
//! (`containerd.io/gc.ref.snapshot.*`). Every blob also remembers the repositories that
//! it came from (`containerd.io/distribution.source.*`).
//!
//! Every writer is opened under the lease of the work, even for a blob that is there
//! already: containerd then puts the existing blob under the lease, too.

use std::collections::HashMap;
use std::time::Duration;

use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use super::digest;
use super::document::{self, Document, Shape};
use super::reference::Reference;
use super::work::Work;
use crate::containerd::{Containerd, ContentWriter, Descriptor};
use crate::error::{Context, Kind, Result, deadline, internal, unknown};

/// The most bytes of a label, key and value together, that containerd takes.
const LABEL_BYTES_MAX: usize = 4096;
/// How long another writer of the same blob is waited for.
const TAKEN_LIMIT: Duration = Duration::from_secs(600);
/// The longest pause between two looks at it.
const TAKEN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The name of a blob's ingest: all clients use the same, so that two of them do not
/// fetch the same blob at the same time.
pub(super) fn ingest_reference(descriptor: &Descriptor) -> String {
    let kind = match Shape::of(&descriptor.media_type) {
        Some(Shape::Index) => "index",
        Some(Shape::Manifest) => "manifest",
        None if document::is_layer(&descriptor.media_type) => "layer",
        None if document::is_config(&descriptor.media_type) => "config",
        None => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}

/// The labels by which a document holds its children.
pub(super) fn child_labels(document: &Document) -> HashMap<String, String> {
    let label =
        |what: String, digest: &str| (format!("containerd.io/gc.ref.content.{what}"), digest.to_owned());
    match document {
        Document::Index(entries) => {
            let (manifests, others): (Vec<_>, Vec<_>) = entries
                .iter()
                .map(|entry| &entry.descriptor)
                .partition(|child| Shape::of(&child.media_type) == Some(Shape::Manifest));
            let manifests = (0..).zip(manifests).map(|(i, child)| label(format!("m.{i}"), &child.digest));
            let others = (0..).zip(others).map(|(i, child)| label(format!("{i}"), &child.digest));
            manifests.chain(others).collect()
        }
        Document::Manifest(manifest) => manifest
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| label(format!("l.{i}"), &layer.digest))
            .chain([label("config".into(), &manifest.config.digest)])
            .collect(),
    }
}

/// The key of the label that names the repositories of a blob in `reference`'s registry.
fn source_key(reference: &Reference) -> String {
    let domain = reference.domain();
    let host = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => domain.split(':').next().unwrap_or(domain),
    };
    format!("containerd.io/distribution.source.{host}")
}

/// The label, with `reference`'s repository beside those of `old`; none if that is too
/// long or nothing new.
pub(super) fn source_label(old: &HashMap<String, String>, reference: &Reference) -> Option<(String, String)> {
    let key = source_key(reference);
    let mut repositories: Vec<&str> = old
        .get(&key)
        .map(|list| list.split(',').filter(|part| !part.is_empty()).collect())
        .unwrap_or_default();
    if repositories.contains(&reference.path()) {
        return None;
    }
    repositories.push(reference.path());
    repositories.sort_unstable();
    let value = repositories.join(",");
    (key.len() + value.len() <= LABEL_BYTES_MAX).then_some((key, value))
}

/// Opens a writer for a blob; none if the blob is there, which the lease then holds.
/// Waits while another client writes the same blob.
///
/// # Errors
/// DeadlineExceeded when the other does not come to an end; those of containerd.
pub(super) async fn open(
    containerd: &Containerd,
    work: &Work,
    descriptor: &Descriptor,
) -> Result<Option<ContentWriter>> {
    let reference = ingest_reference(descriptor);
    let end = tokio::time::Instant::now() + TAKEN_LIMIT;
    let mut pause = Duration::from_millis(20);
    loop {
        let token = work.ingest(&reference).await;
        match begin(containerd, work, descriptor, token).await {
            Ok(writer) => return Ok(Some(writer)),
            // The ingest is not ours from here on: the blob needs none, or another has it.
            Err(error) if error.kind() == Kind::AlreadyExists => {
                work.ingested(&reference);
                return Ok(None);
            }
            Err(error) if ContentWriter::is_taken(&error) => {
                work.ingested(&reference);
                if tokio::time::Instant::now() >= end {
                    return Err(deadline(format!("another client is still writing {}", descriptor.digest)));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(TAKEN_PAUSE_MAX);
            }
            Err(error) => return Err(error).context(|| format!("store {}", descriptor.digest)),
        }
    }
}

/// Opens a writer. It comes about also when nobody waits for it any more, so that it is
/// closed in order.
async fn begin(
    containerd: &Containerd,
    work: &Work,
    descriptor: &Descriptor,
    token: TaskTrackerToken,
) -> Result<ContentWriter> {
    let (containerd, lease) = (containerd.clone(), work.lease().to_owned());
    let (reference, size, digest) =
        (ingest_reference(descriptor), descriptor.size, descriptor.digest.clone());
    let begun = async move { containerd.write_content(&reference, size, &digest, Some(&lease), token).await };
    match tokio::spawn(begun.instrument(Span::current())).await {
        Ok(begun) => begun,
        Err(error) => Err(internal(format!("a bug in longshore: {error}"))),
    }
}

/// Drops what an ingest has so far.
pub(super) async fn abort(
    containerd: &Containerd,
    work: &Work,
    writer: ContentWriter,
    descriptor: &Descriptor,
) {
    writer.close().await;
    let reference = ingest_reference(descriptor);
    // Where that does not work the end of the work tries again.
    if containerd.abort_ingest(&reference).await.is_ok() {
        work.ingested(&reference);
    }
}

/// Stores a blob that is in memory, with `labels` and `from` as a repository that it
/// comes from. One that is there gets what labels it lacks.
///
/// # Errors
/// FailedPrecondition if `data` is not what `descriptor` says.
pub(super) async fn put(
    containerd: &Containerd,
    work: &Work,
    descriptor: &Descriptor,
    data: Vec<u8>,
    labels: HashMap<String, String>,
    from: Option<&Reference>,
) -> Result<()> {
    while let Some(mut writer) = open(containerd, work, descriptor).await? {
        if writer.offset() > 0 {
            writer.truncate().await?;
        }
        match writer.write(data.clone()).await {
            // Another client was faster: the next look finds the blob.
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            Err(error) => return Err(error).context(|| format!("store {}", descriptor.digest)),
            Ok(()) => {
                let mut labels = labels;
                labels.extend(from.and_then(|from| source_label(&HashMap::new(), from)));
                writer.commit(labels).await.context(|| format!("store {}", descriptor.digest))?;
                work.ingested(&ingest_reference(descriptor));
                return Ok(());
            }
        }
    }
    label(containerd, &descriptor.digest, labels, from).await
}

/// Makes sure that a blob has `labels`, and `from` among its sources.
///
/// # Errors
/// NotFound.
pub(super) async fn label(
    containerd: &Containerd,
    digest: &str,
    labels: HashMap<String, String>,
    from: Option<&Reference>,
) -> Result<()> {
    let known = containerd.content_info(digest).await?.labels;
    let mut missing = labels;
    missing.retain(|key, value| known.get(key) != Some(value));
    missing.extend(from.and_then(|from| source_label(&known, from)));
    if missing.is_empty() {
        return Ok(());
    }
    containerd.label_content(digest, missing).await
}

/// A whole blob, checked against its digest.
///
/// # Errors
/// NotFound; ResourceExhausted beyond `bytes_max`; Unknown if the store's copy is broken.
pub(super) async fn read(containerd: &Containerd, digest: &str, bytes_max: usize) -> Result<Vec<u8>> {
    let data = containerd.read_content(digest, bytes_max).await?;
    if !digest::matches(digest, &data) {
        return Err(unknown(format!("content {digest} in containerd's store is not what its digest says")));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(media_type: &str, digest: &str) -> Descriptor {
        Descriptor { media_type: media_type.into(), digest: digest.into(), ..Default::default() }
    }

    #[test]
    fn ingests_are_named_by_what_they_hold() {
        for (media_type, want) in [
            (document::OCI_INDEX, "index-sha256:1"),
            (document::DOCKER_MANIFEST, "manifest-sha256:1"),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "layer-sha256:1"),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "layer-sha256:1"),
            (document::OCI_CONFIG, "config-sha256:1"),
            ("text/plain", "unknown-sha256:1"),
        ] {
            assert_eq!(ingest_reference(&described(media_type, "sha256:1")), want);
        }
    }

    #[test]
    fn children_are_held_by_the_labels_of_containerds_client() {
        let entry = |media_type, digest| document::Entry {
            descriptor: described(media_type, digest),
            platform: None,
        };
        let index = Document::Index(vec![
            entry(document::OCI_MANIFEST, "a"),
            entry(document::OCI_INDEX, "b"),
            entry(document::DOCKER_MANIFEST, "c"),
        ]);
        let manifest = Document::Manifest(document::Manifest {
            config: described(document::OCI_CONFIG, "d"),
            layers: vec![described(document::OCI_LAYER, "e"), described(document::OCI_LAYER, "f")],
            elsewhere: HashMap::new(),
            annotations: Default::default(),
        });
        let labels = |document| {
            let mut all: Vec<_> = child_labels(document).into_iter().collect();
            all.sort();
            all.iter()
                .map(|(key, value)| {
                    format!("{}={value}", key.strip_prefix("containerd.io/gc.ref.content.").expect("prefix"))
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(labels(&index), ["0=b", "m.0=a", "m.1=c"]);
        assert_eq!(labels(&manifest), ["config=d", "l.0=e", "l.1=f"]);
    }

    #[test]
    fn sources_are_listed_once_and_in_order() {
        let reference = |text| Reference::parse(text).expect("valid");
        let key = "containerd.io/distribution.source.localhost".to_owned();
        let a = source_label(&HashMap::new(), &reference("localhost:5000/m")).expect("new");
        assert_eq!(a, (key.clone(), "m".to_owned()));
        let old = HashMap::from([a]);
        let b = source_label(&old, &reference("localhost/a/b")).expect("new");
        assert_eq!(b.1, "a/b,m");
        assert_eq!(source_label(&HashMap::from([b]), &reference("localhost:5000/m")), None);
        let full = HashMap::from([(key, "x".repeat(4090))]);
        assert_eq!(source_label(&full, &reference("localhost/abc")), None);
        assert_eq!(source_key(&reference("[::1]:5000/a")), "containerd.io/distribution.source.::1");
    }
}
