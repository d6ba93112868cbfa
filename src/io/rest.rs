//! Streams that are left alone for a moment.
//!
//! Each rests for the same time, so they are woken in the order in which they came. One
//! timer, which is in the workers' epoll, stands for the first of them; whichever worker
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
        let mut streams = lock(&self.streams);
        streams.push_back((Instant::now() + REST, stream));
        if streams.len() == 1 {
            self.wake_after(REST);
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
        // Nothing would switch the timer off.
        let nanos = pause.clamp(Duration::from_nanos(1), REST).subsec_nanos();
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: nanos.into() },
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
}
