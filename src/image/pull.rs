//! PullImage: resolve, fetch, unpack, name.
//!
//! All of it happens under one lease, so that nothing is collected half-way (IMG-30).
//! The names are set last: an image with a name is whole. Two calls for the same
//! reference with the same credentials share one pull; a pull whose last caller went
//! away stops, and takes away what it began (IMG-32, IMG-33).

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Images;
use super::fetch::Fetch;
use super::progress::Progress;
use super::reference::{Object, Reference};
use super::registry::{Credentials, with_context};
use super::tree::{self, Source, Tree};
use super::unpack::Unpack;
use super::work::Work;
use crate::containerd::{Descriptor, ImageRecord};
use crate::error::{Error, Result, canceled};
use crate::flow::Flow;
use crate::proto::cri;
use crate::telemetry::{METERS, traces};

/// What is pulled.
#[derive(Debug)]
pub struct Pull {
    /// The image as the kubelet names it.
    pub image: cri::ImageSpec,
    /// The kubelet's credentials; none for an anonymous pull.
    pub auth: Option<cri::AuthConfig>,
    /// For which snapshotter it is unpacked (IMG-36).
    pub snapshotter: String,
}

impl Images {
    /// Pulls an image and gives its id (IMG-05). Dropping the future stops the pull,
    /// unless another caller waits for the same.
    ///
    /// # Errors
    /// InvalidArgument for a reference that is none or credentials that cannot be read;
    /// NotFound if the registry does not have it; Unimplemented for Docker's schema 1;
    /// DeadlineExceeded if no byte comes any more; ResourceExhausted for a full disk;
    /// Unknown with `RegistryUnavailable` in front if no registry can be reached
    /// (ERR-08); else what went wrong on the way.
    pub async fn pull(&self, flow: &Flow, request: Pull) -> Result<String> {
        let reference = Reference::parse(&request.image.image)?;
        let what = format!("pull image {:?}", request.image.image);
        let credentials = Credentials::new(request.auth.as_ref()).map_err(|error| error.context(&what))?;
        // Who has other credentials does not share the work (IMG-33).
        let key = format!("{reference} {} {}", request.snapshotter, credentials.fingerprint());
        let task = Task { images: self.clone(), reference, credentials, snapshotter: request.snapshotter };
        self.0
            .pulls
            .run(flow, &key, |stop| task.run_until(stop))
            .await
            .map_err(|error| with_context(error, &what))
    }
}

/// One pull, however many wait for it.
struct Task {
    images: Images,
    reference: Reference,
    credentials: Credentials,
    snapshotter: String,
}

impl Task {
    async fn run_until(self, stop: CancellationToken) -> Result<String> {
        let Images(inner) = &self.images;
        let reference = &self.reference;
        let (started, meter) = (Instant::now(), METERS.pull());
        let progress = Arc::new(Progress::new(&reference.to_string(), &self.snapshotter));
        let _listed = inner.running.list(progress.clone());
        let work = inner.leases.begin(&inner.containerd).await?;
        let result = tokio::select! {
            result = self.run_under(&work, &progress) => result,
            error = progress.stuck(inner.settings.progress_limit) => Err(error),
            () = stop.cancelled() => Err(canceled("nobody waits for it any more")),
            never = progress.tell() => match never {},
        };
        // The transfers have ended here: what they left can be taken away.
        let ended = async {
            work.end(&result).await;
            Ok(())
        };
        traces::stage("clean up", ended).await.ok();
        meter.end_as(result.as_ref().err().map(Error::kind));
        let seconds = started.elapsed().as_secs_f32();
        match &result {
            Ok(id) => info!(%reference, id, seconds, bytes = progress.received_bytes(), "pulled an image"),
            Err(error) => warn!(%reference, %error, seconds, "an image was not pulled"),
        }
        result
    }

    async fn run_under(&self, work: &Work, progress: &Arc<Progress>) -> Result<String> {
        let Task { images, reference, snapshotter, .. } = self;
        let Images(inner) = images;
        if images.pulls_by_transfer().await? {
            let (target, tree) =
                images.transfer(work, reference, &self.credentials, snapshotter, progress).await?;
            images.set_names(work, reference, &target, &tree).await?;
            return Ok(tree.config.digest);
        }
        let credentials = self.credentials.clone();
        let repository = inner.registry.repository(reference, credentials, progress.clone()).await?;
        let repository = &repository;
        let mut target = traces::stage("resolve", repository.resolve(reference)).await?;
        let source = Source::Registry { repository, reference, work };
        let walk = tree::walk(&inner.containerd, &source, &inner.node, &target);
        let tree = traces::stage("manifests", walk).await?;
        progress.layers(tree.layers.iter());
        if tree.manifest.digest == target.digest {
            // The server need not have said what kind of document it is.
            target.media_type.clone_from(&tree.manifest.media_type);
        }
        let fetch = Some(Fetch { images, work, repository, reference, tree: &tree });
        let name = reference.to_string();
        let unpack = Unpack { images, work, tree: &tree, snapshotter, name: &name, fetch };
        traces::stage("layers", unpack.run()).await?;
        traces::stage("names", images.set_names(work, reference, &target, &tree)).await?;
        Ok(tree.config.digest)
    }
}

impl Images {
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
