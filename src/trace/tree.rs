//! A call that runs: its story as far as it has got.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::story::{About, Step, Story};
use super::text::cut_ids;

/// The most steps of a call.
const STEPS_MAX: usize = 512;
/// The most bytes that a call's story takes.
const TREE_BYTES_MAX: usize = 64 << 10;
/// What a step takes besides its texts.
const STEP_BYTES: usize = 192;
/// The most bytes of each text.
const ARGS_BYTES_MAX: usize = 512;
const ERROR_BYTES_MAX: usize = 2 << 10;
const NOTE_BYTES_MAX: usize = 4 << 10;
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// What all calls that run take together, and how much that may be.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) taken: AtomicUsize,
    pub(super) bytes_max: usize,
}

/// A call that runs.
pub(super) struct Tree {
    pub(super) number: u32,
    begun: Instant,
    room: Arc<Room>,
    inner: Mutex<Inner>,
}

struct Inner {
    story: Story,
    bytes: usize,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.room.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Tree {
    pub(super) fn new(number: u32, method: String, room: Arc<Room>) -> Tree {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let story = Story {
            id: id_text(number),
            method,
            at_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
            ..Story::default()
        };
        let bytes = STEP_BYTES;
        room.taken.fetch_add(bytes, Ordering::Relaxed);
        Tree { number, begun: Instant::now(), room, inner: Mutex::new(Inner { story, bytes }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Takes room for so many bytes more; false where there is none.
    fn take(&self, inner: &mut Inner, bytes: usize) -> bool {
        let all = self.room.taken.load(Ordering::Relaxed);
        if inner.bytes + bytes > TREE_BYTES_MAX || all + bytes > self.room.bytes_max {
            return false;
        }
        inner.bytes += bytes;
        self.room.taken.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// A step begins: its number; none where there is no room for it.
    pub(super) fn begin(&self, parent: u32, kind: &str, name: String, args: String) -> Option<u32> {
        let at_us = self.now();
        let args = beginning(args, ARGS_BYTES_MAX);
        let mut inner = self.lock();
        let bytes = STEP_BYTES + name.len() + args.len();
        if inner.story.steps.len() >= STEPS_MAX || !self.take(&mut inner, bytes) {
            inner.story.left_out += 1;
            return None;
        }
        let kind = kind.to_owned();
        inner.story.steps.push(Step { parent, kind, name, args, at_us, ..Step::default() });
        u32::try_from(inner.story.steps.len()).ok()
    }

    fn with(&self, step: u32, change: impl FnOnce(&mut Step, u64)) {
        let now = self.now();
        if let Some(step) = self.lock().story.steps.get_mut((step as usize).wrapping_sub(1)) {
            change(step, now);
        }
    }

    /// Says of a step on what it works.
    pub(super) fn args(&self, step: u32, args: String) {
        let args = beginning(args, ARGS_BYTES_MAX);
        let mut inner = self.lock();
        if self.take(&mut inner, args.len())
            && let Some(step) = inner.story.steps.get_mut((step as usize).wrapping_sub(1))
        {
            if !step.args.is_empty() {
                step.args.push(' ');
            }
            step.args.push_str(&args);
        }
    }

    /// A step has ended; only its first end counts.
    pub(super) fn end(&self, step: u32) {
        self.with(step, |step, now| {
            step.us.get_or_insert(now.saturating_sub(step.at_us));
        });
    }

    /// A step has failed.
    pub(super) fn fail(&self, step: u32, why: &str) {
        let why = beginning(why.to_owned(), ERROR_BYTES_MAX);
        let mut inner = self.lock();
        let has_room = self.take(&mut inner, why.len());
        let now = self.now();
        if let Some(step) = inner.story.steps.get_mut((step as usize).wrapping_sub(1)) {
            step.us.get_or_insert(now.saturating_sub(step.at_us));
            if has_room && step.error.is_empty() {
                step.error = why;
            }
        }
    }

    /// Whether a step goes on.
    pub(super) fn is_open(&self, step: u32) -> bool {
        let inner = self.lock();
        inner.story.steps.get((step as usize).wrapping_sub(1)).is_some_and(|step| step.us.is_none())
    }

    /// Adds a longer text to a step.
    pub(super) fn note(&self, step: u32, key: &str, text: &str) {
        let text = beginning(text.to_owned(), NOTE_BYTES_MAX);
        let mut inner = self.lock();
        if self.take(&mut inner, text.len() + key.len() + STEP_BYTES / 4)
            && let Some(step) = inner.story.steps.get_mut((step as usize).wrapping_sub(1))
        {
            step.notes.push((key.to_owned(), text));
        }
    }

    /// The request, without its secrets.
    pub(super) fn request(&self, request: String) {
        let request = beginning(request, REQUEST_BYTES_MAX);
        let mut inner = self.lock();
        if self.take(&mut inner, request.len()) {
            inner.story.request = request;
        }
    }

    /// Says what the call is about. The texts are names and ids, which have bounds.
    pub(super) fn about(&self, fill: impl FnOnce(&mut About)) {
        let mut inner = self.lock();
        let size = |about: &About| {
            let About { object, pod, pod_id, container, container_id } = about;
            [object, pod, pod_id, container, container_id].map(String::len).iter().sum::<usize>()
        };
        let before = size(&inner.story.about);
        let mut about = inner.story.about.clone();
        fill(&mut about);
        about.object = beginning(about.object, ARGS_BYTES_MAX);
        if self.take(&mut inner, size(&about).saturating_sub(before)) {
            inner.story.about = about;
        }
    }

    /// It was answered. The id that an error is to carry.
    pub(super) fn answer(&self, code: &str, message: Option<&str>) -> Option<String> {
        let us = self.now();
        let mut inner = self.lock();
        if inner.story.us.is_some() {
            return None;
        }
        inner.story.us = Some(us);
        code.clone_into(&mut inner.story.code);
        let message = message?;
        let failure = failure_id(&inner.story, message);
        let error = beginning(message.to_owned(), ERROR_BYTES_MAX);
        if self.take(&mut inner, error.len()) {
            inner.story.error = error;
        }
        failure.clone_into(&mut inner.story.failure);
        Some(failure)
    }

    /// As it is now.
    pub(super) fn story(&self) -> Story {
        self.lock().story.clone()
    }

    /// As a line, and its method.
    pub(super) fn line(&self) -> (Vec<u8>, String) {
        let inner = self.lock();
        // Texts and numbers alone: it cannot fail.
        (serde_json::to_vec(&inner.story).unwrap_or_default(), inner.story.method.clone())
    }
}

/// A call's id as text.
pub(super) fn id_text(number: u32) -> String {
    format!("{:06x}", number & 0xff_ffff)
}

/// An id that is the same for the same failure of the same object: the kubelet counts
/// events of one text as one (ERR-10). Ids of pods and containers, which each attempt has new
/// ones of, do not count. FNV-1a, folded.
fn failure_id(story: &Story, message: &str) -> String {
    let About { object, pod, container, .. } = &story.about;
    let object = if pod.is_empty() { object } else { pod };
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for text in [story.method.as_str(), object, container, &cut_ids(message, 0)] {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    id_text((hash ^ (hash >> 24) ^ (hash >> 48)) as u32)
}

/// So much of a text as is kept.
fn beginning(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(bytes_max: usize) -> Tree {
        let room = Arc::new(Room { taken: AtomicUsize::new(0), bytes_max });
        Tree::new(0xab_cdef, "RunPodSandbox".into(), room)
    }

    #[test]
    fn a_call_has_so_many_steps_and_so_many_bytes() {
        let tree = tree(1 << 20);
        for _ in 0..STEPS_MAX + 10 {
            tree.begin(0, "stage", "a".into(), String::new());
        }
        let story = tree.story();
        let kept = story.steps.len();
        assert!(kept < STEPS_MAX, "bounded by bytes first: {kept}");
        assert_eq!(story.left_out as usize, STEPS_MAX + 10 - kept);
        tree.note(1, "stdin", &"ä".repeat(100_000));
        tree.fail(1, &"x".repeat(100_000));
        assert!(tree.room.taken.load(Ordering::Relaxed) <= TREE_BYTES_MAX);
        let room = tree.room.clone();
        drop(tree);
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn calls_share_what_room_there_is() {
        let tree = tree(1000);
        let begun = (0..10).filter_map(|_| tree.begin(0, "stage", "a".into(), String::new())).count();
        assert_eq!(begun, 4);
        assert_eq!(tree.begin(0, "stage", "b".into(), String::new()), None);
    }

    #[test]
    fn equal_failures_have_equal_ids_and_others_have_not() {
        let id = |object: &str, message: &str| {
            let tree = tree(1 << 20);
            tree.about(|about| object.clone_into(&mut about.object));
            tree.answer("NotFound", Some(message)).expect("an id")
        };
        let first = id("default/a", "no such image");
        assert_eq!(first.len(), 6);
        assert_eq!(first, id("default/a", "no such image"));
        assert_ne!(first, id("default/b", "no such image"));
        assert_ne!(first, id("default/a", "no such volume"));
        // But for ids that are new each time.
        let with_id = |digit: &str| id("default/a", &format!("folder /a/{}/b", digit.repeat(64)));
        assert_eq!(with_id("a"), with_id("b"));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(beginning("äöü".into(), 3), "ä…");
        assert_eq!(beginning("äöü".into(), 6), "äöü");
    }

    #[test]
    fn the_first_end_counts() {
        let tree = tree(1 << 20);
        let step = tree.begin(0, "containerd", "Tasks.Start".into(), String::new()).expect("a step");
        assert!(tree.is_open(step));
        tree.fail(step, "no");
        tree.end(step);
        tree.fail(step, "other");
        assert_eq!(tree.story().steps[0].error, "no");
        assert!(!tree.is_open(step));
        assert_eq!(tree.answer("OK", None), None);
        assert_eq!(tree.answer("Canceled", Some("late")), None);
        assert_eq!(tree.story().code, "OK");
    }
}
