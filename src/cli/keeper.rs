//! `longshore keeper`: the process that keeps the output of containers.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

use crate::config::{LogConfig, LogFormat};
use crate::{io, telemetry};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the server speaks to it.
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
    /// Descriptor of what the program that this process was before has left.
    #[arg(long, value_name = "FD", hide = true)]
    will: Option<RawFd>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    telemetry::init(&LogConfig { level: "info".into(), format: LogFormat::Text }, None, None)?;
    let will = arguments.will;
    io::keeper::run(&io::keeper::Options { will, ..io::keeper::Options::new(arguments.socket) })?;
    Ok(())
}
