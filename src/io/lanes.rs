//! Work that may take a while, in order for each container and beside the others'.
//!
//! Opening a file can hang on a disk. Each job belongs to a lane, a container's id: jobs
//! of one lane run one after the other in the order they were given, those of different
//! lanes at the same time on a few threads, which exist only while there is work.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::engine::{new_event, signal};
use crate::error::Result;
use crate::flow::lock;

/// Threads at most; the other lanes wait.
const THREADS_MAX: usize = 8;

/// Lanes whose jobs give `T`.
pub(super) struct Lanes<T>(Arc<Shared<T>>);

struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    done: Mutex<Vec<T>>,
    ready: OwnedFd,
}

struct Waiting<T> {
    jobs: VecDeque<(String, Box<dyn FnOnce() -> T + Send>)>,
    /// Lanes with a job that runs.
    busy: HashSet<String>,
    threads: usize,
}

impl<T: Send + 'static> Lanes<T> {
    pub(super) fn new() -> Result<Lanes<T>> {
        let waiting = Waiting { jobs: VecDeque::new(), busy: HashSet::new(), threads: 0 };
        let (waiting, done) = (Mutex::new(waiting), Mutex::default());
        Ok(Lanes(Arc::new(Shared { waiting, done, ready: new_event()? })))
    }

    /// Gives a job to `lane`.
    pub(super) fn run(&self, lane: String, job: impl FnOnce() -> T + Send + 'static) {
        let mut waiting = lock(&self.0.waiting);
        waiting.jobs.push_back((lane, Box::new(job)));
        if waiting.threads == THREADS_MAX {
            return;
        }
        waiting.threads += 1;
        drop(waiting);
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("keeper-job".into()).stack_size(256 << 10);
        if thread.spawn(move || shared.work()).is_err() {
            // No thread to be had: then here, late rather than never.
            self.0.work();
        }
    }

    /// Jobs that wait or run.
    pub(super) fn len(&self) -> usize {
        let waiting = lock(&self.0.waiting);
        waiting.jobs.len() + waiting.busy.len()
    }

    /// An eventfd that becomes readable when a job has ended.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.0.ready.as_fd()
    }

    /// What jobs have given since the last call.
    pub(super) fn take(&self) -> Vec<T> {
        let _ = rustix::io::read(&self.0.ready, &mut [0; 8]);
        std::mem::take(&mut *lock(&self.0.done))
    }
}

impl<T> Shared<T> {
    /// Runs what can run, then ends the thread.
    fn work(&self) {
        let mut ended: Option<(String, T)> = None;
        loop {
            let (lane, job) = {
                let mut waiting = lock(&self.waiting);
                if let Some((lane, result)) = ended.take() {
                    // At once with the end of the lane: who takes the result sees that it
                    // is free, and results of a lane keep their order.
                    waiting.busy.remove(&lane);
                    lock(&self.done).push(result);
                    signal(&self.ready);
                }
                let next = waiting.jobs.iter().position(|(lane, _)| !waiting.busy.contains(lane));
                let Some((lane, job)) = next.and_then(|next| waiting.jobs.remove(next)) else {
                    waiting.threads -= 1;
                    return;
                };
                waiting.busy.insert(lane.clone());
                (lane, job)
            };
            ended = Some((lane, job()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_lane_keeps_its_order_and_does_not_hold_up_another() {
        let lanes = Lanes::new().expect("made");
        let (release, gate) = channel::<()>();
        let (tell, other_ran) = channel::<()>();
        lanes.run("a".into(), move || {
            gate.recv().expect("released");
            1
        });
        lanes.run("a".into(), || 2);
        lanes.run("b".into(), move || {
            tell.send(()).expect("somebody listens");
            3
        });
        // The second lane comes through while the first is stuck.
        other_ran.recv().expect("it ran");
        release.send(()).expect("it waits");
        let mut results = Vec::new();
        while results.len() < 3 {
            let mut ready =
                [rustix::event::PollFd::from_borrowed_fd(lanes.ready(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut ready, None).expect("polled");
            results.extend(lanes.take());
        }
        assert_eq!(lanes.len(), 0, "whoever has all results sees that no job runs");
        results.retain(|&result| result != 3);
        assert_eq!(results, [1, 2]);
    }
}
