//! When a transfer is stuck (IMG-31).
//!
//! containerd tells of bytes a megabyte at a time, and not whether a download without
//! any has begun or waits for its turn. Its turns are for all transfers together: a pull
//! is stuck when it has downloads before it, and no transfer of this process got anything.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::containerd::TransferProgress;
use crate::error::{Error, deadline};
use crate::flow::lock;
use crate::image::progress::{LayerState, Progress};

/// How long containerd's verifiers may take: so long it gives ten of them by default.
const VERIFIERS_LIMIT: Duration = Duration::from_secs(100);

/// When a transfer of this process got bytes last.
#[derive(Default)]
pub(in crate::image) struct Heard(Mutex<Option<Instant>>);

/// What containerd is downloading for one pull.
pub(super) struct Downloads<'a> {
    heard: &'a Heard,
    /// When there was something new of this pull.
    since: Instant,
    /// Whether more is done than resolving.
    pub(super) has_begun: bool,
    open: HashSet<String>,
    /// Where it is shown.
    shown: &'a Progress,
}

impl<'a> Downloads<'a> {
    pub(super) fn new(heard: &'a Heard, shown: &'a Progress) -> Downloads<'a> {
        Downloads { heard, since: Instant::now(), has_begun: false, open: HashSet::new(), shown }
    }

    /// Follows the progress; comes back with an error when nothing moves for `limit`.
    pub(super) async fn stuck(
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
        self.show(&told);
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

    fn show(&self, told: &TransferProgress) {
        // Ingests are named by what they hold.
        let Some(digest) = told.name.strip_prefix("layer-") else { return };
        let state = match told.event.as_str() {
            "waiting" => LayerState::Waiting,
            "downloading" => LayerState::Downloading,
            "complete" | "already exists" => LayerState::Downloaded,
            "extracting" => LayerState::Unpacking,
            "extracted" => LayerState::Done,
            _ => return,
        };
        let fetched = (told.event == "downloading").then_some(told.current);
        self.shown.told(digest, told.total, fetched, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[tokio::test(start_paused = true)]
    async fn a_pull_is_stuck_when_no_transfer_gets_what_it_waits_for() {
        let told = |event: &str, name: &str| TransferProgress {
            event: event.into(),
            name: name.into(),
            ..Default::default()
        };
        let (heard, limit) = (Heard::default(), Some(Duration::from_secs(10)));
        let (sender, receiver) = mpsc::channel(8);
        let progress = Progress::new("r.io/a:1", "overlayfs");
        let mut downloads = Downloads::new(&heard, &progress);
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
        let progress = Progress::new("r.io/a:1", "overlayfs");
        let mut downloads = Downloads::new(&heard, &progress);
        let mut stuck = Box::pin(downloads.stuck(receiver, Some(Duration::from_secs(10))));
        tokio::time::timeout(VERIFIERS_LIMIT, &mut stuck).await.expect_err("verifiers may take so long");
        stuck.await;
        let forever = tokio::time::timeout(Duration::from_secs(100_000), async {
            let (_sender, receiver) = mpsc::channel(1);
            Downloads::new(&heard, &progress).stuck(receiver, None).await
        });
        forever.await.expect_err("no limit");
    }
}
