//! The workers of an engine, who can be told to stop and to go on again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tracing::error;

use super::{Shared, signal};
use crate::error::{Context, Result, unavailable};
use crate::flow::lock;

/// How often it is looked at whether the workers have ended.
const PAUSE: Duration = Duration::from_millis(1);

/// Who works, and who shall.
#[derive(Default)]
pub(super) struct Crew {
    /// Those who have not left.
    pub(super) at_work: usize,
    is_stopping: bool,
}

/// The threads of a crew.
pub(super) struct Workers {
    wanted: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// `wanted` threads that work for `shared`.
    ///
    /// # Errors
    /// Those of the system. Threads that have begun go on then.
    pub(super) fn start(wanted: usize, shared: &Arc<Shared>) -> Result<Workers> {
        let workers = Workers { wanted, threads: Mutex::default() };
        let started = workers.fill(shared);
        if started.is_err() {
            workers.join(shared);
        }
        started.map(|()| workers)
    }

    /// Lets all workers end with what they have in hand.
    ///
    /// # Errors
    /// Unavailable if one has not ended within `limit`, as when a disk hangs.
    pub(super) fn halt(&self, shared: &Shared, limit: Duration) -> Result<()> {
        tell_to_stop(shared);
        let end = Instant::now() + limit;
        while lock(&shared.crew).at_work > 0 {
            if Instant::now() > end {
                return Err(unavailable("the log keeper is held up by a log file"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Goes on after [`Workers::halt`], whether that was done in time or not: there are as
    /// many workers as before then.
    pub(super) fn go_on(&self, shared: &Arc<Shared>) {
        // Who has not left by now stays: there is no moment between the two.
        lock(&shared.crew).is_stopping = false;
        let _ = rustix::io::read(&shared.stop, &mut [0; 8]);
        lock(&self.threads).retain(|thread| !thread.is_finished());
        if let Err(error) = self.fill(shared) {
            error!(%error, "a worker of the log keeper could not be started again");
        }
    }

    /// Ends all of them.
    pub(super) fn join(&self, shared: &Shared) {
        tell_to_stop(shared);
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }

    /// Starts those that are missing.
    fn fill(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut crew = lock(&shared.crew);
        while crew.at_work < self.wanted {
            let worker = std::thread::Builder::new().name("log".into()).stack_size(256 << 10);
            let shared = shared.clone();
            let thread = worker.spawn(move || shared.work_on()).context(|| "start a log worker")?;
            lock(&self.threads).push(thread);
            crew.at_work += 1;
        }
        Ok(())
    }
}

fn tell_to_stop(shared: &Shared) {
    lock(&shared.crew).is_stopping = true;
    signal(&shared.stop);
}

impl Shared {
    /// Works until told to stop, whatever goes wrong.
    fn work_on(&self) {
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            error!("a bug in the log keeper: a worker begins anew");
        }
    }

    /// Whether a worker who finds the event of the end has left with this.
    pub(super) fn leaves(&self) -> bool {
        let mut crew = lock(&self.crew);
        if crew.is_stopping {
            crew.at_work -= 1;
        }
        crew.is_stopping
    }

    /// Lets epoll tell the workers to stop.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn watch_stop(&self, mark: u64) -> Result<()> {
        epoll::add(&self.epoll, &self.stop, epoll::EventData::new_u64(mark), epoll::EventFlags::IN)
            .context(|| "watch an eventfd")
    }
}
