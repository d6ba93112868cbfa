//! How fast a stream may be read, where there is a limit
//! (`container.log_bytes_per_second_max`).
//!
//! What is not read stays in the FIFO, and when that is full the container waits: no line is
//! lost. Each stream has an allowance of its own, which a second of silence fills and which
//! never holds more: so one that says little is never held up, whatever it says at once.

use std::time::{Duration, Instant};

/// What may be read at once after a silence, and what is read at once later: as much as in
/// this time.
const BURST: Duration = Duration::from_secs(1);

/// What is read at once at least.
const READ_BYTES_MIN: u64 = 1 << 10;

/// The allowance of a stream.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// Bytes in a second; 0 means no limit.
    rate: u64,
    /// What was read is paid for at this time.
    paid_at: Option<Instant>,
}

impl Throttle {
    /// Sets the limit. Another one than before begins with a full allowance.
    pub(super) fn set(&mut self, rate: u64) {
        if self.rate != rate {
            *self = Throttle { rate, paid_at: None };
        }
    }

    /// When the next read may be, if it must wait.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        self.paid_at.filter(|at| self.rate > 0 && *at > now)
    }

    /// What may be read at once, of `room`.
    pub(super) fn read_bytes(&self, room: usize) -> usize {
        match self.rate {
            0 => room,
            rate => room.min(usize::try_from(rate.max(READ_BYTES_MIN)).unwrap_or(usize::MAX)),
        }
    }

    /// Pays for `count` bytes that were read at `now`.
    pub(super) fn pay(&mut self, count: usize, now: Instant) {
        if self.rate == 0 {
            return;
        }
        let full = now.checked_sub(BURST).unwrap_or(now);
        let nanos = count as u128 * 1_000_000_000 / u128::from(self.rate);
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let before = self.paid_at.map_or(full, |at| at.max(full));
        self.paid_at = before.checked_add(price).or(Some(before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_read_is_the_limit_in_the_long_run() {
        let (start, mut throttle) = (Instant::now(), Throttle::default());
        throttle.set(10_000);
        let (mut now, mut read) = (start, 0);
        while now < start + 60 * SECOND {
            match throttle.wait(now) {
                Some(until) => now = until,
                None => {
                    let count = throttle.read_bytes(1 << 20);
                    throttle.pay(count, now);
                    read += count;
                }
            }
        }
        // An allowance in the beginning, and what is read at once in the end.
        assert!((600_000..=620_000).contains(&read), "{read}");
    }

    #[test]
    fn who_was_silent_has_an_allowance_and_no_more() {
        let (start, mut throttle) = (Instant::now() + 10 * SECOND, Throttle::default());
        throttle.set(10_000);
        assert_eq!(throttle.wait(start), None);
        throttle.pay(10_000, start);
        assert_eq!(throttle.wait(start), None);
        throttle.pay(5_000, start);
        assert_eq!(throttle.wait(start), Some(start + SECOND / 2));
        // An hour later it is one second's worth again.
        let later = start + 3600 * SECOND;
        throttle.pay(20_000, later);
        assert_eq!(throttle.wait(later), Some(later + SECOND));
    }

    #[test]
    fn a_limit_that_changes_counts_at_once_and_none_is_none() {
        let (now, mut throttle) = (Instant::now(), Throttle::default());
        throttle.pay(1 << 30, now);
        assert_eq!((throttle.wait(now), throttle.read_bytes(5)), (None, 5));
        throttle.set(1);
        throttle.pay(1 << 30, now);
        assert!(throttle.wait(now).is_some());
        assert_eq!(throttle.read_bytes(1 << 20), 1 << 10);
        throttle.set(1);
        assert!(throttle.wait(now).is_some());
        throttle.set(0);
        assert_eq!(throttle.wait(now), None);
    }
}
