//! Work that several callers wait for, and that ends with the last of them.
//!
//! Where [`super::Joins`] carries its work through whatever becomes of the callers,
//! work shared here is only worth doing while someone waits: a pull whose caller went
//! away must stop (IMG-32). The work runs on a task of its own and gets a token that
//! is cancelled when the last caller's future is dropped; it then cleans up and ends.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::{Flow, lock};
use crate::error::{Result, internal};
use crate::trace;

type Calls<T> = Mutex<HashMap<String, Weak<Call<T>>>>;

/// Running work by key.
pub struct Shared<T> {
    calls: Arc<Calls<T>>,
}

/// One piece of work; held by its callers alone.
struct Call<T> {
    result: watch::Receiver<Option<Result<T>>>,
    stop: CancellationToken,
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { calls: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Shared<T> {
    /// Runs `work` under `key`, or waits for the work that runs under it already.
    ///
    /// `work` must watch its token and end soon after it is cancelled. A caller that
    /// comes after that starts anew.
    ///
    /// # Errors
    /// Those of `work`; Unavailable when the server is stopping.
    pub async fn run<F>(&self, flow: &Flow, key: &str, work: impl FnOnce(CancellationToken) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut is_joined = false;
        let call = {
            let mut calls = lock(&self.calls);
            match calls.get(key).and_then(Weak::upgrade) {
                Some(call) => {
                    is_joined = true;
                    call
                }
                None => {
                    let (sender, result) = watch::channel(None);
                    let stop = CancellationToken::new();
                    let call = Arc::new(Call { result, stop: stop.clone() });
                    let this = Arc::downgrade(&call);
                    calls.insert(key.to_owned(), this.clone());
                    let (flow, work) = (flow.clone(), work(stop));
                    let (calls, key) = (self.calls.clone(), key.to_owned());
                    tokio::spawn(
                        async move {
                            let ended = flow.detach(work).await;
                            let mut calls = lock(&calls);
                            if calls.get(&key).is_some_and(|call| Weak::ptr_eq(call, &this)) {
                                calls.remove(&key);
                            }
                            sender.send_replace(Some(ended));
                        }
                        .instrument(Span::current()),
                    );
                    call
                }
            }
        };
        let mut result = call.result.clone();
        let ended = result.wait_for(Option::is_some);
        let ended = match is_joined {
            true => trace::wait("the same work, which runs already for another call", ended).await,
            false => ended.await,
        };
        ended.map_or_else(
            |_| Err(internal("a bug in longshore: shared work vanished")),
            |ended| ended.clone().unwrap_or_else(|| Err(internal("a bug in longshore: no result"))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::canceled;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn callers_of_one_key_share_one_run() {
        let (flow, shared, runs) = (Flow::default(), Shared::<u32>::default(), AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let call = || {
            shared.run(&flow, "a", |_| {
                runs.fetch_add(1, Ordering::SeqCst);
                let gate = gate.clone();
                async move {
                    gate.notified().await;
                    Ok(7)
                }
            })
        };
        let (first, second, ()) = tokio::join!(call(), call(), async { gate.notify_one() });
        assert_eq!((first, second, runs.load(Ordering::SeqCst)), (Ok(7), Ok(7), 1));
        assert!(lock(&shared.calls).is_empty());
    }

    #[tokio::test]
    async fn the_last_caller_to_leave_stops_the_work() {
        let (flow, shared) = (Flow::default(), Shared::<u32>::default());
        let (stopped, is_stopped) = tokio::sync::oneshot::channel();
        let mut stopped = Some(stopped);
        let mut call = || {
            let stopped = stopped.take();
            shared.run(&flow, "a", move |stop| async move {
                stop.cancelled().await;
                let _ = stopped.map(|stopped| stopped.send(()));
                Err(canceled("nobody waits"))
            })
        };
        {
            let mut second = {
                let mut first = Box::pin(call());
                let mut second = Box::pin(call());
                assert!(futures_util::poll!(first.as_mut()).is_pending());
                assert!(futures_util::poll!(second.as_mut()).is_pending());
                second
            };
            // The first caller is gone, the second still waits.
            tokio::task::yield_now().await;
            assert!(futures_util::poll!(second.as_mut()).is_pending());
        }
        is_stopped.await.expect("the work was told to stop");
        // A new caller does not join what is being stopped.
        assert_eq!(shared.run(&flow, "a", |_| async { Ok(1) }).await, Ok(1));
    }
}
