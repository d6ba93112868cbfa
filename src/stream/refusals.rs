//! Clients that came to nothing, and how the log tells of them: with their first, and from
//! then on once in a while in one line for all, however many there are. Who sends garbage
//! ten thousand times fills no disk with it.

use std::fmt::Display;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::flow::lock;

/// How often the log tells of them.
const PAUSE: Duration = Duration::from_secs(60);
/// What is kept of the last reason, which has the client's own words in it.
const REASON_CHARS_MAX: usize = 200;

/// Why a client came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It was answered with an error: its token, its protocol.
    Refused,
    /// It does not speak HTTP, or TLS.
    Garbage,
    /// It did not say in time what it wants.
    Slow,
    /// It had to make room for others.
    Crowded,
    /// The kernel did not hand it out.
    NotAccepted,
}

/// Those that the log has not told of.
#[derive(Default)]
pub(super) struct Refusals {
    counts: Mutex<Counts>,
    some: Notify,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    refused: u64,
    garbage: u64,
    slow: u64,
    crowded: u64,
    not_accepted: u64,
    /// Why the last of them was.
    last: String,
}

impl Refusals {
    /// Counts one.
    pub(super) fn count(&self, why: Why, reason: &dyn Display) {
        let reason = shortened(reason);
        debug!(?why, reason, "a streaming client came to nothing");
        let mut counts = lock(&self.counts);
        let count = match why {
            Why::Refused => &mut counts.refused,
            Why::Garbage => &mut counts.garbage,
            Why::Slow => &mut counts.slow,
            Why::Crowded => &mut counts.crowded,
            Why::NotAccepted => &mut counts.not_accepted,
        };
        *count += 1;
        counts.last = reason;
        drop(counts);
        self.some.notify_one();
    }

    /// Tells of them until `stop`.
    pub(super) async fn tell(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.some.notified()).await.is_some() {
            self.tell_now();
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                break;
            }
        }
        self.tell_now();
    }

    fn tell_now(&self) {
        let counts = self.take();
        if counts == Counts::default() {
            return;
        }
        let Counts { refused, garbage, slow, crowded, not_accepted, last } = counts;
        warn!(refused, garbage, slow, crowded, not_accepted, last, "streaming clients came to nothing");
    }

    fn take(&self) -> Counts {
        std::mem::take(&mut lock(&self.counts))
    }
}

/// The beginning of a reason, for the log.
pub(super) fn shortened(reason: &dyn Display) -> String {
    reason.to_string().chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_at_once_and_those_after_it_together() {
        let (refusals, stop) = (std::sync::Arc::new(Refusals::default()), CancellationToken::new());
        let (telling, ended) = (refusals.clone(), stop.clone());
        let telling = tokio::spawn(async move { telling.tell(&ended).await });
        let settle = || tokio::time::sleep(Duration::from_millis(1));
        refusals.count(Why::Garbage, &"one");
        settle().await;
        assert_eq!(*lock(&refusals.counts), Counts::default(), "it is told");
        for _ in 0..10_000 {
            refusals.count(Why::Garbage, &"more");
        }
        refusals.count(Why::Refused, &"x".repeat(10_000));
        tokio::time::sleep(PAUSE / 2).await;
        let waiting = lock(&refusals.counts).clone();
        assert_eq!((waiting.garbage, waiting.refused, waiting.last.len()), (10_000, 1, REASON_CHARS_MAX));
        tokio::time::sleep(PAUSE).await;
        assert_eq!(*lock(&refusals.counts), Counts::default(), "they are told");
        refusals.count(Why::Slow, &"in the end");
        stop.cancel();
        telling.await.expect("no panic");
        assert_eq!(*lock(&refusals.counts), Counts::default(), "none is left");
    }
}
