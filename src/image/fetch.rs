//! Layers from a registry into the content store.
//!
//! A layer is streamed, never held: containerd checks its digest and size at the end. A
//! server that breaks off or sends something else is followed by the next one, which
//! begins anew (IMG-26, IMG-28).

use std::collections::HashMap;

use super::reference::Reference;
use super::registry::{self, Body, Cause, Failures, Repository};
use super::work::Work;
use super::{Images, content};
use crate::containerd::{ContentWriter, Descriptor};
use crate::error::{Context, Error, Kind, Result, precondition};

/// How many bytes are handed to containerd at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the layers of a pull come from, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Fetch<'a> {
    pub(super) images: &'a Images,
    pub(super) work: &'a Work,
    pub(super) repository: &'a Repository,
    pub(super) reference: &'a Reference,
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
    /// See [`Failures::finish`]; those of containerd.
    pub(super) async fn layer(self, layer: &Descriptor) -> Result<()> {
        let Images(inner) = self.images;
        let _turn = inner.blobs.lock(layer.digest.as_str()).await;
        let mut failures = Failures::new(format!("fetch layer {}", layer.digest));
        for server in self.repository.servers() {
            let Some(writer) = content::open(&inner.containerd, self.work, layer).await? else {
                return self.held(layer).await;
            };
            let copied = async {
                // All of it can be there from an earlier attempt.
                if writer.offset() == layer.size {
                    return self.finish(writer, layer).await;
                }
                let body = server.open(registry::Kind::Blob, layer).await?;
                self.copy(body, writer, layer).await
            };
            match copied.await {
                Ok(()) => return Ok(()),
                // Another client was faster.
                Err(Fault::Local(error)) if error.kind() == Kind::AlreadyExists => {
                    return self.held(layer).await;
                }
                Err(Fault::Local(error)) => return Err(error),
                Err(Fault::Remote(cause)) => {
                    content::abort(&inner.containerd, self.work, layer).await;
                    failures.add(server, cause);
                }
            }
        }
        Err(failures.finish())
    }

    /// A layer that is there: under our lease, with this repository among its sources.
    async fn held(self, layer: &Descriptor) -> Result<()> {
        let Images(inner) = self.images;
        if content::open(&inner.containerd, self.work, layer).await?.is_some() {
            return Err(precondition(format!("layer {} came and went during the pull", layer.digest)));
        }
        content::label(&inner.containerd, &layer.digest, HashMap::new(), Some(self.reference)).await
    }

    async fn copy(self, mut body: Body, mut writer: ContentWriter, layer: &Descriptor) -> Result<(), Fault> {
        if writer.offset() > 0 {
            writer.truncate().await?;
        }
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let chunk = body.chunk().await?;
            let is_end = chunk.is_none();
            buffer.extend_from_slice(chunk.as_deref().unwrap_or_default());
            if buffer.len() >= CHUNK_BYTES || (is_end && !buffer.is_empty()) {
                let full = std::mem::replace(&mut buffer, Vec::with_capacity(CHUNK_BYTES));
                writer.write(full).await.context(|| format!("store {}", layer.digest))?;
            }
            if is_end {
                return self.finish(writer, layer).await;
            }
        }
    }

    async fn finish(self, writer: ContentWriter, layer: &Descriptor) -> Result<(), Fault> {
        let labels = content::source_label(&HashMap::new(), self.reference).into_iter().collect();
        let committed = content::commit(&self.images.0.containerd, self.work, writer, layer, labels);
        committed.await.map_err(|error| match error.kind() {
            // containerd's word for a digest that does not fit.
            Kind::FailedPrecondition => Fault::Remote(Cause::Corrupt(error.message().to_owned())),
            _ => Fault::Local(error),
        })
    }
}
