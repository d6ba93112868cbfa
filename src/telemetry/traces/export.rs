//! Spans go to a collector, over OTLP's gRPC, some at a time.
//!
//! A collector that is slow, or not there, costs its spans and nothing else: those who are
//! traced never wait, and what waits for the collector has a bound.

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tracing::warn;

use super::otlp::{self, KeyValue, Value};
use crate::error::{Result, deadline, invalid, unavailable};

/// Spans that wait for being sent.
pub(super) const WAITING_MAX: usize = 4096;
/// Spans that are sent together.
const BATCH_MAX: usize = 512;
/// How long the first of them waits for others.
const BATCH_PAUSE: Duration = Duration::from_secs(1);
/// How long the collector may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long it may take for what is left when the server stops.
const LAST_LIMIT: Duration = Duration::from_secs(1);
/// How often a collector that does not take spans is told of.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// Sends spans.
pub struct Exporter {
    spans: Receiver<otlp::Span>,
    endpoint: Endpoint,
    name: String,
    last_warning: Option<Instant>,
    lost: usize,
}

impl Exporter {
    /// One that sends `spans` to the collector at `endpoint`, an `http://` address.
    ///
    /// # Errors
    /// InvalidArgument for what is no address.
    pub(super) fn new(spans: Receiver<otlp::Span>, endpoint: &str) -> Result<Exporter> {
        let name = endpoint.to_owned();
        let endpoint = Endpoint::from_shared(name.clone())
            .map_err(|error| invalid(format!("the collector's address {name:?}: {error}")))?
            .connect_timeout(LIMIT);
        Ok(Exporter { spans, endpoint, name, last_warning: None, lost: 0 })
    }

    /// Sends until `stop`, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut collector = Grpc::new(self.endpoint.connect_lazy());
        let mut batch = Vec::new();
        while let Some(1..) = stop.run_until_cancelled(self.spans.recv_many(&mut batch, BATCH_MAX)).await {
            let fill = self.fill(&mut batch);
            if stop.run_until_cancelled(tokio::time::timeout(BATCH_PAUSE, fill)).await.is_none() {
                break;
            }
            self.send(&mut collector, std::mem::take(&mut batch), LIMIT).await;
        }
        while let Ok(span) = self.spans.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.send(&mut collector, batch, LAST_LIMIT).await;
        }
    }

    /// Waits until a batch is full.
    async fn fill(&mut self, batch: &mut Vec<otlp::Span>) {
        while batch.len() < BATCH_MAX {
            if self.spans.recv_many(batch, BATCH_MAX - batch.len()).await == 0 {
                return;
            }
        }
    }

    async fn send(&mut self, collector: &mut Grpc<Channel>, spans: Vec<otlp::Span>, limit: Duration) {
        let count = spans.len();
        let sent = tokio::time::timeout(limit, export(collector, spans)).await;
        let sent = sent.unwrap_or_else(|_| Err(deadline(format!("no answer within {} s", limit.as_secs()))));
        let Err(error) = sent else { return };
        self.lost += count;
        if self.last_warning.is_none_or(|last| last.elapsed() > WARN_PAUSE) {
            warn!(collector = self.name, spans = self.lost, %error, "spans were lost");
            (self.last_warning, self.lost) = (Some(Instant::now()), 0);
        }
    }
}

async fn export(collector: &mut Grpc<Channel>, spans: Vec<otlp::Span>) -> Result<()> {
    collector.ready().await.map_err(|error| unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(otlp::EXPORT);
    let codec: ProstCodec<otlp::Request, otlp::Response> = ProstCodec::new();
    let sent = collector.unary(tonic::Request::new(request(spans)), path, codec).await;
    sent.map(drop).map_err(|status| unavailable(status.to_string()))
}

fn request(spans: Vec<otlp::Span>) -> otlp::Request {
    let text = |text: &str| Value::Text(text.to_owned());
    let name = env!("CARGO_PKG_NAME");
    let version = env!("CARGO_PKG_VERSION");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = vec![
        KeyValue::new("service.name", text(name)),
        KeyValue::new("service.version", text(version)),
        KeyValue::new("host.name", Value::Text(host)),
    ];
    let scope = Some(otlp::Scope { name: name.to_owned(), version: version.to_owned() });
    let scope_spans = vec![otlp::ScopeSpans { scope, spans }];
    let resource = Some(otlp::Resource { attributes });
    otlp::Request { resource_spans: vec![otlp::ResourceSpans { resource, scope_spans }] }
}
