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
//!
//! Errors of registries come as one text for the server that seemed to matter most. What
//! the kubelet needs to know of it is read from Go's and containerd's words.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Images;
use super::reference::Reference;
use super::registry::{Credentials, REFUSED, Secret, UNAVAILABLE};
use super::tree::{self, Source, Tree};
use super::unpack::Unpack;
use super::work::Work;
use crate::config::Puller;
use crate::containerd::{
    Capabilities, Descriptor, Login, TransferPlatform, TransferProgress, TransferRequest,
};
use crate::error::{Error, Kind, Result, deadline, not_found, precondition, unimplemented, unknown};
use crate::flow::{self, lock};

/// Reports of progress that may wait to be read.
const PROGRESS_MAX: usize = 64;
/// How long containerd's verifiers may take: so long it gives ten of them by default.
const VERIFIERS_LIMIT: Duration = Duration::from_secs(100);
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
        let has_verifiers = flow::blocking(move || Ok(has_verifiers(&capabilities, &dir))).await?;
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
    ) -> Result<(Descriptor, Tree)> {
        let Images(inner) = self;
        let capabilities = inner.containerd.capabilities()?;
        let ask = Ask {
            images: self,
            work,
            name: &reference.to_string(),
            hosts_dir: inner.registry.hosts_dir(reference).await?,
            credentials,
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
            credentials: self.logins()?,
            platforms: platforms.collect(),
            snapshotter,
            lease: self.work.lease(),
            ..Default::default()
        };
        let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
        let reader = self.work.transfer();
        let mut downloads = Downloads::new(&inner.heard);
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
        Ok(Some(Arc::new(move |host: &str| match credentials.for_host(host)? {
            Secret::Password { user, password } => {
                Some(Login::Password { username: user.clone(), secret: password.clone() })
            }
            Secret::Identity(token) => Some(Login::Identity(token.clone())),
            Secret::Registry(_) => None,
        })))
    }
}

/// When a transfer of this process got bytes last.
#[derive(Default)]
pub(super) struct Heard(Mutex<Option<Instant>>);

/// What containerd is downloading, for the time-out of a pull without progress (IMG-31).
///
/// containerd tells of bytes a megabyte at a time, and not whether a download without
/// any has begun or waits for its turn. Its turns are for all transfers together: a pull
/// is stuck when it has downloads before it, and no transfer got anything.
struct Downloads<'a> {
    heard: &'a Heard,
    /// When there was something new of this pull.
    since: Instant,
    /// Whether more is done than resolving.
    has_begun: bool,
    open: HashSet<String>,
}

impl<'a> Downloads<'a> {
    fn new(heard: &'a Heard) -> Downloads<'a> {
        Downloads { heard, since: Instant::now(), has_begun: false, open: HashSet::new() }
    }

    /// Follows the progress; comes back with an error when nothing moves for `limit`.
    async fn stuck(
        &mut self,
        mut progress: mpsc::Receiver<TransferProgress>,
        limit: Option<Duration>,
    ) -> Error {
        loop {
            let end = limit.and_then(|limit| self.end(limit));
            let silence = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = progress.recv() => match told {
                    Some(told) => self.note(told),
                    // The call says how it ended.
                    None => return std::future::pending().await,
                },
                // Others may have heard something meanwhile.
                () = silence => if let Some(limit) = limit && self.end(limit) == end {
                    return deadline(format!(
                        "no registry sent a byte for {} s (image.pull_progress_timeout_s)",
                        limit.as_secs_f32()
                    ));
                },
            }
        }
    }

    /// When it is too long for this pull.
    fn end(&self, limit: Duration) -> Option<Instant> {
        if !self.has_begun {
            return Some(self.since + limit + VERIFIERS_LIMIT);
        }
        let heard = lock(&self.heard.0).unwrap_or(self.since);
        (!self.open.is_empty()).then(|| self.since.max(heard) + limit)
    }

    fn note(&mut self, told: TransferProgress) {
        if told.name.is_empty() {
            return;
        }
        self.has_begun = true;
        self.since = Instant::now();
        match told.event.as_str() {
            "waiting" => {
                self.open.insert(told.name);
            }
            // Told whenever there is more than before.
            "downloading" => {
                *lock(&self.heard.0) = Some(self.since);
                self.open.insert(told.name);
            }
            _ => {
                self.open.remove(&told.name);
            }
        }
    }
}

/// A transfer's error as the kubelet is to see it, with `masked` over its words.
fn explained(error: Error, masked: &dyn Fn(String) -> String) -> Error {
    if TransferRequest::is_unpack_refused(&error) {
        return error;
    }
    let text = masked(without_secrets(error.message()));
    let has = |words: &str| text.contains(words);
    if has("image verifier") && has("blocked pull of") {
        return unknown(format!("{REFUSED}{text}"));
    }
    if has("dial tcp") || has("TLS handshake timeout") {
        return unknown(format!("{UNAVAILABLE}{text}"));
    }
    if has("no match for platform") {
        return precondition(format!("no matching platform: {text}"));
    }
    if has("schema 1 image manifests") || has("docker.distribution.manifest.v1+") {
        return unimplemented(text);
    }
    match error.kind() {
        // Of all that can be missing, only the image itself is what the kubelet asked for.
        Kind::NotFound if has("failed to resolve image") => not_found(text),
        kind @ (Kind::Unavailable | Kind::DeadlineExceeded | Kind::Canceled | Kind::ResourceExhausted) => {
            Error::new(kind, text)
        }
        _ => unknown(text),
    }
}

