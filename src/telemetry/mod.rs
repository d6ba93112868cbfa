//! What the server tells of itself: logs (structured, to standard error, with a filter that
//! can be changed while running; this file), metrics ([`meters`], [`endpoint`]) and
//! [`traces`].

pub mod endpoint;
pub mod meters;
pub mod snapshot;
pub mod traces;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

pub use meters::METERS;
pub use snapshot::{LogTotals, Snapshot};

use crate::config::{LogConfig, LogFormat, TracesConfig};
use crate::error::Result;

/// Changes the log level of the running process.
#[derive(Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Puts `config`'s level in force; the format stays what it was at start.
    pub fn reload(&self, config: &LogConfig) {
        if let Err(error) = self.0.reload(filter(config)) {
            tracing::warn!(%error, "the log level could not be changed");
        }
    }
}

/// Starts logging, the traces and the recorder of calls, where the configuration has them;
/// what sends the traces is to be run. The first call in a process wins.
///
/// # Errors
/// InvalidArgument for a collector's address that is none.
pub fn init(
    log: &LogConfig,
    traces: Option<&TracesConfig>,
    trace: Option<usize>,
) -> Result<(LogControl, Option<traces::Exporter>)> {
    let (filter, handle) = reload::Layer::new(filter(log));
    // The level is that of the log alone.
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> =
        vec![writer(log).with_filter(filter).boxed()];
    let mut exporter = None;
    if let Some(config) = traces {
        let (gather, runs) = traces::new(config)?;
        layers.push(gather.boxed());
        exporter = Some(runs);
    }
    layers.extend(trace.map(|bytes_max| crate::trace::layer(bytes_max).boxed()));
    let _ = tracing_subscriber::registry().with(layers).try_init();
    Ok((LogControl(handle), exporter))
}

fn writer<S>(config: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let writer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    match config.format {
        LogFormat::Json => writer.json().flatten_event(true).boxed(),
        LogFormat::Text => writer.with_ansi(false).boxed(),
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    // Libraries are told apart from us: their debug output holds request bodies.
    EnvFilter::new(format!("warn,longshore={}", config.level))
}
