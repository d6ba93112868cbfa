//! A layer into a snapshot: by ourselves where that can be done ([`extract`]), else by
//! containerd's Diff.Apply.

use std::time::Duration;

use hyper::body::Bytes;
use tracing::debug;

use super::extract::{self, Extracted, Failure, Fed, Feed, Packing, Target, extract};
use super::work::Work;
use crate::containerd::{Containerd, Descriptor, Mount};
use crate::error::{Result, internal};
use crate::flow::blocking;

/// How long containerd may take for one layer.
const APPLY_LIMIT: Duration = Duration::from_secs(3600);
/// Bytes of a blob that are asked for at once.
const PART_BYTES: i64 = 1 << 20;

/// A layer that can be extracted here.
pub(super) struct Extraction {
    target: Target,
    packing: Packing,
}

impl Extraction {
    /// That of `layer` into a snapshot with `mounts`; none if containerd has to do it.
    pub(super) async fn of(layer: &Descriptor, mounts: &[Mount]) -> Result<Option<Extraction>> {
        let Some(packing) = Packing::of(&layer.media_type) else { return Ok(None) };
        let mounts = mounts.to_vec();
        let target = blocking(move || Ok(Target::of(&mounts))).await?;
        Ok(target.map(|target| Extraction { target, packing }))
    }

    /// Extracts what `source` sends, and gives the diff id. Dropped, or when `source`
    /// fails, the extraction ends by itself; the end of `work` waits for it.
    ///
    /// # Errors
    /// Those of `source`; see [`extract::Failure`].
    pub(super) async fn run<S>(self, work: &Work, source: impl FnOnce(Feed) -> S) -> Result<String, Failure>
    where
        S: Future<Output = Result<()>>,
    {
        let (feed, fed) = extract::feed();
        let extracted = self.start(work, fed);
        tokio::pin!(extracted);
        let sent = tokio::select! {
            biased;
            // Before all is sent: it failed.
            extracted = &mut extracted => return extracted.map(|extracted| extracted.diff_id),
            sent = source(feed) => sent,
        };
        // Also where the source failed: nobody must write any more afterwards.
        let extracted = extracted.await;
        sent?;
        extracted.map(|extracted| extracted.diff_id)
    }

    async fn start(self, work: &Work, fed: Fed) -> Result<Extracted, Failure> {
        let writer = work.writer();
        let extracted = tokio::task::spawn_blocking(move || {
            let extracted = extract(fed, self.packing, &self.target);
            drop(writer);
            extracted
        });
        extracted.await.unwrap_or_else(|error| Err(internal(format!("a bug in longshore: {error}")).into()))
    }
}

/// Sends a blob of the content store.
///
/// # Errors
/// NotFound.
pub(super) async fn send_stored(containerd: &Containerd, digest: &str, feed: Feed) -> Result<()> {
    let size = containerd.content_info(digest).await?.size;
    let mut offset = 0;
    while offset < size {
        let part = containerd.read_content_part(digest, offset, PART_BYTES.min(size - offset)).await?;
        if part.is_empty() {
            return Err(internal(format!("containerd's Content.Read gave nothing of {digest} at {offset}")));
        }
        offset += i64::try_from(part.len()).unwrap_or(i64::MAX);
        if !feed.send(Bytes::from(part)).await {
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}

/// Lets containerd unpack the layer, and gives the diff id.
///
/// # Errors
/// Those of containerd.
pub(super) async fn by_containerd(
    containerd: &Containerd,
    work: &Work,
    layer: &Descriptor,
    mounts: &[Mount],
) -> Result<String> {
    let applied = containerd.apply_layer(layer.clone(), mounts, APPLY_LIMIT, Some(work.lease())).await?;
    debug!(layer = layer.digest, by = "containerd", "unpacked a layer");
    Ok(applied.digest)
}
