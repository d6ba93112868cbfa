//! Streams that are left alone for a moment.
//!
//! Most rest for the same time, and are woken in the order in which they came; those that
//! have read too much ([`super::throttle`]) rest longer. One timer, which is in the workers'
//! epoll, stands for the first of them; whichever worker
//! it wakes takes one stream and lets the timer wake another for the next. So a stream's
//! rest does not grow because the worker that read it last is busy with something else.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::Timespec;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::error::{Context, Result};
use crate::flow::lock;

/// How long a stream rests.
pub(super) const REST: Duration = Duration::from_millis(1);
/// The longest time that the timer is set to.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Those that rest now.
pub(super) struct Resting<T> {
    streams: Mutex<VecDeque<(Instant, Arc<T>)>>,
    timer: OwnedFd,
}

impl<T> Resting<T> {
    pub(super) fn new() -> Result<Resting<T>> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).context(|| "make a timer")?;
        Ok(Resting { streams: Mutex::default(), timer })
    }

    /// Becomes readable when a rest is over; for an edge-triggered watch.
    pub(super) fn timer(&self) -> &OwnedFd {
        &self.timer
    }

    /// Lets `stream` rest.
    pub(super) fn push(&self, stream: Arc<T>) {
        self.push_until(Instant::now() + REST, stream);
    }

    /// Lets `stream` rest until a time of its own.
    pub(super) fn push_until(&self, until: Instant, stream: Arc<T>) {
        let mut streams = lock(&self.streams);
        let place = streams.partition_point(|(other, _)| *other <= until);
        streams.insert(place, (until, stream));
        if place == 0 {
            self.wake_after(until.saturating_duration_since(Instant::now()));
        }
    }

    /// The first stream whose rest is over.
    pub(super) fn take(&self) -> Option<Arc<T>> {
        let mut streams = lock(&self.streams);
        let now = Instant::now();
        let is_over = streams.front().is_some_and(|(until, _)| *until <= now);
        let taken = if is_over { streams.pop_front() } else { None };
        if let Some((until, _)) = streams.front() {
            self.wake_after(until.saturating_duration_since(now));
        }
        taken.map(|(_, stream)| stream)
    }

    fn wake_after(&self, pause: Duration) {
        // Nothing would switch the timer off. One that wakes too early is set anew.
        let pause = pause.clamp(Duration::from_nanos(1), PAUSE_MAX);
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() },
        };
        // Refused only for what is no timer or no time.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn all_are_woken_in_their_order() {
        let resting = Resting::new().expect("made");
        let before = Instant::now();
        (0..5).for_each(|number| resting.push(Arc::new(number)));
        let mut woken = Vec::new();
        while woken.len() < 5 {
            let mut fds = [PollFd::new(resting.timer(), PollFlags::IN)];
            poll(&mut fds, None).expect("polled");
            woken.extend(resting.take().map(|number| *number));
        }
        assert_eq!(woken, [0, 1, 2, 3, 4]);
        assert!(before.elapsed() >= REST);
        assert!(resting.take().is_none());
    }

    #[test]
    fn who_rests_longer_does_not_hold_up_the_others() {
        let resting = Resting::new().expect("made");
        let now = Instant::now();
        resting.push_until(now + Duration::from_secs(3600), Arc::new("hour"));
        resting.push_until(now + 20 * REST, Arc::new("later"));
        resting.push(Arc::new("soon"));
        let mut woken = Vec::new();
        while woken.len() < 2 {
            let mut fds = [PollFd::new(resting.timer(), PollFlags::IN)];
            poll(&mut fds, None).expect("polled");
            woken.extend(resting.take().map(|name| *name));
        }
        assert_eq!(woken, ["soon", "later"]);
        assert!(resting.take().is_none());
    }
}
