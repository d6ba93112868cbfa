//! Logs: structured, to standard error, with a filter that can be changed while running.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogConfig, LogFormat};

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
    let writer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let writer = match config.format {
        LogFormat::Json => writer.json().flatten_event(true).boxed(),
        LogFormat::Text => writer.with_ansi(false).boxed(),
    };
    let _ = tracing_subscriber::registry().with(filter).with(writer).try_init();
    LogControl(handle)
}

fn filter(config: &LogConfig) -> EnvFilter {
    // Libraries are told apart from us: their debug output holds request bodies.
    EnvFilter::new(format!("warn,longshore={}", config.level))
}
