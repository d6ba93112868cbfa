//! Spans of `tracing` become steps.
//!
//! A story begins with a span `call`, `background` or `stream`; each span below it, on whichever task
//! or thread, is a step of it, named by the span and its fields. It is told when the last of
//! them has closed. Spans that belong to no such tree are passed over.

use std::fmt::{Debug, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::recorder::Recorder;
use super::tree::Tree;

/// A span's place in a story.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) tree: Arc<Tree>,
    pub(super) step: u32,
    /// Whether the step is the span's own; else it is that of one above.
    is_own: bool,
}

/// Does something with the place of a span; nothing where it has none.
pub(super) fn with<T>(span: &Span, work: impl FnOnce(&Place) -> T) -> Option<T> {
    span.with_subscriber(|(id, dispatch)| {
        use tracing_subscriber::registry::LookupSpan;
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        let extensions = span.extensions();
        extensions.get::<Place>().map(work)
    })
    .flatten()
}

/// Hands spans to the recorder.
pub(super) struct Steps(pub(super) &'static Recorder);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Steps {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let kind = span.name();
        if matches!(kind, "call" | "background" | "stream") && span.parent().is_none() {
            let mut words = Words::default();
            attributes.record(&mut words);
            let Words { name, object, .. } = words;
            let method = if kind == "call" { name } else { format!("[{name}]") };
            let Some(tree) = self.0.begin(method) else { return };
            if let Some(object) = object {
                tree.about(|about| about.object = object);
            }
            span.extensions_mut().insert(Place { tree, step: 0, is_own: true });
            return;
        }
        let Some(above) = span.parent().and_then(|it| it.extensions().get::<Place>().cloned()) else {
            return;
        };
        let mut words = Words::default();
        attributes.record(&mut words);
        let place = if kind == "cri" {
            // The call itself, once its request is read.
            if let Some(object) = words.object {
                above.tree.about(|about| about.object = object);
            }
            Place { is_own: false, ..above }
        } else {
            let name = if words.name.is_empty() { kind.to_owned() } else { words.name };
            match above.tree.begin(above.step, kind, name, words.args) {
                Some(step) => Place { step, is_own: true, ..above },
                None => Place { is_own: false, ..above },
            }
        };
        span.extensions_mut().insert(place);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let Some(place) = span.extensions().get::<Place>().filter(|place| place.is_own).cloned() else {
            return;
        };
        let mut words = Words::default();
        values.record(&mut words);
        place.tree.args(place.step, words.args);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let place = span.extensions_mut().remove::<Place>();
        let Some(Place { tree, step, is_own: true }) = place else { return };
        if step == 0 {
            tree.answer(if span.name() == "call" { "Canceled" } else { "OK" }, None);
            self.0.settle(&tree);
        } else if span.name() == "containerd" && tree.is_open(step) {
            tree.fail(step, "given up");
        } else {
            tree.end(step);
        }
    }
}

/// The fields of a span: what names it, and what it works on.
#[derive(Default)]
struct Words {
    name: String,
    object: Option<String>,
    args: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "call" => value.trim_start_matches('/').clone_into(&mut self.name),
            "method" | "name" | "command" | "plugin" | "kind" => {
                if !self.name.is_empty() {
                    self.name.push(' ');
                }
                self.name.push_str(value);
            }
            "object" => self.object = Some(value.to_owned()),
            // The call tells it already.
            "sandbox" => {}
            name => {
                let space = if self.args.is_empty() { "" } else { " " };
                let _ = write!(self.args, "{space}{name}={value}");
            }
        }
        if field.name() == "call" {
            // `containerd.services.tasks.v1.Tasks/Create` is Tasks.Create.
            if let Some((service, method)) = self.name.rsplit_once('/') {
                let service = service.rsplit('.').next().unwrap_or(service);
                self.name = format!("{service}.{method}");
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
