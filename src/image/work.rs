//! Work on images in containerd, and what it must not leave behind.
//!
//! A [`Work`] owns a lease, so that containerd's collector takes nothing that was made
//! for it before the last reference is set (IMG-30), and remembers the ingests and
//! snapshots that are only half done. [`Work::end`] removes them and the lease; work
//! that is dropped instead, because its caller went away, does so in the background
//! (IMG-32). The lease expires by itself should the process die first, and
//! [`Leases::clear`] removes such leases at the next start (REC-15).
//!
//! All clients name the ingest of a blob alike. Of the pieces of work here one at a time
//! has it, from before it is opened until it is a blob or was taken away: else one that
//! fails would take away what another one writes.
//!
//! Of what containerd makes by itself for a transfer, only containerd knows what is half
//! done, and who else has a part in it: a transfer that did not come to a good end is
//! waited for, and what it left goes with the lease, in a collection of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use crate::containerd::Containerd;
use crate::error::{Collected, Kind, Result};
use crate::flow::{Keyed, KeyedGuard, Undo, lock};
use crate::ids::random_hex;

/// What the ids of our leases begin with.
pub const LEASE_PREFIX: &str = "longshore-image-";
/// After how long containerd drops a lease whose owner died.
const LEASE_HOURS: i64 = 24;
/// How long containerd may take to end a transfer that nobody waits for.
const TRANSFER_END_LIMIT: Duration = Duration::from_secs(20);

/// The leases of this process that are in use.
#[derive(Clone, Default)]
pub(super) struct Leases {
    ids: Arc<Mutex<BTreeSet<String>>>,
    /// Whether some are not in use and could not be removed.
    has_left: Arc<AtomicBool>,
    /// Ingests that belong to a piece of work.
    ingests: Keyed,
}

/// A piece of work under a lease.
pub(super) struct Work {
    lease: String,
    unfinished: Arc<Mutex<Unfinished>>,
    leases: Leases,
    /// Threads that write into the snapshots, and ingests that containerd has not let go of.
    writers: TaskTracker,
    /// Behind a lock only to be shared by the parts of the work.
    undo: Mutex<Undo>,
}

#[derive(Default)]
struct Unfinished {
    ingests: BTreeMap<String, KeyedGuard>,
    /// Snapshotter and key.
    snapshots: BTreeSet<(String, String)>,
    /// Whether what came in vain is in the way.
    is_urgent: bool,
    /// Ends when containerd is through with its transfers.
    transfers: Option<TaskTracker>,
}

impl Leases {
    /// Begins work under a new lease.
    ///
    /// # Errors
    /// Those of containerd.
    pub(super) async fn begin(&self, containerd: &Containerd) -> Result<Work> {
        if self.has_left.swap(false, Ordering::Relaxed)
            && let Err(error) = self.clear(containerd).await
        {
            self.has_left.store(true, Ordering::Relaxed);
            debug!(%error, "leases of earlier image work cannot be removed yet");
        }
        let lease = format!("{LEASE_PREFIX}{}", random_hex::<12>());
        let (unfinished, writers) = (Arc::<Mutex<Unfinished>>::default(), TaskTracker::new());
        lock(&self.ids).insert(lease.clone());
        let mut undo = Undo::default();
        {
            let (leases, containerd) = (self.clone(), containerd.clone());
            let (lease, unfinished, writers) = (lease.clone(), unfinished.clone(), writers.clone());
            undo.push("image work", move || async move {
                // They end soon: what threads read from has gone with the work, and ingests are closed.
                writers.close();
                writers.wait().await;
                let result = clean_up(&containerd, &lease, &unfinished).await;
                lock(&leases.ids).remove(&lease);
                result
            });
        }
        // From here on, dropping `work` undoes what was made, the lease first of all.
        let work = Work { lease, unfinished, leases: self.clone(), writers, undo: Mutex::new(undo) };
        let expiry = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(LEASE_HOURS);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), format!("{expiry:.0}"))]);
        containerd.create_lease(&work.lease, labels).await?;
        Ok(work)
    }

    /// Whether `name` is that of an image record which exists for the time of a work: it
    /// has the name of the work's lease.
    pub(super) fn has_record(name: &str) -> bool {
        name.starts_with(LEASE_PREFIX)
    }

    /// Removes the leases that are not in use: those of earlier processes, and of work
    /// that could not be cleaned up.
    ///
    /// # Errors
    /// Those of containerd.
    pub(super) async fn clear(&self, containerd: &Containerd) -> Result<()> {
        let mut errors = Collected::default();
        for lease in containerd.list_leases().await? {
            if lease.id.starts_with(LEASE_PREFIX) && !lock(&self.ids).contains(&lease.id) {
                errors.push(containerd.delete_lease(&lease.id, false).await);
            }
        }
        errors.finish()
    }
}

