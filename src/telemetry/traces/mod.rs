//! Traces: what was done for a call of the CRI, and when, for a collector of OpenTelemetry.
//!
//! ```text
//! kubelet ──traceparent──▶ call ─▶ cri ─▶ stage ─▶ containerd ──traceparent──▶ containerd
//!                                        └▶ cni
//!          every span that has ended ─▶ queue ─▶ exporter ──OTLP──▶ collector
//! ```
//! Off by default. The kubelet's trace is
//! continued, and its word counts on whether it is kept; calls without one begin a trace,
//! of which `traces.sampling_ratio` are kept.
//!
//! Why by hand: OpenTelemetry's own crates are a dozen, change every other month, and bring
//! a second way to say everything that `tracing` says; what is needed of them is a header and
//! a message.

mod context;
mod export;
mod layer;
mod otlp;

use std::future::Future;
use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;
use tonic::Code;
use tracing::{Instrument, Span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;

pub use export::Exporter;

use self::context::{Context, HEADER, STATE_HEADER};
use self::layer::{Gather, Traced};
use self::otlp::Kind;
use super::meters::name_of;
use crate::config::TracesConfig;
use crate::error::Result;
use crate::trace;

/// The share of the calls without a trace that are kept; not set where there are no traces.
static SAMPLING: OnceLock<f64> = OnceLock::new();

/// What gathers spans, for the subscriber, and what sends them.
///
/// # Errors
/// InvalidArgument for a collector's address that is none.
pub(super) fn new<S>(config: &TracesConfig) -> Result<(impl Layer<S> + use<S>, Exporter)>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let (sender, receiver) = mpsc::channel(export::WAITING_MAX);
    let exporter = Exporter::new(receiver, &config.endpoint)?;
    let _ = SAMPLING.set(config.sampling_ratio);
    // Our spans, however detailed, and no events.
    let is_ours = filter_fn(|it| it.is_span() && it.target().starts_with("longshore"));
    Ok((Gather { exporter: sender }.with_filter(is_ours), exporter))
}

/// The span of a call that comes with `headers`; none where nobody wants it.
pub fn incoming(method: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::trace_span!(parent: None, "call", method);
    let Some(ratio) = SAMPLING.get() else { return span };
    let caller = Context::of(headers);
    let context = caller.map_or_else(|| new_trace(*ratio), Context::child);
    let state = caller.and_then(|_| context::state_of(headers));
    let mut traced = Traced::new(context, state, caller.map(|it| it.span), method, Kind::Server);
    traced.note("rpc.system", "grpc");
    traced.note("rpc.method", method);
    layer::begin(&span, traced);
    span
}

/// A new trace, of which a share is kept: its own number says which.
fn new_trace(ratio: f64) -> Context {
    let context = Context::new(false);
    let [a, b, c, d, ..] = context.trace;
    let is_sampled = f64::from(u32::from_be_bytes([a, b, c, d])) < ratio * f64::from(u32::MAX);
    Context { is_sampled: is_sampled || ratio >= 1.0, ..context }
}

/// What is done in `span` has ended with `code`.
pub fn ended(span: &Span, code: Code) {
    if SAMPLING.get().is_some() {
        layer::with(span, |traced| traced.end(Some(name_of(code)).filter(|_| code != Code::Ok)));
    }
}

/// What is done in `span` has failed.
pub fn failed(span: &Span, why: &str) {
    trace::failed(span, why);
    if SAMPLING.get().is_some() {
        layer::with(span, |traced| traced.end(Some(why)));
    }
}

/// Does a part of a call that has a name, which is told where it fails.
///
/// # Errors
/// Those of `work`.
pub async fn stage<T>(name: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let span = tracing::debug_span!("stage", name);
    let result = work.instrument(span.clone()).await;
    if let Err(error) = &result {
        failed(&span, error.message());
    }
    result
}

/// Tells the one who is called from `span` of its trace.
pub fn pass_on(span: &Span, headers: &mut HeaderMap) {
    if SAMPLING.get().is_none() {
        return;
    }
    let told = layer::with(span, |traced| (traced.context.to_string(), traced.state.clone()));
    let Some((context, state)) = told else { return };
    for (name, text) in [(HEADER, Some(&*context)), (STATE_HEADER, state.as_deref())] {
        if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
