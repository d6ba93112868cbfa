//! PullImage: resolve, fetch, unpack, name.
//!
//! All of it happens under one lease, so that nothing is collected half-way (IMG-30).
//! The names are set last: an image with a name is whole. Two calls for the same
//! reference with the same credentials share one pull; a pull whose last caller went
//! away stops, and takes away what it began (IMG-32, IMG-33).

use std::time::Instant;

use prost::Message;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::fetch::Fetch;
use super::reference::{Object, Reference};
use super::tree::{self, Source, Tree};
use super::unpack::Unpack;
use super::work::Work;
use super::{Images, digest, registry};
use crate::containerd::{Descriptor, ImageRecord};
use crate::error::{Result, canceled};
use crate::flow::Flow;
use crate::proto::cri;

/// What is pulled.
#[derive(Debug)]
pub struct Pull {
    /// The image as the kubelet names it.
    pub image: cri::ImageSpec,
    /// The kubelet's credentials. Not given to a registry yet; a registry that wants
    /// them is named in the error.
    pub auth: Option<cri::AuthConfig>,
    /// For which snapshotter it is unpacked (IMG-36).
    pub snapshotter: String,
}

impl Images {
    /// Pulls an image and gives its id (IMG-05). Dropping the future stops the pull,
    /// unless another caller waits for the same.
    ///
    /// # Errors
    /// InvalidArgument for a reference that is none; NotFound if the registry does not
    /// have it; Unimplemented if it wants credentials or has Docker's schema 1; Unknown
    /// with `RegistryUnavailable` in front if it cannot be reached (ERR-08); else what
    /// went wrong on the way.
    pub async fn pull(&self, flow: &Flow, request: Pull) -> Result<String> {
        let reference = Reference::parse(&request.image.image)?;
        // Credentials are part of what is shared, but stay out of the key (IMG-33).
        let credentials = registry::Credentials::new(request.auth.as_ref())?;
        let auth = request.auth.map(|auth| digest::of(&auth.encode_to_vec())).unwrap_or_default();
        let key = format!("{reference} {} {auth}", request.snapshotter);
        let what = format!("pull image {:?}", request.image.image);
        let (images, snapshotter) = (self.clone(), request.snapshotter);
        self.0
            .pulls
            .run(flow, &key, |stop| async move {
                images.pull_until(&reference, &credentials, &snapshotter, stop).await
            })
            .await
            .map_err(|error| registry::with_context(error, &what))
    }

    async fn pull_until(
        &self,
        reference: &Reference,
        credentials: &registry::Credentials,
        snapshotter: &str,
        stop: CancellationToken,
    ) -> Result<String> {
        let started = Instant::now();
        let work = self.0.leases.begin(&self.0.containerd).await?;
        let result = tokio::select! {
            result = self.pull_under(&work, reference, credentials, snapshotter) => result,
            () = stop.cancelled() => Err(canceled("nobody waits for it any more")),
        };
        // The transfers have ended here: what they left can be taken away.
        work.end().await;
        let seconds = started.elapsed().as_secs_f32();
        match &result {
            Ok(id) => info!(%reference, id, seconds, "pulled an image"),
            Err(error) => warn!(%reference, %error, seconds, "an image was not pulled"),
        }
        result
    }

    async fn pull_under(
        &self,
        work: &Work,
        reference: &Reference,
        credentials: &registry::Credentials,
        snapshotter: &str,
    ) -> Result<String> {
        if self.pulls_by_transfer().await? {
            let (target, tree) = self.transfer(work, reference, credentials, snapshotter).await?;
            self.set_names(work, reference, &target, &tree).await?;
            return Ok(tree.config.digest);
        }
        let repository = self.0.registry.repository(reference).await?;
        let mut target = repository.resolve(reference).await?;
        let source = Source::Registry { repository: &repository, reference, work };
        let tree = tree::walk(&self.0.containerd, &source, &self.0.node, &target).await?;
        if tree.manifest.digest == target.digest {
            // The server need not have said what kind of document it is.
            target.media_type.clone_from(&tree.manifest.media_type);
        }
        let fetch = Some(Fetch { images: self, work, repository: &repository, reference });
        let name = reference.to_string();
        Unpack { images: self, work, tree: &tree, snapshotter, name: &name, fetch }.run().await?;
        self.set_names(work, reference, &target, &tree).await?;
        Ok(tree.config.digest)
    }

    /// The records of a pulled image: the tag, the digest and the id (IMG-04).
    async fn set_names(
        &self,
        work: &Work,
        reference: &Reference,
        target: &Descriptor,
        tree: &Tree,
    ) -> Result<()> {
        let by_tag = match reference.object() {
            Object::Tag(_) => Some(reference.to_string()),
            Object::Digest(_) => None,
        };
        let by_digest = reference.with_digest(&target.digest).to_string();
        for name in [tree.config.digest.clone(), by_digest].into_iter().chain(by_tag) {
            let labels = self.labels_for(&name);
            self.record(ImageRecord { name, labels, target: target.clone() }, work.lease()).await?;
        }
        Ok(())
    }
}
