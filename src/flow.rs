//! How work that changes the world is carried through.
//!
//! With gRPC a handler's future is dropped at an `.await` when the client resets the
//! stream or its deadline passes: code after that point would never run. Therefore
//! every mutating call runs on a task of its own ([`Flow::detach`]), and everything it
//! acquires registers its undo ([`Undo`]), which runs in reverse under a deadline of
//! its own. A retry of a call that still runs joins it ([`Joins`]), as the kubelet
//! retries with the same name after its deadline (NAM-04). Work that is only worth
//! doing while someone waits for it is [`Shared`]; [`Keyed`] are locks by name,
//! and [`Places`] so many at a time.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, warn};

mod disk;
mod keyed;
mod places;
mod shared;

pub(crate) use disk::DISK_THREADS;
pub use disk::{Disk, on_disk};
pub use keyed::{Keyed, KeyedGuard};
pub use places::{Place, Places};
pub use shared::Shared;

use crate::error::{Collected, Error, Result, already_exists, internal, unavailable};
use crate::points;
use crate::trace;

/// The longest that all undo steps of one failed call may take together (SVC-33).
const UNDO_LIMIT: Duration = Duration::from_secs(60);

/// How long the result of a call whose client went away waits for a retry (NAM-05).
pub const CLAIM_LIMIT: Duration = Duration::from_secs(180);

/// Tracks the tasks that must not be cut off when the server stops.
#[derive(Clone, Default)]
pub struct Flow {
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Flow {
    /// Runs `work` to its end, whatever becomes of the caller, and gives its result. It begins
    /// at once, in the span of the moment: the caller's own future does not have to hold it.
    ///
    /// # Errors
    /// Those of `work`; Internal if it panicked; Unavailable when the server is stopping.
    pub fn detach<T, F>(&self, work: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let running = (!self.tasks.is_closed()).then(|| self.conclude(work));
        async {
            match running {
                Some(running) => running.await,
                None => Err(unavailable("the server is stopping")),
            }
        }
    }

    /// The same, but also while the server is stopping: for what running calls wait for.
    ///
    /// # Errors
    /// Those of `work`; Internal if it panicked.
    pub fn conclude<T, F>(&self, work: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = self.tasks.spawn(work.instrument(Span::current()));
        async {
            match task.await {
                Ok(result) => result,
                Err(error) => Err(internal(format!("a bug in longshore: {error}"))),
            }
        }
    }

    /// Completes when the server begins to stop. Work that would go on as long as somebody
    /// likes it to, as a session with a process does, ends then by itself.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Refuses new work and waits for what runs, at most for `limit`.
    pub async fn drain(&self, limit: Duration) {
        self.tasks.close();
        self.stopping.cancel();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            warn!(running = self.tasks.len(), "calls were still running at the end of the shutdown limit");
        }
    }
}

type Step = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send>;

/// The undo steps of a call that is under way.
///
/// Each acquisition pushes its step; [`Undo::disarm`] at the end of success forgets
/// them. If the call panics instead, dropping the list runs the steps in the background.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl Undo {
    /// Registers `step`, which undoes `what`.
    pub fn push<F, Fut>(&mut self, what: &'static str, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.steps.push((what, Box::new(move || Box::pin(step()))));
    }

    /// Forgets all steps: what was made stays.
    pub fn disarm(mut self) {
        self.steps.clear();
    }

    /// Runs all steps, last first. A step that fails does not stop the others.
    ///
    /// # Errors
    /// The collected errors; the caller then leaves the object visible, so that a
    /// later Stop or Remove can finish the job (SBX-05).
    pub async fn run(mut self) -> Result<()> {
        Undo::run_steps(std::mem::take(&mut self.steps)).await
    }

    async fn run_steps(mut steps: Vec<(&'static str, Step)>) -> Result<()> {
        let end = tokio::time::Instant::now() + UNDO_LIMIT;
        let mut errors = Collected::default();
        while let Some((what, step)) = steps.pop() {
            let span = tracing::debug_span!("undo", name = what);
            let result = async {
                points::before(what)?;
                step().await
            };
            let result = tokio::time::timeout_at(end, result.instrument(span.clone()))
                .await
                .unwrap_or_else(|_| Err(crate::error::deadline("not done in time")));
            if let Err(error) = &result {
                trace::failed(&span, error.message());
            }
            errors.push(result.map_err(|error| error.context(format!("undo {what}"))));
        }
        errors.finish()
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.steps.is_empty() {
            return;
        }
        let steps = std::mem::take(&mut self.steps);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = Undo::run_steps(steps).await {
                    warn!(%error, "what a broken call left could not be undone");
                }
            });
        }
    }
}

/// The step at which a running call stands, for the text of a reservation error (NAM-06).
#[derive(Clone, Default)]
pub struct Stage(Arc<Mutex<String>>);

impl Stage {
    /// Says what the call does from now on.
    pub fn set(&self, what: impl Into<String>) {
        *lock(&self.0) = what.into();
    }

    fn get(&self) -> String {
        lock(&self.0).clone()
    }
}

