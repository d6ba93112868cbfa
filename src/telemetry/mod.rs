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

/// Starts logging. The first call in a process wins.
pub fn init(config: &LogConfig) -> LogControl {
    let (filter, handle) = reload::Layer::new(filter(config));
    let _ = tracing_subscriber::registry().with(filter).with(writer(config)).try_init();
    LogControl(handle)
}

/// As [`init`], with traces: what gives them is to be run.
///
/// # Errors
/// InvalidArgument for a collector's address that is none.
pub fn init_with_traces(log: &LogConfig, config: &TracesConfig) -> Result<(LogControl, traces::Exporter)> {
    let (filter, handle) = reload::Layer::new(filter(log));
    let (gather, exporter) = traces::new(config)?;
    // The level is that of the log alone.
    let writer = writer(log).with_filter(filter);
    let _ = tracing_subscriber::registry().with(writer).with(gather).try_init();
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
