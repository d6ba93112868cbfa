//! Pulls by containerd's Transfer service, in place of resolve, fetch and unpack.
//!
//! The service asks containerd's image verifiers before it fetches anything, which
//! nobody else does (IMG-39); that is what it is for here. It is told the folder of the
//! registry's hosts.toml and asks back for credentials. What it cannot do is done here:
//! where it is not configured to unpack for the snapshotter, the layers that it fetched
//! are unpacked by [`Unpack`].
//!
//! containerd writes an image record at the end of a transfer. It is one of the work's
//! own, which expired before it was made, so that it exists as long as the lease and is
//! gone with it: the image's names are set afterwards, when all is known to be there.

mod downloads;
mod words;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Images;
use super::progress::Progress;
use super::reference::Reference;
use super::registry::{Credentials, Secret};
use super::tree::{self, Source, Tree};
use super::unpack::Unpack;
use super::work::Work;
use crate::config::Puller;
use crate::containerd::{Capabilities, Descriptor, Login, TransferPlatform, TransferRequest};
use crate::error::{Kind, Result, precondition, unimplemented};
use crate::flow::{Disk, on_disk};
use downloads::Downloads;
pub(super) use downloads::Heard;
use words::explained;

/// Reports of progress that may wait to be read.
const PROGRESS_MAX: usize = 64;
/// A time that has passed, as containerd's collector reads it.
const EXPIRED: &str = "2000-01-01T00:00:00Z";

impl Images {
    /// Whether this pull is containerd's.
    ///
    /// # Errors
    /// FailedPrecondition if it must be and cannot; Unavailable as long as it is not
    /// known what containerd can do.
    pub(super) async fn pulls_by_transfer(&self) -> Result<bool> {
        let settings = &self.0.settings;
        if settings.puller == Puller::Client {
            return Ok(false);
        }
        let capabilities = self.0.containerd.capabilities()?;
        let is_usable = capabilities.transfers_images();
        if settings.puller == Puller::Transfer && !is_usable {
            return Err(precondition(format!(
                "image.puller is \"transfer\", but containerd {} has no Transfer service that reads hosts.toml: \
                 set it to \"client\" or \"auto\", or run containerd 2.0 or newer with that plugin",
                capabilities.raw_version()
            )));
        }
        if settings.puller == Puller::Transfer {
            return Ok(true);
        }
        let dir = settings.verifier_dir.clone();
        let has_verifiers = on_disk(Disk::Images, move || Ok(has_verifiers(&capabilities, &dir))).await?;
        if has_verifiers && !is_usable {
            warn!(
                "containerd has image verifiers, but no Transfer service that asks them: they are passed over"
            );
        }
        Ok(has_verifiers && is_usable)
    }

    /// Has containerd pull `reference`: all of it is in the store then, under the lease
    /// of `work`, and unpacked for `snapshotter`. Gives what the reference points at.
    ///
    /// # Errors
    /// NotFound if no registry has it; FailedPrecondition without a matching platform;
    /// Unimplemented for credentials that Transfer cannot give, and for Docker's schema
    /// 1; DeadlineExceeded if no byte comes any more; of kind Unknown with
    /// `RegistryUnavailable` in front if nobody could be reached, and with
    /// `SignatureValidationFailed` if a verifier refuses it (IMG-38).
    pub(super) async fn transfer(
        &self,
        work: &Work,
        reference: &Reference,
        credentials: &Credentials,
        snapshotter: &str,
        progress: &Progress,
    ) -> Result<(Descriptor, Tree)> {
        let Images(inner) = self;
        let capabilities = inner.containerd.capabilities()?;
        let ask = Ask {
            images: self,
            work,
            name: &reference.to_string(),
            hosts_dir: inner.registry.hosts_dir(reference).await?,
            credentials,
            progress,
        };
        let unpacks = capabilities.may_unpack_by_transfer(snapshotter).then_some(snapshotter);
        let mut ended = ask.containerd(unpacks).await;
        if unpacks.is_some() && ended.as_ref().is_err_and(TransferRequest::is_unpack_refused) {
            debug!(snapshotter, "Transfer does not unpack for this snapshotter");
            capabilities.transfer_refused(snapshotter);
            ended = ask.containerd(None).await;
        }
        ended?;
        let target = inner.containerd.image(work.lease()).await?.target;
        inner.containerd.delete_image(work.lease(), false).await?;
        let tree = tree::walk(&inner.containerd, &Source::Store, &inner.node, &target).await;
        let tree = tree.map_err(|error| match error.kind() {
            Kind::NotFound => error.with_kind(Kind::FailedPrecondition),
            _ => error,
        })?;
        Unpack { images: self, work, tree: &tree, snapshotter, name: ask.name, fetch: None }.run().await?;
        Ok((target, tree))
    }
}

/// Whether containerd would ask someone about an image.
fn has_verifiers(capabilities: &Capabilities, dir: &Path) -> bool {
    let has_programs = || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    // Whatever else is there was built in for a purpose.
    capabilities.image_verifiers().any(|id| id != "bindir" || has_programs())
}

/// What one transfer is made of.
struct Ask<'a> {
    images: &'a Images,
    work: &'a Work,
    name: &'a str,
    hosts_dir: Option<String>,
    credentials: &'a Credentials,
    progress: &'a Progress,
}

impl Ask<'_> {
    /// Has containerd do it, and unpack for a snapshotter or only fetch.
    async fn containerd(&self, snapshotter: Option<&str>) -> Result<()> {
        let Images(inner) = self.images;
        let platforms = inner.node.platforms().iter().map(|platform| TransferPlatform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
        });
        let request = TransferRequest {
            reference: self.name,
            record: self.work.lease(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), EXPIRED.to_owned())]),
            hosts_dir: self.hosts_dir.as_deref(),
            headers: inner.registry.configured_headers(),
            credentials: self.logins()?,
            platforms: platforms.collect(),
            snapshotter,
            lease: self.work.lease(),
            ..Default::default()
        };
        let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
        let reader = self.work.transfer();
        let mut downloads = Downloads::new(&inner.heard, self.progress);
        let ended = tokio::select! {
            ended = inner.containerd.transfer_image(request, sender, &reader) => ended.map_err(|error| {
                explained(error, &|text| self.credentials.masked(text))
            }),
            error = downloads.stuck(receiver, inner.settings.progress_limit) => Err(error),
        };
        // A collection of its own is only for what was begun and not finished.
        if ended.is_ok() || !downloads.has_begun {
            self.work.transferred();
        }
        ended
    }

    /// What containerd is told when it asks who we are.
    fn logins(&self) -> Result<Option<crate::containerd::Credentials>> {
        if self.credentials.is_registry_token() {
            return Err(unimplemented(
                "containerd's Transfer service takes no registry token: \
                 give user and password or an identity token, or set image.puller to \"client\"",
            ));
        }
        let credentials = self.credentials.clone();
        let configured = self.images.0.registry.configured_secrets();
        Ok(Some(Arc::new(move |host: &str| {
            let known = if credentials.are_absent() { configured(host) } else { None };
            match known.or_else(|| credentials.for_host(host).cloned())? {
                Secret::Password { user, password } => {
                    Some(Login::Password { username: user, secret: password })
                }
                Secret::Identity(token) => Some(Login::Identity(token)),
                Secret::Registry(_) => None,
            }
        })))
    }
}