/// Running calls by the name of what they make, so that a retry joins (NAM-04).
pub struct Joins<T> {
    running: Arc<Mutex<HashMap<String, Running<T>>>>,
}

struct Running<T> {
    request: Arc<[u8]>,
    stage: Stage,
    since: Instant,
    /// The id of the call whose work it is.
    story: Option<String>,
    result: watch::Sender<Option<Result<T>>>,
}

impl<T> Default for Joins<T> {
    fn default() -> Joins<T> {
        Joins { running: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Joins<T> {
    /// Runs `work` under `name`, or joins the same call if it runs already.
    ///
    /// `request` is the encoded request: a retry is the same call only if it is equal.
    /// If the client is gone when the work ends well, the result is kept for
    /// [`CLAIM_LIMIT`] for a retry; unclaimed, it is given to `abandoned`.
    ///
    /// # Errors
    /// Those of `work`; AlreadyExists if another request runs under this name, with
    /// its stage and age.
    pub async fn run<F, A>(
        &self,
        flow: &Flow,
        name: &str,
        request: Arc<[u8]>,
        work: impl FnOnce(Stage) -> F,
        abandoned: A,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        A: FnOnce(T) + Send + 'static,
    {
        let mut joined = None;
        let (mut result, started) = {
            let mut running = lock(&self.running);
            match running.get(name) {
                Some(call) if call.request == request => {
                    let ended = call.result.borrow().clone();
                    if let Some(ended) = ended {
                        // The retry claims what its first attempt left.
                        running.remove(name);
                        return ended;
                    }
                    let id = call.story.as_deref().unwrap_or("unknown");
                    joined = Some(format!("the same call, which runs already [trace {id}]"));
                    (call.result.subscribe(), None)
                }
                Some(call) => {
                    return Err(already_exists(format!(
                        "name {name:?} is reserved by another request, which is at {:?} since {} s",
                        call.stage.get(),
                        call.since.elapsed().as_secs(),
                    )));
                }
                None => {
                    let stage = Stage::default();
                    let (sender, receiver) = watch::channel(None);
                    let call = Running {
                        request,
                        stage: stage.clone(),
                        since: Instant::now(),
                        story: trace::id(),
                        result: sender,
                    };
                    running.insert(name.to_owned(), call);
                    (receiver, Some(stage))
                }
            }
        };
        if let Some(stage) = started {
            let (flow, work) = (flow.clone(), work(stage));
            let (running, name) = (self.running.clone(), name.to_owned());
            // The outer task only waits: the inner one is tracked and is what a
            // shutdown waits for.
            // The span is let go of before the result waits for a retry: the story of the call
            // ends with the work.
            let span = Span::current();
            tokio::spawn(async move {
                let handled = span.in_scope(|| flow.detach(work));
                drop(span);
                let ended = handled.await;
                publish(&running, &name, ended, abandoned).await;
            });
        }
        let waited = match joined {
            Some(what) => trace::wait(&what, result.wait_for(Option::is_some)).await,
            None => result.wait_for(Option::is_some).await,
        };
        match waited {
            Ok(ended) => ended.clone().unwrap_or_else(|| Err(internal("a bug in longshore: no result"))),
            Err(_) => Err(internal("a bug in longshore: the joined call vanished")),
        }
    }

    /// Forgets a result that still waits to be claimed: its object was removed.
    pub fn forget(&self, name: &str) {
        let mut running = lock(&self.running);
        if running.get(name).is_some_and(|call| call.result.borrow().is_some()) {
            running.remove(name);
        }
    }
}

/// Hands the result to whoever waits; without anyone, keeps a good one for a retry.
async fn publish<T: Clone, A: FnOnce(T)>(
    running: &Mutex<HashMap<String, Running<T>>>,
    name: &str,
    ended: Result<T>,
    abandoned: A,
) {
    let since = {
        let mut running = lock(running);
        let Some(call) = running.get(name) else { return };
        let (claimed, since) = (call.result.receiver_count() > 0, call.since);
        call.result.send_replace(Some(ended.clone()));
        if claimed || ended.is_err() {
            running.remove(name);
            return;
        }
        since
    };
    tokio::time::sleep(CLAIM_LIMIT).await;
    let unclaimed = {
        let mut running = lock(running);
        let is_ours = running.get(name).is_some_and(|call| call.since == since);
        is_ours.then(|| running.remove(name)).is_some()
    };
    if let (true, Ok(value)) = (unclaimed, ended) {
        abandoned(value);
    }
}

/// Locks a mutex whose data stays usable after a panic elsewhere.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work off the async threads: what the kernel answers at once (sockets, cgroups,
/// namespaces, files in memory). What may wait for a disk is [`on_disk`].
///
/// # Errors
/// Those of `work`; Internal if it panicked.
pub async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|error| Err(internal(format!("a bug in longshore: {error}"))))
}

/// Waits for `work` at most until `limit` has passed.
///
/// # Errors
/// Those of `work`; DeadlineExceeded naming `what`.
pub async fn limited<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            crate::error::Kind::DeadlineExceeded,
            format!("{what}: not done within {} s", limit.as_secs_f32()),
        ))
    })
}

#[cfg(test)]
mod tests;
