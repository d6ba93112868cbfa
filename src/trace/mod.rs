//! The recorder: every CRI call as a tree of what it caused, always on.
//!
//! ```text
//! call ─▶ cri ─▶ stage ─▶ containerd        spans of `tracing` (design: one tree)
//!                      └▶ cni, mount, file
//!           layer ─▶ tree ── all has ended ──▶ ring ─▶ admin socket ─▶ `longshore trace`
//! ```
//! A consumer of the spans that the log and the exporter of traces have, too; what they do
//! not tell (the request, what containerd was asked for, a plugin's input and output) is
//! added to the step at hand. Secrets never get in: requests are masked by their schema
//! ([`mask`]), of containerd's only chosen fields are read ([`calls`]), output of execs is
//! not looked at.
//!
//! The bound: what runs and what is kept together take `trace.bytes_max`; the oldest whole
//! calls go first, those that only look before those that change something ([`ring`]).

pub mod calls;
mod chrome;
mod filter;
mod layer;
pub mod mask;
mod recorder;
mod ring;
mod story;
pub mod tee;
mod text;
mod tree;

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;
use std::task::Poll;

use tracing::span::EnteredSpan;
use tracing::{Instrument, Span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

pub use chrome::Chrome;
pub use filter::Filter;
pub use recorder::{Figures, Recorder, is_look};
pub use story::{About, Step, Story};
pub use text::{Look, short, time, write_brief, write_story};

/// What a call waits for whose object another one is busy with.
pub const OTHERS: &str = "another call on the same object";

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// The recorder; none where it is switched off.
#[must_use]
pub fn recorder() -> Option<&'static Recorder> {
    RECORDER.get()
}

/// What hands spans to the recorder, for the subscriber; it begins to record at most
/// `bytes_max` bytes. The first call in a process wins.
pub fn layer<S>(bytes_max: usize) -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let recorder = RECORDER.get_or_init(|| Recorder::new(bytes_max));
    let is_ours = filter_fn(|it| it.is_span() && it.target().starts_with("longshore"));
    layer::Steps(recorder).with_filter(is_ours)
}

/// The span of something that the server does by itself: `[name]` in the list of calls.
#[must_use]
pub fn background(name: &'static str, object: &str) -> Span {
    if RECORDER.get().is_none() {
        return Span::none();
    }
    tracing::trace_span!(parent: None, "background", name, object)
}

/// Says what the present call is about.
pub fn about(fill: impl FnOnce(&mut About)) {
    if RECORDER.get().is_some() {
        layer::with(&Span::current(), |place| place.tree.about(fill));
    }
}

/// The id of the present call.
#[must_use]
pub fn id() -> Option<String> {
    RECORDER.get()?;
    layer::with(&Span::current(), |place| tree::id_text(place.tree.number))
}

/// The call of `span` was answered. With a message, which is an error's: the id that it is to
/// carry, by which its story is found.
pub fn answered(span: &Span, code: &str, message: Option<&str>) -> Option<String> {
    RECORDER.get()?;
    layer::with(span, |place| place.tree.answer(code, message)).flatten()
}

/// The request of the call of `span`, without its secrets.
pub fn request(span: &Span, text: impl FnOnce() -> String) {
    if RECORDER.get().is_some() {
        layer::with(span, |place| place.tree.request(text()));
    }
}

/// Says of the step of `span` on what it works.
pub fn args(span: &Span, text: impl FnOnce() -> String) {
    if RECORDER.get().is_some() {
        layer::with(span, |place| place.tree.args(place.step, text()));
    }
}

/// The step of `span` has ended, before those below it do.
pub fn ended(span: &Span) {
    if RECORDER.get().is_some() {
        layer::with(span, |place| place.tree.end(place.step));
    }
}

/// The step of `span` has failed.
pub fn failed(span: &Span, why: &str) {
    if RECORDER.get().is_some() {
        layer::with(span, |place| place.tree.fail(place.step, why));
    }
}

/// Adds a text to the step of `span`; it is made only where it is recorded.
pub fn note(span: &Span, key: &'static str, text: impl FnOnce() -> String) {
    if RECORDER.get().is_some() {
        layer::with(span, |place| {
            let text = text();
            if !text.is_empty() {
                place.tree.note(place.step, key, &text);
            }
        });
    }
}

/// Work on a file; a step until what this gives is dropped.
pub fn file(name: &str, path: &Path) -> EnteredSpan {
    tracing::debug_span!("file", name, path = %path.display()).entered()
}

/// Work on a mount; a step until what this gives is dropped.
pub fn mount(name: &str, path: &Path) -> EnteredSpan {
    tracing::debug_span!("mount", name, path = %path.display()).entered()
}

/// Work on a namespace; a step until what this gives is dropped.
pub fn namespace(name: &str, path: &Path) -> EnteredSpan {
    tracing::debug_span!("namespace", name, path = %path.display()).entered()
}

/// Waits for `work`; where it does not come at once, that is a step: what the call waits for.
pub async fn wait<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
        return done;
    }
    work.instrument(tracing::debug_span!("wait", name = what)).await
}

#[cfg(test)]
mod tests;
