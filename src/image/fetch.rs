//! Layers from a registry into the content store.
//!
//! A layer is streamed, never held: containerd checks its digest and size at the end.
//! What came before a connection broke is kept, and the rest is asked for, of the same
//! server or of another. Where what was put together so is not what the digest says,
//! the layer is fetched once more from its first byte on (IMG-26, IMG-28).

use std::collections::HashMap;

use tracing::Instrument;

use super::progress::LayerState;
use super::reference::Reference;
use super::registry::{Cause, Repository, Server};
use super::tree::Tree;
use super::work::Work;
use super::{Images, content};
use crate::containerd::{ContentWriter, Descriptor};
use crate::error::{Context, Error, Kind, Result, precondition};
use crate::telemetry::traces;
use crate::trace;

/// How many bytes are handed to containerd at once.
const CHUNK_BYTES: usize = 128 << 10;
/// How many bytes a connection must bring to count as progress.
const PROGRESS_BYTES: i64 = 64 << 10;

/// Where the layers of a pull come from, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Fetch<'a> {
    pub(super) images: &'a Images,
    pub(super) work: &'a Work,
    pub(super) repository: &'a Repository,
    pub(super) reference: &'a Reference,
    pub(super) tree: &'a Tree,
}

/// Whose fault a failed copy is.
enum Fault {
    /// The server's: another may do better.
    Remote(Cause),
    /// containerd's.
    Local(Error),
}

impl From<Cause> for Fault {
    fn from(cause: Cause) -> Fault {
        Fault::Remote(cause)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Local(error)
    }
}

impl Fetch<'_> {
    /// Fetches one layer, unless it is there. Two pulls with a layer in common fetch it
    /// once.
    ///
    /// # Errors
    /// See [`super::registry::Tries::finish`]; those of containerd.
    pub(super) async fn layer(self, layer: &Descriptor) -> Result<()> {
        let span = tracing::debug_span!("fetch", name = layer.digest, bytes = layer.size);
        let fetched = self.fetched(layer).instrument(span.clone()).await;
        if let Err(error) = &fetched {
            traces::failed(&span, error.message());
        }
        fetched
    }

    async fn fetched(self, layer: &Descriptor) -> Result<()> {
        let Images(inner) = self.images;
        let progress = self.repository.progress();
        let _turn = inner.blobs.lock(layer.digest.as_str()).await;
        progress.layer(&layer.digest, LayerState::Downloading);
        match content::open(&inner.containerd, self.work, layer).await? {
            Some(writer) => self.download(writer, layer).await?,
            None => self.held(layer).await?,
        }
        progress.layer(&layer.digest, LayerState::Downloaded);
        Ok(())
    }

    async fn download(self, mut writer: ContentWriter, layer: &Descriptor) -> Result<()> {
        // The semaphore is never closed.
        let _place = trace::wait("a place among the downloads", self.images.0.downloads.acquire()).await.ok();
        let elsewhere = self.tree.elsewhere.get(&layer.digest).map(Vec::as_slice).unwrap_or_default();
        let mut tries = self.repository.tries(&format!("layer {}", layer.digest), elsewhere);
        // All of it can be there from an earlier attempt, or some of it.
        let mut is_mixed = writer.offset() > 0;
        while let Some(server) = tries.next().await {
            let before = writer.offset();
            let copied = async {
                self.copy(server, &mut writer, layer).await?;
                writer.commit(self.labels()).await.map_err(|error| match error.kind() {
                    // containerd's word for a digest or size that does not fit.
                    Kind::FailedPrecondition => Fault::Remote(Cause::Corrupt(error.message().to_owned())),
                    _ => Fault::Local(error.context(format!("store {}", layer.digest))),
                })
            };
            match copied.await {
                Ok(()) => {
                    self.work.ingested(&content::ingest_reference(layer));
                    return Ok(());
                }
                // Another client was faster.
                Err(Fault::Local(error)) if error.kind() == Kind::AlreadyExists => {
                    return self.held(layer).await;
                }
                Err(Fault::Local(error)) => return Err(error),
                Err(Fault::Remote(cause @ Cause::Corrupt(_))) => {
                    writer = match self.anew(writer, layer).await? {
                        Some(writer) => writer,
                        None => return self.held(layer).await,
                    };
                    // Whose part is wrong is not known: this one has to send all of it.
                    if std::mem::take(&mut is_mixed) { tries.again() } else { tries.failed(cause) }
                }
                Err(Fault::Remote(cause)) => {
                    is_mixed = writer.offset() > 0;
                    let is_progress = writer.offset() - before >= PROGRESS_BYTES;
                    if is_progress { tries.failed_after_progress(cause) } else { tries.failed(cause) }
                }
            }
        }
        content::abort(&self.images.0.containerd, self.work, writer, layer).await;
        Err(tries.finish())
    }

    fn labels(self) -> HashMap<String, String> {
        content::source_label(&HashMap::new(), self.reference).into_iter().collect()
    }

    /// Drops what was written, whose writer has ended with it, and begins anew.
    async fn anew(self, writer: ContentWriter, layer: &Descriptor) -> Result<Option<ContentWriter>> {
        content::abort(&self.images.0.containerd, self.work, writer, layer).await;
        content::open(&self.images.0.containerd, self.work, layer).await
    }

    /// A layer that is there: under our lease, with this repository among its sources.
    async fn held(self, layer: &Descriptor) -> Result<()> {
        let Images(inner) = self.images;
        if content::open(&inner.containerd, self.work, layer).await?.is_some() {
            return Err(precondition(format!("layer {} came and went during the pull", layer.digest)));
        }
        content::label(&inner.containerd, &layer.digest, HashMap::new(), Some(self.reference)).await
    }

    /// Writes what is missing of a layer.
    async fn copy(
        self,
        server: Server<'_>,
        writer: &mut ContentWriter,
        layer: &Descriptor,
    ) -> Result<(), Fault> {
        let what = || format!("store {}", layer.digest);
        if writer.offset() == layer.size {
            return Ok(());
        }
        let offset = u64::try_from(writer.offset()).unwrap_or(0);
        let mut body = server.open(layer, offset).await?;
        if body.offset() != offset {
            writer.truncate().await.context(what)?;
        }
        let progress = self.repository.progress();
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let chunk = body.chunk().await;
            let is_end = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(data)) = &chunk {
                buffer.extend_from_slice(data);
            }
            // What came before a failure is kept, too.
            if buffer.len() >= CHUNK_BYTES || (is_end && !buffer.is_empty()) {
                let full = std::mem::replace(&mut buffer, Vec::with_capacity(CHUNK_BYTES));
                writer.write(full).await.context(what)?;
                progress.layer_has(&layer.digest, u64::try_from(writer.offset()).unwrap_or(0));
            }
            if is_end {
                writer.settle().await.context(what)?;
                return chunk.map(drop).map_err(Fault::Remote);
            }
        }
    }
}
