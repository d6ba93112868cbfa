//! A layer into a snapshot: by ourselves where that can be done ([`extract`]), else by
//! containerd's Diff.Apply.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use hyper::body::Bytes;
use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::digest::is_digest;
use super::extract::{self, Extracted, Failure, Feed, Packing, Target, extract};
use super::work::Work;
use crate::containerd::{Containerd, Descriptor, Mount};
use crate::error::{Result, canceled, deadline, internal};
use crate::flow::{Disk, on_disk};

/// How long one layer may take, here or in containerd.
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
        let target = on_disk(Disk::Images, move || Ok(Target::of(&mounts))).await?;
        Ok(target.map(|target| Extraction { target, packing }))
    }

    /// Extracts a layer of the content store, and gives the diff id. Dropped, it ends by
    /// itself, and the end of `work` waits for that.
    ///
    /// # Errors
    /// NotFound without the layer; DeadlineExceeded; see [`extract::Failure`].
    pub(super) async fn run(
        self,
        work: &Work,
        containerd: &Containerd,
        layer: &Descriptor,
    ) -> Result<String, Failure> {
        let extracted = tokio::time::timeout(APPLY_LIMIT, self.stored(work, containerd, layer)).await;
        let late = || deadline(format!("it is not unpacked after {} s", APPLY_LIMIT.as_secs()));
        extracted.unwrap_or_else(|_| Err(late().into()))
    }

    async fn stored(
        self,
        work: &Work,
        containerd: &Containerd,
        layer: &Descriptor,
    ) -> Result<String, Failure> {
        // Whether it is there says containerd alone: files are of all namespaces.
        let size = containerd.content_info(&layer.digest).await?.size;
        if let Some(file) = file_of(containerd, &layer.digest, size).await {
            let stop = CancellationToken::new();
            let _stopped = stop.clone().drop_guard();
            let extracted = self.start(work, Stoppable { file, stop: stop.clone() }).await?;
            return Ok(extracted.diff_id);
        }
        let (feed, fed) = extract::feed();
        let extracted = self.start(work, fed);
        tokio::pin!(extracted);
        let sent = tokio::select! {
            biased;
            // Before all is sent: it failed.
            extracted = &mut extracted => return extracted.map(|extracted| extracted.diff_id),
            sent = send(containerd, &layer.digest, size, &feed) => sent,
        };
        if let Err(error) = sent {
            drop(feed);
            // Nobody writes any more afterwards.
            let _ = extracted.await;
            return Err(error.into());
        }
        extracted.await.map(|extracted| extracted.diff_id)
    }

    async fn start(self, work: &Work, input: impl Read + Send + 'static) -> Result<Extracted, Failure> {
        let writer = work.writer();
        let Extraction { target, packing } = self;
        let extracted = tokio::task::spawn_blocking(move || {
            let extracted = extract(input, packing, &target);
            // The folder is closed by the time that the work hears of it.
            drop(target);
            drop(writer);
            extracted
        });
        extracted.await.unwrap_or_else(|error| Err(internal(format!("a bug in longshore: {error}")).into()))
    }
}

/// The file of a blob of `size` bytes, where the content store is one of files at hand: a
/// layer's way through two processes is as long as its extraction. What is in it is checked
/// by its diff id.
async fn file_of(containerd: &Containerd, digest: &str, size: i64) -> Option<File> {
    let capabilities = containerd.capabilities().ok()?;
    let (algorithm, hex) = digest.split_once(':').filter(|_| is_digest(digest))?;
    let path = Path::new(capabilities.content_root()?).join("blobs").join(algorithm).join(hex);
    let opened = on_disk(Disk::Images, move || {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        Ok((metadata.is_file() && i64::try_from(metadata.len()) == Ok(size)).then_some(file))
    });
    opened.await.ok().flatten()
}

/// A file that ends with an error when nobody waits for what is made of it.
struct Stoppable {
    file: File,
    stop: CancellationToken,
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other(canceled("nobody waits for the layer any more")));
        }
        self.file.read(buffer)
    }
}

/// Sends a blob of the content store.
///
/// # Errors
/// NotFound.
async fn send(containerd: &Containerd, digest: &str, size: i64, feed: &Feed) -> Result<()> {
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
