//! `longshore keeper`: the process that keeps the output of containers.

use std::path::PathBuf;

use clap::Args;

use crate::config::{LogConfig, LogFormat};
use crate::{io, telemetry};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the server speaks to it.
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    telemetry::init(&LogConfig { level: "info".into(), format: LogFormat::Text });
    io::keeper::run(&io::keeper::Options::new(arguments.socket))?;
    Ok(())
}
