//! Cpu per second, from earlier samples (STA-04).
//!
//! containerd's plugin samples every container once a second, always. Here the samples are
//! those of earlier asks: the kubelet asks every ten seconds, and what it gets is the rate
//! over these. Samples are kept a second apart at least, so that two clients that ask at
//! different times do not shorten each other's windows to nothing; one that is older than
//! two minutes says nothing about now, as in the plugin.
//!
//! Without a usable sample, which is the first ask of all and the first after a pause, the
//! sampler reads the counter once more after [`SHORT`]: two periods of the usual cpu quota,
//! less than which would show a throttled container as idle or as busy by chance. A client
//! that asks once an hour so gets a rate as well, and nothing runs in between.
//!
//! Times are those of the monotonic clock: a wall clock that is set back would else make a
//! short window of a long one, and an enormous rate. A counter that went backwards (the
//! machine was restored, a VM was replaced) is a new beginning.

use std::time::{Duration, Instant};

/// The window that is preferred at least, and the distance of samples that are kept.
const WINDOW: Duration = Duration::from_secs(1);
/// The window that will do.
pub(super) const SHORT: Duration = Duration::from_millis(200);
/// The window at most.
const OLDEST: Duration = Duration::from_secs(120);

/// A counter of cpu time, as read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) at: Instant,
    pub(super) cpu_ns: u64,
}

/// Earlier samples: the last one and the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History([Option<Usage>; 2]);

impl History {
    /// Takes a sample, and gives the rate in billionths of a core; none where there is
    /// nothing to compare it with.
    pub(super) fn rate(&mut self, now: Usage) -> Option<u64> {
        for kept in &mut self.0 {
            let is_usable = |kept: &Usage| {
                now.at.saturating_duration_since(kept.at) <= OLDEST && kept.cpu_ns <= now.cpu_ns
            };
            *kept = kept.filter(is_usable);
        }
        let age = |kept: &Usage| now.at.saturating_duration_since(kept.at);
        let [last, before] = self.0;
        let far_enough = |window: Duration| move |kept: &Usage| age(kept) >= window;
        let base = last
            .filter(far_enough(WINDOW))
            .or(before.filter(far_enough(WINDOW)))
            .or(last.filter(far_enough(SHORT)));
        if last.is_none_or(|last| age(&last) >= WINDOW) {
            self.0 = [Some(now), last.or(before)];
        }
        let base = base?;
        let (used, passed) = (now.cpu_ns - base.cpu_ns, age(&base).as_nanos().max(1));
        Some(u64::try_from(u128::from(used) * 1_000_000_000 / passed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates of a counter that is read at some milliseconds, in thousandths of a core.
    fn rates(reads: &[(u64, u64)]) -> Vec<Option<u64>> {
        let begin = Instant::now();
        let mut history = History::default();
        let usage = |&(at_ms, cpu_ms): &(u64, u64)| Usage {
            at: begin + Duration::from_millis(at_ms),
            cpu_ns: cpu_ms * 1_000_000,
        };
        reads.iter().map(|read| history.rate(usage(read)).map(|rate| rate / 1_000_000)).collect()
    }

    #[test]
    fn a_second_reading_gives_the_first_rate() {
        assert_eq!(rates(&[(0, 500), (200, 600)]), [None, Some(500)]);
        assert_eq!(rates(&[(0, 500), (100, 600)]), [None, None]);
    }

    #[test]
    fn the_window_is_the_last_ask() {
        assert_eq!(rates(&[(0, 0), (10_000, 1000), (20_000, 11_000)]), [None, Some(100), Some(1000)]);
    }

    #[test]
    fn who_asks_in_between_does_not_shorten_the_window() {
        // The second of these comes 10 ms after the first; its window is the longer one.
        let reads = [(0, 0), (10_000, 1000), (10_010, 1010), (10_900, 1100), (11_100, 1100)];
        assert_eq!(rates(&reads), [None, Some(100), Some(100), Some(100), Some(90)]);
    }

    #[test]
    fn old_samples_say_nothing() {
        assert_eq!(rates(&[(0, 0), (120_001, 1000), (120_201, 1100)]), [None, None, Some(500)]);
    }

    #[test]
    fn a_counter_that_goes_backwards_begins_anew() {
        assert_eq!(
            rates(&[(0, 9000), (10_000, 5), (20_000, 1005), (30_000, 1005)]),
            [None, None, Some(100), Some(0)]
        );
    }

    #[test]
    fn the_same_moment_and_one_before_are_no_window() {
        assert_eq!(rates(&[(5000, 10), (5000, 10), (4000, 20)]), [None, None, None]);
    }
}
