//! The recorder: the calls that run, and those that have ended as long as there is room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::ring::{Ring, Sort};
use super::story::Story;
use super::tree::{Room, Tree};

/// The most calls that run and are recorded; what comes on top is not.
const LIVE_MAX: usize = 1024;

/// All that is recorded.
pub struct Recorder {
    bytes_max: usize,
    room: Arc<Room>,
    live: Mutex<BTreeMap<u32, Arc<Tree>>>,
    ring: Mutex<Ring>,
    next: AtomicU32,
    news: watch::Sender<u64>,
}

/// How full it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The bound.
    pub bytes_max: usize,
    /// Bytes in use: of calls that run, and of those that have ended.
    pub bytes: usize,
    /// Calls that run.
    pub running: usize,
    /// Calls that were dropped for newer ones.
    pub dropped: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// One that takes at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Recorder {
        // Ids of one start are not those of the last, which logs and events still name.
        let mut first = [0; 4];
        let _ = getrandom::fill(&mut first);
        Recorder {
            bytes_max,
            room: Arc::new(Room { taken: AtomicUsize::new(0), bytes_max: bytes_max / 2 }),
            live: Mutex::default(),
            ring: Mutex::new(Ring::new(bytes_max)),
            next: AtomicU32::new(u32::from_le_bytes(first)),
            news: watch::Sender::new(0),
        }
    }

    /// A call begins; none where too many run.
    pub(super) fn begin(&self, method: String) -> Option<Arc<Tree>> {
        let mut live = lock(&self.live);
        if live.len() >= LIVE_MAX {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tree = Arc::new(Tree::new(number, method, self.room.clone()));
        live.insert(number, tree.clone());
        Some(tree)
    }

    /// All that a call caused has ended.
    pub(super) fn settle(&self, tree: &Tree) {
        lock(&self.live).remove(&tree.number);
        let (line, method) = tree.line();
        let sort = if is_look(&method) { Sort::Look } else { Sort::Change };
        let last = {
            let mut ring = lock(&self.ring);
            ring.push(sort, line, self.room.taken.load(Ordering::Relaxed));
            ring.last()
        };
        // Only where somebody follows.
        self.news.send_if_modified(|known| {
            *known = last;
            true
        });
    }

    /// The calls that run, the oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<Story> {
        let trees: Vec<Arc<Tree>> = lock(&self.live).values().cloned().collect();
        let mut stories: Vec<Story> = trees.iter().map(|tree| tree.story()).collect();
        stories.sort_by_key(|story| story.at_us);
        stories
    }

    /// Lines of calls that have ended after line `after`, at most about `bytes_max` of
    /// them, and the number to ask with for more.
    #[must_use]
    pub fn after(&self, after: u64, bytes_max: usize) -> (Vec<Bytes>, u64) {
        lock(&self.ring).after(after, bytes_max)
    }

    /// Waits until a call has ended after line `after`.
    pub async fn news(&self, after: u64) {
        // The sender lives as long as this.
        let _ = self.news.subscribe().wait_for(|last| *last > after).await;
    }

    /// How full it is.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (kept, dropped) = lock(&self.ring).figures();
        let bytes = kept + self.room.taken.load(Ordering::Relaxed);
        Figures { bytes_max: self.bytes_max, bytes, running: lock(&self.live).len(), dropped }
    }
}

/// Whether a method only looks.
#[must_use]
pub fn is_look(method: &str) -> bool {
    let begins = ["List", "Stream"].iter().any(|word| method.starts_with(word));
    let ends = ["Status", "Stats", "Info"].iter().any(|word| method.ends_with(word));
    begins || ends || matches!(method, "Version" | "RuntimeConfig" | "GetContainerEvents" | "unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(recorder: &Recorder, method: &str) {
        let tree = recorder.begin(method.into()).expect("room");
        let step = tree.begin(0, "stage", "a".into(), "b=c".into()).expect("room");
        tree.end(step);
        tree.answer("OK", None);
        recorder.settle(&tree);
    }

    #[test]
    fn the_bound_holds_under_ten_thousand_calls() {
        let recorder = Recorder::new(64 << 10);
        for number in 0..10_000 {
            call(&recorder, if number % 2 == 0 { "RunPodSandbox" } else { "ListContainers" });
            let figures = recorder.figures();
            assert!(figures.bytes <= figures.bytes_max, "{figures:?}");
        }
        let figures = recorder.figures();
        assert!(figures.running == 0 && figures.dropped > 9000, "{figures:?}");
        let (lines, _) = recorder.after(0, usize::MAX);
        let stories: Vec<Story> =
            lines.iter().map(|line| serde_json::from_slice(line).expect("a story")).collect();
        assert!(stories.iter().any(|story| story.method == "RunPodSandbox"));
        assert!(stories.iter().any(|story| story.method == "ListContainers"));
        assert!(stories.iter().all(|story| story.steps.len() == 1 && story.code == "OK"));
    }

    #[test]
    fn calls_that_run_are_shown_and_are_bounded() {
        let recorder = Recorder::new(16 << 20);
        let trees: Vec<_> = (0..LIVE_MAX).filter_map(|_| recorder.begin("PullImage".into())).collect();
        assert_eq!((trees.len(), recorder.begin("PullImage".into()).is_none()), (LIVE_MAX, true));
        assert_eq!(recorder.running().len(), LIVE_MAX);
        trees.iter().for_each(|tree| recorder.settle(tree));
        drop(trees);
        assert!(recorder.running().is_empty());
    }

    #[tokio::test]
    async fn who_follows_is_told() {
        let recorder = Recorder::new(1 << 20);
        let mut news = std::pin::pin!(recorder.news(0));
        assert!(futures_util::poll!(news.as_mut()).is_pending());
        call(&recorder, "Version");
        news.await;
        assert_eq!(recorder.after(0, usize::MAX).1, 1);
        recorder.news(0).await;
    }

    #[test]
    fn what_only_looks_is_known() {
        for look in ["Version", "Status", "PodSandboxStatus", "ListImages", "StreamContainers", "ImageFsInfo"]
        {
            assert!(is_look(look), "{look}");
        }
        for change in ["RunPodSandbox", "UpdateRuntimeConfig", "PullImage", "ExecSync", "[exit]"] {
            assert!(!is_look(change), "{change}");
        }
    }
}