async fn clean_up(containerd: &Containerd, lease: &str, unfinished: &Mutex<Unfinished>) -> Result<()> {
    let unfinished = std::mem::take(&mut *lock(unfinished));
    let mut errors = Collected::default();
    if let Some(transfers) = &unfinished.transfers {
        transfers.close();
        if tokio::time::timeout(TRANSFER_END_LIMIT, transfers.wait()).await.is_err() {
            warn!(lease, "containerd is slow to end a transfer");
        }
    }
    for ingest in unfinished.ingests.keys() {
        errors.push(containerd.abort_ingest(ingest).await);
    }
    for (snapshotter, key) in &unfinished.snapshots {
        errors.push(containerd.remove_snapshot(snapshotter, key).await);
    }
    // What is left by now goes with the lease: at the next collection, for which containerd
    // waits until enough has changed, or at once.
    let is_urgent = unfinished.is_urgent || unfinished.transfers.is_some();
    errors.push(containerd.delete_lease(lease, is_urgent).await);
    errors.finish()
}

impl Work {
    /// The id of the lease.
    pub(super) fn lease(&self) -> &str {
        &self.lease
    }

    /// Waits until no other work has the ingest, and remembers that this one has it. The
    /// token is for who writes it.
    pub(super) async fn ingest(&self, reference: &str) -> TaskTrackerToken {
        let is_ours = lock(&self.unfinished).ingests.contains_key(reference);
        if !is_ours {
            let turn = self.leases.ingests.lock(reference).await;
            lock(&self.unfinished).ingests.insert(reference.to_owned(), turn);
        }
        self.writers.token()
    }

    /// Leaves it to others: it became a blob, or was aborted.
    pub(super) fn ingested(&self, reference: &str) {
        lock(&self.unfinished).ingests.remove(reference);
    }

    /// Remembers a snapshot that exists for the time of the work.
    pub(super) fn snapshot(&self, snapshotter: &str, key: &str) {
        lock(&self.unfinished).snapshots.insert((snapshotter.to_owned(), key.to_owned()));
    }

    /// Forgets it: it was committed.
    pub(super) fn committed(&self, snapshotter: &str, key: &str) {
        lock(&self.unfinished).snapshots.remove(&(snapshotter.to_owned(), key.to_owned()));
    }

    /// Remembers that containerd transfers an image under the lease. What reads its
    /// progress is to run on the tracker.
    pub(super) fn transfer(&self) -> TaskTracker {
        lock(&self.unfinished).transfers.get_or_insert_default().clone()
    }

    /// Forgets it: it came to a good end.
    pub(super) fn transferred(&self) {
        lock(&self.unfinished).transfers = None;
    }

    /// For a thread that writes into a snapshot of the work: while it has this, the
    /// snapshot is not removed at the end.
    pub(super) fn writer(&self) -> TaskTrackerToken {
        self.writers.token()
    }

    /// Removes what is half done, and the lease; where `result` says that a disk is full,
    /// also what is whole but came in vain. That something stays is only logged: the next
    /// work tries to remove its lease again, and it expires.
    pub(super) async fn end<T>(self, result: &Result<T>) {
        let is_full = result.as_ref().is_err_and(|error| error.kind() == Kind::ResourceExhausted);
        lock(&self.unfinished).is_urgent = is_full;
        let undo = self.undo.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = undo.run().await {
            warn!(lease = self.lease, %error, "image work left something that expires later");
            lock(&self.leases.ids).remove(&self.lease);
            self.leases.has_left.store(true, Ordering::Relaxed);
        }
    }
}