/// `text` with its URLs cut down to what is no secret: without a user, and without a
/// query, in which storage servers are given signatures (IMG-19).
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("://") {
        let (before, url) = rest.split_at(begin + 3);
        clean.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let (url, query) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let host_end = url.find('/').unwrap_or(url.len());
        let begin = url[..host_end].rfind('@').map_or(0, |at| at + 1);
        clean.push_str(&url[begin..]);
        // What stands after the URL in the sentence, and not in it.
        let sentence = query.len() - query.trim_end_matches([':', ',', ';', '.', ')']).len();
        clean.push_str(&query[query.len() - sentence..]);
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::invalid;

    #[test]
    fn what_the_kubelet_must_know_is_read_from_the_words() {
        let plain = |text: String| text;
        let resolve = |end: &str| format!("containerd's Transfer.Transfer: failed to resolve image: {end}");
        for (kind, text, want, begins) in [
            (
                Kind::Unknown,
                resolve(
                    "failed to do request: Head \"http://[::1]:1/v2/a/manifests/1\": dial tcp [::1]:1: connect: connection refused",
                ),
                Kind::Unknown,
                "RegistryUnavailable: containerd's",
            ),
            (Kind::NotFound, resolve("r.io/a:1: not found"), Kind::NotFound, "containerd's"),
            (Kind::NotFound, "lease does not exist: not found".to_owned(), Kind::Unknown, "lease"),
            (
                Kind::NotFound,
                "no match for platform in manifest: not found".to_owned(),
                Kind::FailedPrecondition,
                "no matching platform: ",
            ),
            (
                Kind::Unknown,
                "image verifier bindir blocked pull of r.io/a:1 with digest sha256:1 for reason: no"
                    .to_owned(),
                Kind::Unknown,
                "SignatureValidationFailed: image verifier",
            ),
            (
                Kind::InvalidArgument,
                "schema 1 image manifests are no longer supported".to_owned(),
                Kind::Unimplemented,
                "schema 1",
            ),
            (Kind::FailedPrecondition, "unexpected commit digest".to_owned(), Kind::Unknown, "unexpected"),
            (Kind::Unavailable, "containerd does not answer".to_owned(), Kind::Unavailable, "containerd"),
        ] {
            let error = explained(Error::new(kind, text.clone()), &plain);
            assert_eq!(error.kind(), want, "{text}");
            assert!(error.message().starts_with(begins), "{error}");
        }
    }

    #[test]
    fn urls_lose_what_may_be_secret() {
        for (text, want) in [
            ("no URL: a@b?c", "no URL: a@b?c"),
            ("Get \"https://u:p@r.io/v2/a?ns=x&token=s\": EOF", "Get \"https://r.io/v2/a\": EOF"),
            (
                "from GET request to https://s3.example/b/c?X-Sig=1: 403 Forbidden",
                "from GET request to https://s3.example/b/c: 403 Forbidden",
            ),
            ("https://r.io/v2/a: not found", "https://r.io/v2/a: not found"),
            ("http://a?x http://b@c:5#d", "http://a http://c:5"),
            ("https://r.io/a@sha256:1?s (x)", "https://r.io/a@sha256:1 (x)"),
        ] {
            assert_eq!(without_secrets(text), want);
        }
        let echo = invalid("server message: no user ann with hunter2");
        let masked = explained(echo, &|text| text.replace("hunter2", "<masked>"));
        assert!(!masked.message().contains("hunter2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_is_stuck_when_no_transfer_gets_what_it_waits_for() {
        let told = |event: &str, name: &str| TransferProgress {
            event: event.into(),
            name: name.into(),
            ..Default::default()
        };
        let (heard, limit) = (Heard::default(), Some(Duration::from_secs(10)));
        let (sender, receiver) = mpsc::channel(8);
        let mut downloads = Downloads::new(&heard);
        let mut stuck = Box::pin(downloads.stuck(receiver, limit));
        let mut wait = async |seconds| tokio::time::timeout(Duration::from_secs(seconds), &mut stuck).await;
        let send = |told| sender.try_send(told).expect("room");
        send(told("Resolving from", ""));
        assert!(wait(100).await.is_err(), "it is resolved and verified");
        send(told("waiting", "layer-a"));
        assert!(wait(9).await.is_err());
        send(told("downloading", "layer-a"));
        assert!(wait(9).await.is_err(), "bytes came");
        *lock(&heard.0) = Some(Instant::now());
        assert!(wait(9).await.is_err(), "it may wait for another transfer");
        send(told("complete", "layer-a"));
        assert!(wait(1000).await.is_err(), "it is unpacked");
        send(told("waiting", "layer-b"));
        let error = wait(11).await.expect("stuck");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_never_resolves_is_given_up() {
        let heard = Heard::default();
        let (_sender, receiver) = mpsc::channel(1);
        let mut downloads = Downloads::new(&heard);
        let mut stuck = Box::pin(downloads.stuck(receiver, Some(Duration::from_secs(10))));
        tokio::time::timeout(VERIFIERS_LIMIT, &mut stuck).await.expect_err("verifiers may take so long");
        stuck.await;
        let forever = tokio::time::timeout(Duration::from_secs(100_000), async {
            let (_sender, receiver) = mpsc::channel(1);
            Downloads::new(&heard).stuck(receiver, None).await
        });
        forever.await.expect_err("no limit");
    }
}
