//! Spans of `tracing` become spans of traces.
//!
//! A trace begins with a call of the CRI ([`super::incoming`]); what is done for it, on
//! whichever task, has a span below that of the call. Spans that belong to no call, such as
//! those of what is done at the start, belong to no trace. Of a trace that nobody keeps only
//! the ids are known, to be passed on.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::layer::Context as Around;
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::context::Context;
use super::otlp::{self, KeyValue, Kind, Value};

/// The most fields of a span, and the most bytes of a text.
const FIELDS_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 512;
/// The code of a status that says: an error.
const ERROR: i32 = 2;
/// The fields that say more than a span's own name.
const NAMING: [&str; 3] = ["call", "name", "command"];

/// What is known of a span that belongs to a trace.
pub(super) struct Traced {
    pub(super) context: Context,
    /// What others have to say of the trace.
    pub(super) state: Option<Arc<str>>,
    /// As it is told in the end; none if nobody keeps it.
    told: Option<Box<otlp::Span>>,
}

impl Traced {
    /// A span that begins now.
    pub(super) fn new(
        context: Context,
        state: Option<Arc<str>>,
        parent: Option<[u8; 8]>,
        name: &str,
        kind: Kind,
    ) -> Traced {
        let told = context.is_sampled.then(|| {
            Box::new(otlp::Span {
                trace_id: context.trace.to_vec(),
                span_id: context.span.to_vec(),
                trace_state: state.as_deref().unwrap_or_default().to_owned(),
                parent_span_id: parent.map_or_else(Vec::new, Vec::from),
                name: name.to_owned(),
                kind: kind as i32,
                start_time_unix_nano: now(),
                ..otlp::Span::default()
            })
        });
        Traced { context, state, told }
    }

    /// Adds an attribute.
    pub(super) fn note(&mut self, key: &str, value: &str) {
        if let Some(told) = &mut self.told {
            told.attributes.push(KeyValue::new(key, Value::Text(value.to_owned())));
        }
    }

    /// It ends now, before those below it do; with a text, it failed.
    pub(super) fn end(&mut self, failed: Option<&str>) {
        if let Some(told) = &mut self.told {
            told.end_time_unix_nano = now();
            told.status = failed.map(|why| otlp::Status { message: beginning(why).to_owned(), code: ERROR });
        }
    }
}

/// Does something with what is known of a span; nothing where it belongs to no trace.
pub(super) fn with<T>(span: &Span, work: impl FnOnce(&mut Traced) -> T) -> Option<T> {
    in_registry(span, |registry, id| registry.span(id)?.extensions_mut().get_mut::<Traced>().map(work))
}

/// Makes `span` the beginning of what is done here of a trace.
pub(super) fn begin(span: &Span, traced: Traced) {
    in_registry(span, |registry, id| {
        registry.span(id)?.extensions_mut().replace(traced);
        Some(())
    });
}

fn in_registry<T>(span: &Span, work: impl FnOnce(&Registry, &Id) -> Option<T>) -> Option<T> {
    span.with_subscriber(|(id, dispatch)| work(dispatch.downcast_ref::<Registry>()?, id)).flatten()
}

/// Gathers spans and hands them to the exporter. Never waits: what it has no room for is lost.
pub(super) struct Gather {
    pub(super) exporter: Sender<otlp::Span>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Gather {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, around: Around<'_, S>) {
        let Some(span) = around.span(id) else { return };
        let parent = span
            .parent()
            .and_then(|it| it.extensions().get::<Traced>().map(|it| (it.context, it.state.clone())));
        let Some((parent, state)) = parent else { return };
        let kind = if span.name() == "containerd" { Kind::Client } else { Kind::Internal };
        let mut traced = Traced::new(parent.child(), state, Some(parent.span), span.name(), kind);
        if let Some(told) = &mut traced.told {
            attributes.record(&mut Fields(told));
        }
        span.extensions_mut().insert(traced);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, around: Around<'_, S>) {
        if let Some(span) = around.span(id)
            && let Some(Traced { told: Some(told), .. }) = span.extensions_mut().get_mut::<Traced>()
        {
            values.record(&mut Fields(told));
        }
    }

    fn on_close(&self, id: Id, around: Around<'_, S>) {
        let Some(span) = around.span(&id) else { return };
        if let Some(Traced { told: Some(mut told), .. }) = span.extensions_mut().remove::<Traced>() {
            if told.end_time_unix_nano == 0 {
                told.end_time_unix_nano = now();
            }
            let _ = self.exporter.try_send(*told);
        }
    }
}

/// Takes fields as attributes.
struct Fields<'a>(&'a mut otlp::Span);

impl Fields<'_> {
    fn push(&mut self, field: &Field, value: Value) {
        if self.0.attributes.len() < FIELDS_MAX {
            self.0.attributes.push(KeyValue::new(field.name(), value));
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let value = beginning(value);
        if NAMING.contains(&field.name()) {
            self.0.name.push(' ');
            self.0.name.push_str(value);
        }
        self.push(field, Value::Text(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// So much of a text as is told: plugins and runtimes may say a lot.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
