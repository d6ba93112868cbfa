//! Work on disks, which may hang: a broken device, a network file system without its server.
//!
//! A thread that waits for a disk cannot be called back. Each kind of disk therefore has
//! threads of its own, and one that hangs holds up what needs it and nothing else: not
//! Status, lists, figures, exec, stops.

use tokio::sync::Semaphore;

use super::blocking;
use crate::error::Result;
use crate::trace;

/// Threads for all disks together.
pub(crate) const DISK_THREADS: usize = {
    let (mut index, mut sum) = (0, 0);
    while index < Disk::ALL.len() {
        sum += Disk::ALL[index].threads();
        index += 1;
    }
    sum
};

/// What a disk has. On a node several of them may be on the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// `root`: what is kept of pods and containers.
    Root,
    /// What the kubelet and the node's owner have put somewhere: volumes, profiles.
    Host,
    /// CNI's cache and plugins.
    Cni,
    /// Layers, snapshots, and how registries are reached.
    Images,
}

impl Disk {
    /// All of them.
    const ALL: [Disk; 4] = [Disk::Root, Disk::Host, Disk::Cni, Disk::Images];

    /// How much works on it at a time; the rest waits, in order.
    const fn threads(self) -> usize {
        match self {
            // One kind, but many disks: a server of volumes that is gone must not hold up the
            // pods without any, and a node has 110 pods.
            Disk::Host => 128,
            Disk::Root | Disk::Cni | Disk::Images => 24,
        }
    }

    /// What a call waits for, as its trace says.
    fn wait(self) -> &'static str {
        match self {
            Disk::Root => "a thread for the disk of the root folder",
            Disk::Host => "a thread for the disks of volumes",
            Disk::Cni => "a thread for the disk of CNI",
            Disk::Images => "a thread for the disk of images",
        }
    }
}

static THREADS: [Semaphore; Disk::ALL.len()] = {
    let mut threads = [const { Semaphore::const_new(0) }; Disk::ALL.len()];
    let mut index = 0;
    while index < threads.len() {
        threads[index] = Semaphore::const_new(Disk::ALL[index].threads());
        index += 1;
    }
    threads
};

/// Runs work that reads or writes files of `disk` off the async threads, beside at most as
/// much as there are threads for that disk. It goes on when nobody waits for it any more.
///
/// # Errors
/// Those of `work`; Internal if it panicked.
pub async fn on_disk<T, F>(disk: Disk, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let thread = trace::wait(disk.wait(), THREADS[disk as usize].acquire()).await;
    blocking(move || {
        // The thread is free when it is, not when its caller goes away. Never closed.
        let _thread = thread.ok();
        work()
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_its_own_work_alone() {
        let (gate, hangs) = mpsc::channel::<()>();
        let hangs = std::sync::Arc::new(std::sync::Mutex::new(hangs));
        let hung: Vec<_> = (0..=Disk::Cni.threads())
            .map(|_| {
                let hangs = hangs.clone();
                tokio::spawn(on_disk(Disk::Cni, move || Ok(super::super::lock(&hangs).recv().is_err())))
            })
            .collect();
        while THREADS[Disk::Cni as usize].available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let mut late = std::pin::pin!(on_disk(Disk::Cni, || Ok(())));
        assert!(futures_util::poll!(late.as_mut()).is_pending());
        assert_eq!(on_disk(Disk::Root, || Ok(1)).await.expect("it runs"), 1);
        // Whose caller goes away keeps its thread.
        hung[0].abort();
        drop(gate);
        late.await.expect("it runs");
        for hung in hung.into_iter().skip(1) {
            assert!(hung.await.expect("no panic").expect("it ends"));
        }
    }
}
