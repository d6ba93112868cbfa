//! Which of many queues to look at.
//!
//! The task of a connection waits for as many queues as its client has streams. Each has a
//! waker of its own here that notes its number, so that a wake-up costs no look at all the
//! others, and a piece that arrives costs no allocation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// The numbers whose queues have something.
#[derive(Debug, Default)]
pub(super) struct Ready(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    numbers: Mutex<Vec<u32>>,
    task: AtomicWaker,
}

/// The waker of one number.
#[derive(Debug)]
pub(super) struct Signal {
    state: Arc<State>,
    waker: Waker,
}

#[derive(Debug)]
struct State {
    number: u32,
    /// It is among the numbers already.
    noted: AtomicBool,
    shared: Arc<Shared>,
}

impl Ready {
    /// A waker for a number.
    pub(super) fn signal(&self, number: u32) -> Signal {
        let state = Arc::new(State { number, noted: AtomicBool::new(false), shared: Arc::clone(&self.0) });
        Signal { waker: Waker::from(Arc::clone(&state)), state }
    }

    /// The task that is to be woken.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.0.task.register(cx.waker());
    }

    /// Moves the numbers into `numbers`.
    pub(super) fn take(&self, numbers: &mut Vec<u32>) {
        numbers.append(&mut self.0.numbers.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Signal {
    /// To be called before the queue is looked at: from now on it is noted anew.
    pub(super) fn clear(&self) {
        self.state.noted.store(false, Ordering::Release);
    }

    /// What the queue is to be polled with.
    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// Has the number looked at, as if its queue had woken it.
    pub(super) fn note(&self) {
        self.waker.wake_by_ref();
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            let mut numbers = self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            numbers.push(self.number);
            drop(numbers);
            self.shared.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_noted_once_until_it_is_cleared() {
        let ready = Ready::default();
        let (one, two) = (ready.signal(1), ready.signal(2));
        one.note();
        two.note();
        one.note();
        let mut numbers = Vec::new();
        ready.take(&mut numbers);
        assert_eq!(numbers, [1, 2]);
        one.note();
        ready.take(&mut numbers);
        assert_eq!(numbers, [1, 2]);
        one.clear();
        one.note();
        ready.take(&mut numbers);
        assert_eq!(numbers, [1, 2, 1]);
    }
}
