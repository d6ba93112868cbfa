//! `longshore check` and `longshore doctor`

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::serve::Flags;
use crate::check::{self, Mode, Request};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The server's configuration file; without one /etc/longshore/longshore.toml, if it is
    /// there, else the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// The kubelet's configuration file; without one that of its process, else
    /// /var/lib/kubelet/config.yaml.
    #[arg(long, value_name = "FILE")]
    kubelet_config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments, mode: Mode) -> anyhow::Result<ExitCode> {
    let request = Request {
        mode,
        config: arguments.config,
        overrides: arguments.flags.into(),
        kubelet_config: arguments.kubelet_config,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(check::run(request));
    // What still hangs in the kernel does not hold the end.
    runtime.shutdown_background();
    let mut out = std::io::stdout();
    let is_coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.text(is_coloured),
    };
    out.write_all(text.as_bytes())?;
    Ok(ExitCode::from(report.exit_code()))
}
